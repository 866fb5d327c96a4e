import type { Peer } from "../../fastpath/fast-method.ts";
import { invalid, KeyError, listed } from "../../keys/errors.ts";
import type { Outcome, Verification, VerifyKey } from "../../keys/verify/verify.ts";
import type { Entry } from "../../keys/verify/view.ts";
import { type CallLog, type LoggedCall, requestIdFrom } from "../call-log.ts";
import { boundedTimeout } from "../doors/api-keys.ts";
import type { Authenticator } from "../tokens.ts";
import { IDENTITY_HEADERS, isAmbiguous, type KeySources, type Presented, placesIn } from "./presented-key.ts";

/** Whether a request may pass a gateway. */
export type Decision = Allowed | Denial;

export interface Allowed {
  allowed: true;
  entry: Entry;
}

export interface Denial {
  allowed: false;
  status: 401 | 403 | 429 | 431 | 503;
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
}

/** Decides, counts and logs. Never throws or rejects. */
export type Decide = (question: Question) => Decision | Promise<Decision>;

/** One decision for all who ask on behalf of a gateway; `service` and `method` name them in the log. */
export function createDecide(
  sources: KeySources,
  { verify, authenticator, calls, answerMs }: GatewayParts,
  service: string,
  method: string,
): Decide {
  const ambiguous = denialsByPlace(sources, ambiguousIn);
  const malformed = denialsByPlace(sources, malformedIn);
  const count = calls.often(service, method);
  const timeoutOf = ({ timeoutMs }: Question) => boundedTimeout(timeoutMs ?? answerMs);

  const ask = (question: Question): Conclusion | Promise<Conclusion> => {
    const { presented, requiredScopes } = question;
    if (requiredScopes === undefined) throw invalid([{ field: "", description: "the request can't be read" }]);
    if (isAmbiguous(presented)) return "key_ambiguous";
    if (presented.key === "") return "key_missing";
    return verify({ key: presented.key, requiredScopes, strong: false, timeoutMs: timeoutOf(question) });
  };
  const concluded = ({ requestId, presented }: Question, startedMs: number, conclusion: Conclusion): Decision => {
    if (typeof conclusion === "string") {
      count(startedMs, requestId, conclusion, undefined);
      return conclusion === "key_missing" ? KEY_MISSING : ambiguous(presented.places);
    }
    const { outcome, entry, missingScopes } = conclusion;
    count(startedMs, requestId, outcome, entry?.id);
    if (outcome === "valid") return { allowed: true, entry: entry! };
    if (outcome === "malformed") return malformed(presented.places || presented.strayPlaces);
    return outcome === "insufficient_scope" ? missing(missingScopes) : DENIALS[outcome];
  };
  const refused = ({ requestId }: Question, startedMs: number, error: unknown): Decision =>
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
        (error) => refused(question, startedMs, error),
      );
    } catch (error) {
      return refused(question, startedMs, error);
    }
  };
}

type Refusal = "key_missing" | "key_ambiguous";
type Conclusion = Verification | Refusal;

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
const INVALID_TOKEN = `${CHALLENGE}, error="invalid_token"`;

const KEY_MISSING = unauthorized("KEY_MISSING", "No API key was sent.", CHALLENGE);
const DENIALS: Record<Exclude<Outcome, "valid" | "malformed" | "insufficient_scope">, Denial> = {
  not_found: unauthorized("NOT_FOUND", "The API key is not known.", INVALID_TOKEN),
  revoked: unauthorized("REVOKED", "The API key was revoked.", INVALID_TOKEN),
  expired: unauthorized("EXPIRED", "The API key has expired.", INVALID_TOKEN),
};

/** The request is larger than what is read of it. */
export const TOO_LARGE: Denial = denial(431, { reason: "HEADERS_TOO_LARGE", message: "The request is too large." });

const RETRY_SOON = { "retry-after": "1" };

export const TOO_MANY: Denial = denial(
  429,
  { reason: "OVERLOADED", message: "There are too many large requests at once. Ask again." },
  RETRY_SOON,
);

function unauthorized(reason: string, message: string, challenge: string): Denial {
  return denial(401, { reason, message }, { "www-authenticate": challenge });
}

const ambiguousIn = (places: string) =>
  unauthorized(
    "KEY_AMBIGUOUS",
    `More than one API key was sent, in ${places}. Send one.`,
    `${CHALLENGE}, error="invalid_request"`,
  );

const malformedIn = (places: string) =>
  unauthorized("MALFORMED", `What was sent in ${places} is not an API key of this service.`, INVALID_TOKEN);

const MAX_KNOWN_PLACES = 1_000;

/** Garbage must stay cheap: each denial is made once. */
function denialsByPlace(sources: KeySources, make: (places: string) => Denial): (places: number) => Denial {
  const made = new Map<number, Denial>();
  return (places) => {
    const denied = made.get(places) ?? make(placesIn(places, sources));
    if (made.size >= MAX_KNOWN_PLACES) made.clear();
    made.set(places, denied);
    return denied;
  };
}

function missing(missingScopes: readonly string[]): Denial {
  const message = "The API key lacks a scope that is needed here.";
  // Gateways take 4 KiB of headers, and the body may stand there too.
  const { shown, others } = listed(missingScopes);
  const challenge = `${CHALLENGE}, error="insufficient_scope", scope="${shown.join(" ")}"`;
  const body = {
    ...{ reason: "INSUFFICIENT_SCOPE", message, missingScopes: shown },
    ...(others > 0 && { missingScopesInAll: missingScopes.length }),
  };
  return denial(403, body, { "www-authenticate": challenge });
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
  const retryMs = (error instanceof KeyError && error.retryAfterMs) || 0;
  const retry = { "retry-after": String(Math.max(1, Math.ceil(retryMs / 1_000))) };
  if (reason === "OVERLOADED") return denial(429, { reason, message }, retry);
  // A defect is nothing that an operator asked to let pass, nor is a gateway that can't prove who it is.
  const outage = reason !== "INTERNAL_ERROR" && reason !== "KEY_SET_UNAVAILABLE";
  return { ...denial(503, { reason, message }, retry), outage };
}

function denial(status: Denial["status"], body: object, headers: Record<string, string> = {}): Denial {
  const always = { "content-type": "application/json", "cache-control": "no-store" };
  return { allowed: false, status, headers: { ...always, ...headers }, body: JSON.stringify(body), outage: false };
}

/** Headers about the key for the upstream; no value is empty. */
export function identityHeaders({ id, userId, name, scopes }: Entry): Record<string, string> {
  return {
    [IDENTITY_HEADERS.user]: visible(userId),
    [IDENTITY_HEADERS.keyId]: id,
    [IDENTITY_HEADERS.scopes]: scopes.join(" "),
    [IDENTITY_HEADERS.name]: name === undefined ? NO_NAME : name === NO_NAME ? "%2D" : visible(name),
  };
}

const NO_NAME = "-";

/** Visible ASCII as it is, all else, `%` and `,` percent-encoded as UTF-8. */
function visible(text: string): string {
  return text.toWellFormed().replace(/[^\x21-\x7e]|[%,]/gu, encodeURIComponent);
}

/** Scopes in a list that is separated by spaces or commas. */
export function scopesIn(list: string): string[] {
  return list.split(/[ ,]+/).filter(Boolean);
}
