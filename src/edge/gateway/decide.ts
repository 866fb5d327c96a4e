import type { Peer } from "../../fastpath/fast-method.ts";
import { invalid, KeyError, listed } from "../../keys/errors.ts";
import type { Verification, VerifyKey } from "../../keys/verify/verify.ts";
import type { Entry } from "../../keys/verify/view.ts";
import { createAnonymous, type DenialStatus, isUsual, OUTCOMES, type Refusal, UNASKED } from "../answer.ts";
import { boundedTimeout } from "../call.ts";
import { type CallLog, type LoggedCall, requestIdFrom } from "../call-log.ts";
import type { Authenticator } from "../tokens.ts";
import { isAmbiguous, type KeySources, type Presented, placesIn } from "./presented-key.ts";

/** Whether a request may pass a gateway. */
export type Decision = Allowed | Denial;

export interface Allowed {
  allowed: true;
  entry: Entry;
}

export interface Denial {
  allowed: false;
  status: DenialStatus;
  /** Names in lower case. */
  headers: Readonly<Record<string, string>>;
  /** JSON. */
  body: string;
  /** The database can't answer, or not in time. */
  outage: boolean;
}

export interface Question {
  presented: Presented;
  /** Undefined: what was asked can't be read. */
  requiredScopes: readonly string[] | undefined;
  /** By which the gateway proves itself, as in an `authorization` header. */
  gatewayToken: string | undefined;
  /** By which certificate it proves itself. */
  peer: Peer | undefined;
  timeoutMs: number | undefined;
  /** For the log, as it came. */
  requestId: string | string[] | undefined;
}

export interface GatewayParts {
  verify: VerifyKey;
  authenticator: Authenticator;
  calls: CallLog;
  /** Time for the answer to a gateway that names none, in milliseconds. */
  answerMs: number;
  /** Scopes of who brings no key at all; undefined: they don't pass. */
  anonymous: readonly string[] | undefined;
}

/** Decides, counts and logs. Never throws or rejects. */
export type Decide = (question: Question) => Decision | Promise<Decision>;

/** One decision for all who ask on behalf of a gateway; `service` and `method` name them in the log. */
export function createDecide(
  sources: KeySources,
  { verify, authenticator, calls, answerMs, anonymous }: GatewayParts,
  service: string,
  method: string,
): Decide {
  const denied = createDenials(sources);
  const count = calls.often(service, method);
  const nobody = anonymous && createAnonymous(anonymous);
  const timeoutOf = ({ timeoutMs }: Question) => boundedTimeout(timeoutMs ?? answerMs);

  const ask = (question: Question): Conclusion | Promise<Conclusion> => {
    const { presented, requiredScopes } = question;
    if (requiredScopes === undefined) throw invalid([{ field: "", description: "the request can't be read" }]);
    if (isAmbiguous(presented)) return "key_ambiguous";
    if (presented.key === "") {
      return nobody !== undefined && requiredScopes.every((scope) => nobody.scopes.includes(scope))
        ? nobody
        : "key_missing";
    }
    return verify({ key: presented.key, requiredScopes, strong: false, timeoutMs: timeoutOf(question) });
  };
  const concluded = ({ requestId, presented }: Question, startedMs: number, conclusion: Conclusion): Decision => {
    if (typeof conclusion === "string") {
      count(startedMs, requestId, conclusion, undefined);
      return denied(conclusion, UNASKED[conclusion], presented);
    }
    if (conclusion === nobody) {
      count(startedMs, requestId, "anonymous", undefined);
      return { allowed: true, entry: nobody };
    }
    const verification = conclusion as Verification;
    const { outcome, entry } = verification;
    count(startedMs, requestId, outcome, entry?.id);
    const { refusal } = OUTCOMES[outcome];
    if (refusal === undefined) return { allowed: true, entry: entry! };
    return isUsual(verification)
      ? denied(outcome, refusal, presented)
      : refused(outcome, refusal, "", verification.missingScopes);
  };
  const failed = ({ requestId }: Question, startedMs: number, error: unknown): Decision =>
    denialOf(error, { service, method, startedMs, requestId: requestIdFrom(requestId) }, calls);

  // As in Verify, no promise and no closure where nothing has to be waited for.
  return (question) => {
    const startedMs = performance.now();
    try {
      const admitted = authenticator.service(question.gatewayToken, question.peer);
      const found = admitted === undefined ? ask(question) : admitted.then(() => ask(question));
      if (!(found instanceof Promise)) return concluded(question, startedMs, found);
      return inTime(found, timeoutOf(question)).then(
        (late) => concluded(question, startedMs, late),
        (error) => failed(question, startedMs, error),
      );
    } catch (error) {
      return failed(question, startedMs, error);
    }
  };
}

