import type { PlainAnswer, PlainHttp, PlainRequest } from "../../fastpath/plain-http.ts";
import { identityHeaders } from "../answer.ts";
import { createDecide, type Decision, type GatewayParts, scopesIn } from "./decide.ts";
import {
  headersToRemove,
  type KeySources,
  noteHeader,
  noteQuery,
  nothingPresented,
  type Presented,
  parametersOf,
} from "./presented-key.ts";

const SERVICE = "forward-auth";
const METHOD = "authorize";
const PATH = "/v1/authorize";

/** A denial's body once more, for gateways that throw bodies away (nginx's auth_request does). */
const DENIAL_HEADER = "x-latchkey-denial";

/** Headers in which gateways say what the client asked for. */
const TARGET_HEADERS = ["x-forwarded-uri", "x-original-uri", "x-original-url", "x-envoy-original-path"];

/** The question that gateways ask over plain HTTP, with the client's own headers. The same decisions as Check's. */
export function createForwardAuth(sources: KeySources, parts: GatewayParts): PlainHttp {
  const decide = createDecide(sources, parts, SERVICE, METHOD);
  const answer = (request: PlainRequest) => {
    const { headers, peer } = request;
    const presented = presentedBy(request, sources);
    const token = headers["x-latchkey-gateway-token"];
    const decision = decide({
      ...{ presented, requiredScopes: requiredScopesOf(request), requestId: headers["x-request-id"] },
      gatewayToken: typeof token === "string" ? `Bearer ${token}` : undefined,
      ...{ peer, timeoutMs: expectedMs(headers, parts.answerMs) },
    });
    return decision instanceof Promise
      ? decision.then((late) => toAnswer(late, presented, sources))
      : toAnswer(decision, presented, sources);
  };
  return { path: PATH, answer };
}

/** A client may have written it: it can only shorten what is configured. */
function expectedMs(headers: PlainRequest["headers"], answerMs: number): number {
  const expected = headers["x-envoy-expected-rq-timeout-ms"];
  return typeof expected === "string" && /^\d{1,9}$/.test(expected) ? Math.min(Number(expected), answerMs) : answerMs;
}

function presentedBy({ target, headers, rawHeaders }: PlainRequest, sources: KeySources): Presented {
  const presented = nothingPresented();
  for (let index = 0; index + 1 < rawHeaders.length; index += 2) {
    noteHeader(presented, sources, rawHeaders[index]!, rawHeaders[index + 1]!);
  }
  if (sources.queries.length > 0) {
    // A gateway may say the same in several headers: that is one query, and its keys are one.
    const targets = TARGET_HEADERS.map((name) => headers[name]).filter((value) => typeof value === "string");
    if (pathBelow(target)) targets.push(target);
    for (const query of new Set(targets.map(queryOf))) noteQuery(presented, sources, query);
  }
  return presented;
}

/** Whether the path is the client's with ours before it. */
function pathBelow(target: string): boolean {
  return target.charAt(PATH.length) === "/";
}

function queryOf(target: string): string {
  const start = target.indexOf("?");
  return start < 0 ? "" : target.slice(start);
}

/**
 * Of the header and of the query, both. A client that can set them only makes its own request harder to admit. Below our
 * path the query is the client's, who may mean something else by `scopes`.
 */
function requiredScopesOf({ target, headers }: PlainRequest): string[] {
  const required = headers["x-latchkey-required-scopes"];
  const inQuery = pathBelow(target) ? [] : parametersOf(target).filter(({ name }) => name === "scopes");
  return [...new Set([String(required ?? ""), ...inQuery.map(({ value }) => value)].flatMap(scopesIn))];
}

function toAnswer(decision: Decision, presented: Presented, sources: KeySources): PlainAnswer {
  if (!decision.allowed) {
    const { status, body } = decision;
    return { status, body, headers: { ...decision.headers, [DENIAL_HEADER]: visibleJson(body) } };
  }
  const headers = {
    "cache-control": "no-store",
    ...identityHeaders(sources.identity, decision.entry),
    "x-envoy-auth-headers-to-remove": headersToRemove(presented, sources).join(","),
  };
  return { status: 200, headers, body: "" };
}

/** The same JSON in what a header may hold. */
function visibleJson(json: string): string {
  return json.replace(/[^\x20-\x7e]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
}
