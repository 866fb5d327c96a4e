import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  Authorization,
  type CheckRequest,
  CheckRequestSchema,
  type CheckResponse,
  CheckResponseSchema,
} from "#gen/envoy/service/auth/v3/external_auth_pb";
import type { GatewayKeySources } from "../config.ts";
import { ENVELOPE_BYTES, type HotAnswer, type HotCall, type HotMethod } from "../transport/hot-method.ts";
import { createCheckReader, createCheckWriter } from "./check-wire.ts";
import { createDecide, type Decision, type GatewayParts, scopesIn, TOO_LARGE } from "./gateway.ts";
import { logged } from "./interceptors.ts";
import type { Presented } from "./presented-key.ts";

const { typeName: service } = Authorization;
const method = Authorization.method.check.name;

/** Headers may take what Envoy lets them, and a body what `with_request_body` does; more than this is refused. */
export const MAX_CHECK_BYTES = 1024 * 1024;

export interface ExtAuthz {
  /** Check without Connect, in protobuf. */
  hot: HotMethod;
  /** Check for whatever the hot path leaves: JSON, compression, GET. The same answers. */
  service: ServiceImpl<typeof Authorization>;
}

/** Envoy's question about a request. Every refusal is an answer: errors are what `failure_mode_allow` lets pass. */
export function createExtAuthz(sources: GatewayKeySources, parts: GatewayParts): ExtAuthz {
  const reader = createCheckReader(sources);
  const writer = createCheckWriter(sources);
  const decide = createDecide(parts, service, method);
  const scopesOf = createScopeParser();

  const encoded = (decision: Decision, presented: Presented, room: number): Buffer =>
    decision.allowed ? writer.allowed(decision.entry, presented, room) : writer.denied(decision, room);

  const check = (message: Buffer, headers: CallHeaders, timeoutMs: number | undefined, room: number) => {
    const { presented, scopes } = reader.read(message);
    const requiredScopes = scopes === undefined ? undefined : scopesOf(scopes);
    const { authorization: gatewayToken, "x-request-id": requestId } = headers;
    const decision = decide({ presented, requiredScopes, gatewayToken, timeoutMs, requestId });
    return decision instanceof Promise
      ? decision.then((late) => encoded(late, presented, room))
      : encoded(decision, presented, room);
  };

  const answer = ({ json, protocol, message, headers, timeoutMs }: HotCall) => {
    if (json) return undefined;
    const roomy = protocol === "grpc";
    const toAnswer = (bytes: Buffer): HotAnswer => (roomy ? { message: bytes, roomy } : { message: bytes });
    const bytes = check(message, headers, timeoutMs, roomy ? ENVELOPE_BYTES : 0);
    return bytes instanceof Promise ? bytes.then(toAnswer) : toAnswer(bytes);
  };

  return {
    hot: {
      path: `/${service}/${method}`,
      maxMessageBytes: MAX_CHECK_BYTES,
      answer,
      oversize: () => ({ message: writer.denied(TOO_LARGE, 0) }),
    },
    service: {
      async check(request: CheckRequest, context: HandlerContext): Promise<CheckResponse> {
        context.values.get(logged).told = true;
        const message = Buffer.from(toBinary(CheckRequestSchema, request));
        const authorization = context.requestHeader.get("authorization") ?? undefined;
        const requestId = context.requestHeader.get("x-request-id") ?? undefined;
        const headers = { authorization, "x-request-id": requestId };
        return decoded(await check(message, headers, context.timeoutMs(), 0));
      },
    },
  };
}

interface CallHeaders {
  authorization?: string | undefined;
  "x-request-id"?: string | string[] | undefined;
}

const MAX_KNOWN_LISTS = 1_000;

/** Routes have few lists of scopes between them, each sent with every request. */
function createScopeParser(): (list: string) => readonly string[] {
  const known = new Map<string, readonly string[]>();
  return (list) => {
    const found = known.get(list);
    if (found !== undefined) return found;
    const scopes = scopesIn(list);
    if (known.size >= MAX_KNOWN_LISTS) known.clear();
    known.set(list, scopes);
    return scopes;
  };
}

/** The message of what was encoded by hand. It has an outage in two fields of one oneof, the second as an unknown one. */
function decoded(bytes: Uint8Array): CheckResponse {
  const response = fromBinary(CheckResponseSchema, bytes);
  const { httpResponse } = response;
  if (httpResponse.case !== "errorResponse") return response;
  const { value } = httpResponse;
  const onlyError = create(CheckResponseSchema, { httpResponse: { case: "errorResponse", value } });
  const data = toBinary(CheckResponseSchema, onlyError).slice(1);
  const denied = create(CheckResponseSchema, { httpResponse: { case: "deniedResponse", value } });
  if (response.status !== undefined) denied.status = response.status;
  denied.$unknown = [{ no: 5, wireType: 2, data }];
  return denied;
}