type Conclusion = Verification | Entry | keyof typeof UNASKED;

/** An answer takes some of the gateway's time to get there. */
const MARGIN_MS = 25;

/** DEADLINE_EXCEEDED a little before the gateway stops waiting: it has an answer, and is not left to guess. */
function inTime<T>(found: Promise<T>, timeoutMs: number): Promise<T> {
  const waitMs = Math.max(timeoutMs - MARGIN_MS, timeoutMs / 2);
  return new Promise<T>((resolve, reject) => {
    const late = () =>
      reject(new KeyError("DEADLINE_EXCEEDED", "The API key could not be checked in time. Try again."));
    const timer = setTimeout(late, waitMs);
    found.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

const CHALLENGE = 'Bearer realm="latchkey"';

/** The request is larger than what is read of it. */
export const TOO_LARGE: Denial = denial(431, { reason: "HEADERS_TOO_LARGE", message: "The request is too large." });

const RETRY_SOON = retryAfter();

export const TOO_MANY: Denial = denial(
  429,
  { reason: "OVERLOADED", message: "There are too many large requests at once. Ask again." },
  RETRY_SOON,
);

const MAX_KNOWN_DENIALS = 1_000;

/** Garbage must stay cheap: each denial is made once. */
function createDenials(sources: KeySources): (name: string, refusal: Refusal, presented: Presented) => Denial {
  const made = new Map<string, Denial>();
  return (name, refusal, { places, strayPlaces }) => {
    const at = refusal.message.includes(PLACES) ? places || strayPlaces : 0;
    const known = at === 0 ? name : `${name} ${at}`;
    const before = made.get(known);
    if (before !== undefined) return before;
    const denied = refused(name, refusal, placesIn(at, sources));
    if (made.size >= MAX_KNOWN_DENIALS) made.clear();
    made.set(known, denied);
    return denied;
  };
}

const PLACES = "{places}";

function refused(
  name: string,
  { status, message, error }: Refusal,
  places: string,
  missingScopes: readonly string[] = [],
): Denial {
  // Gateways take 4 KiB of headers, and the body may stand there too.
  const { shown, others } = listed(missingScopes);
  const attributes = [
    ...(error === undefined ? [] : [`error="${error}"`]),
    ...(shown.length === 0 ? [] : [`scope="${shown.join(" ")}"`]),
  ];
  const body = {
    ...{ reason: name.toUpperCase(), message: message.replace(PLACES, places) },
    ...(shown.length > 0 && { missingScopes: shown }),
    ...(others > 0 && { missingScopesInAll: missingScopes.length }),
  };
  const isChallenge = status === 401 || status === 403;
  return denial(status, body, isChallenge ? { "www-authenticate": [CHALLENGE, ...attributes].join(", ") } : {});
}

/** A mistake of the gateway itself is no outage: it is refused even where outages are let pass. */
function denialOf(error: unknown, call: LoggedCall, calls: CallLog): Denial {
  const reason = error instanceof KeyError ? error.reason : "INTERNAL_ERROR";
  if (error instanceof KeyError && (reason === "UNAUTHENTICATED" || reason === "INVALID_ARGUMENT")) {
    calls.misconfigured(call, error);
    const message = "The gateway's configuration does not let API keys be checked.";
    return denial(503, { reason, message }, RETRY_SOON);
  }
  const { rawMessage: message } = calls.refused(call, error);
  const retry = retryAfter(error instanceof KeyError ? error.retryAfterMs : undefined);
  if (reason === "OVERLOADED") return denial(429, { reason, message }, retry);
  // A defect is nothing that an operator asked to let pass, nor is a gateway that can't prove who it is.
  const outage = reason !== "INTERNAL_ERROR" && reason !== "KEY_SET_UNAVAILABLE";
  return { ...denial(503, { reason, message }, retry), outage };
}

/** In whole seconds, one at least. */
function retryAfter(ms = 0): Record<"retry-after", string> {
  return { "retry-after": String(Math.max(1, Math.ceil(ms / 1_000))) };
}

function denial(status: Denial["status"], body: object, headers: Record<string, string> = {}): Denial {
  const always = { "content-type": "application/json", "cache-control": "no-store" };
  return { allowed: false, status, headers: { ...always, ...headers }, body: JSON.stringify(body), outage: false };
}

/** Scopes in a list that is separated by spaces or commas. */
export function scopesIn(list: string): string[] {
  return list.split(/[ ,]+/).filter(Boolean);
}
