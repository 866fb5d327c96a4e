import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type ApiKey,
  ApiKeySchema,
  RevocationCause as Cause,
  KeyWithheld,
  Outcome as OutcomeNumber,
  State,
  type VerifyError,
  VerifyErrorSchema,
  type VerifyResponse,
  VerifyResponseSchema,
  type VerifyResultSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import { ErrorReason } from "#gen/latchkey/v1/error_reason_pb";
import { invalid, KeyError } from "../keys/errors.ts";
import type { Withheld } from "../keys/manage.ts";
import { fromMetadata } from "../keys/metadata.ts";
import {
  CAUSES,
  displayPrefix,
  type Ending,
  type HeldRecord,
  type KeyRecord,
  type KeyState,
  type RevocationCause,
  statusAt,
} from "../keys/record.ts";
import type { Outcome, Verification } from "../keys/verify/verify.ts";
import type { Entry } from "../keys/verify/view.ts";

// All that a caller is answered about a key, whatever the door: outcomes, headers, messages.

/** Statuses of a gateway's refusals, and what each is in gRPC. */
export const DENIAL_CODES = { 401: 16, 403: 7, 429: 8, 431: 3, 503: 14 } as const;
export type DenialStatus = keyof typeof DENIAL_CODES;

/** How a gateway refuses; its reason is the name of the outcome in capitals. `{places}` in the message: where the key stood. */
export interface Refusal {
  readonly status: DenialStatus;
  readonly message: string;
  /** `error` of the challenge (RFC 6750, 3.1); undefined: nothing was sent that could be wrong, or none of its words fits. */
  readonly error?: "invalid_request" | "invalid_token" | "insufficient_scope";
}

/** Outcomes of Verify, by their numbers in `VerifyResponse`, and how a gateway refuses each. */
export const OUTCOMES: Readonly<
  Record<Outcome, { readonly number: OutcomeNumber; readonly refusal: Refusal | undefined }>
> = {
  valid: { number: OutcomeNumber.VALID, refusal: undefined },
  malformed: {
    number: OutcomeNumber.MALFORMED,
    refusal: {
      ...{ status: 401, error: "invalid_token" },
      message: "What was sent in {places} is not an API key of this service.",
    },
  },
  not_found: {
    number: OutcomeNumber.NOT_FOUND,
    refusal: { status: 401, error: "invalid_token", message: "The API key is not known." },
  },
  revoked: {
    number: OutcomeNumber.REVOKED,
    refusal: { status: 401, error: "invalid_token", message: "The API key was revoked." },
  },
  expired: {
    number: OutcomeNumber.EXPIRED,
    refusal: { status: 401, error: "invalid_token", message: "The API key has expired." },
  },
  suspended: {
    number: OutcomeNumber.SUSPENDED,
    refusal: { status: 403, message: "The API key is suspended." },
  },
  insufficient_scope: {
    number: OutcomeNumber.INSUFFICIENT_SCOPE,
    refusal: { status: 403, error: "insufficient_scope", message: "The API key lacks a scope that is needed here." },
  },
};

/** Refusals of requests to a gateway that hold no key, or more than one. */
export const UNASKED: Readonly<Record<"key_missing" | "key_ambiguous", Refusal>> = {
  key_missing: { status: 401, message: "No API key was sent." },
  key_ambiguous: {
    ...{ status: 401, error: "invalid_request" },
    message: "More than one API key was sent, in {places}. Send one.",
  },
};

/** A field about the key for the upstream of a gateway. */
interface IdentityField {
  /** Its header, always set; undefined: it stands in the metadata alone. */
  readonly header?: string;
  /** Its field in Check's `dynamic_metadata`; undefined: it stands in a header alone. */
  readonly metadata?: string;
  /** undefined: the key has none. */
  value(entry: Entry): string | readonly string[] | Readonly<Record<string, string>> | undefined;
}

const IDENTITY: readonly IdentityField[] = [
  { header: "x-latchkey-user", metadata: "user", value: ({ userId }) => userId },
  { header: "x-latchkey-key-id", metadata: "key_id", value: ({ id }) => id },
  { metadata: "key_prefix", value: (entry) => (entry.id === "" ? undefined : displayPrefix(entry)) },
  { header: "x-latchkey-scopes", metadata: "scopes", value: ({ scopes }) => scopes },
  { header: "x-latchkey-name", metadata: "name", value: ({ name }) => name },
  { metadata: "metadata", value: (entry) => (entry.metadata === undefined ? undefined : metadataOf(entry)) },
];

/** Nobody in particular, who may do what `scopes` say: every other field is `-` in headers, and absent in the metadata. */
export function createAnonymous(scopes: readonly string[]): Entry {
  return {
    ...{ id: "", userId: "", prefix: "", name: undefined, scopes, state: "active", createdAt: 0, rev: 0 },
    ...{ expiresAt: undefined, retiresAt: undefined, revokedAt: undefined, lastUsedAt: undefined },
    ...{ revocationReason: undefined, revocationCause: undefined, suspended: undefined, metadata: undefined },
    ...{ changesAtMs: undefined, digests: undefined, provenDigest: undefined, usedS: 0 },
    ...{ encoded: undefined, encodedJson: undefined, encodedState: undefined },
  };
}

/** All that the upstream of a gateway hears about a key. */
export interface Identity {
  readonly fields: readonly IdentityField[];
  /** Names of its headers, in lower case. */
  readonly headers: readonly string[];
  /** The same with `_` for `-`, as frameworks fold them. */
  readonly aliases: readonly string[];
}

/** `metadataNames`: entries of metadata that have a header of their own. */
export function createIdentity(metadataNames: readonly string[]): Identity {
  const chosen = metadataNames.map((name): IdentityField => {
    return { header: `x-latchkey-meta-${name}`, value: (entry) => metadataOf(entry)[name] };
  });
  const fields = [...IDENTITY, ...chosen];
  const headers = fields.flatMap(({ header }) => header ?? []);
  return { fields, headers, aliases: headers.map((name) => name.replaceAll("-", "_")) };
}

/** Headers about the key for the upstream; no value is empty. */
export function identityHeaders({ fields }: Identity, entry: Entry): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const { header, value } of fields) if (header !== undefined) headers[header] = headerValue(value(entry));
  return headers;
}

/** Of a field that the key lacks. */
const NONE = "-";

function headerValue(value: ReturnType<IdentityField["value"]>): string {
  if (value === undefined || value === "") return NONE;
  if (typeof value !== "string") return Array.isArray(value) ? value.join(" ") : NONE;
  return value === NONE ? "%2D" : visible(value);
}

/** Visible ASCII as it is, all else, `%` and `,` percent-encoded as UTF-8. */
function visible(text: string): string {
  return text.toWellFormed().replace(/[^\x21-\x7e]|[%,]/gu, encodeURIComponent);
}

/** Numbers of states in `ApiKey`. */
export const STATE_NUMBERS: Readonly<Record<KeyState, State>> = {
  active: State.ACTIVE,
  retiring: State.RETIRING,
  revoked: State.REVOKED,
  expired: State.EXPIRED,
  suspended: State.SUSPENDED,
};

const CAUSE_NUMBERS: Readonly<Record<RevocationCause, Cause>> = {
  leaked: Cause.LEAKED,
  superseded: Cause.SUPERSEDED,
  owner_left: Cause.OWNER_LEFT,
  no_longer_used: Cause.NO_LONGER_USED,
  policy: Cause.POLICY,
  administrative: Cause.ADMINISTRATIVE,
};

export function causeNumber(cause: RevocationCause | undefined): Cause {
  return cause === undefined ? Cause.UNSPECIFIED : CAUSE_NUMBERS[cause];
}

/** INVALID_ARGUMENT, by the name of the field, for a number that is none. */
export function causeOf(number: Cause, field: string): RevocationCause | undefined {
  const found = CAUSES.find((cause) => CAUSE_NUMBERS[cause] === number);
  if (found === undefined && number !== Cause.UNSPECIFIED)
    throw invalid([{ field, description: `${number} is not a cause of a revocation` }]);
  return found;
}

export function endingOf(reason: string, cause: Cause): Ending {
  return { reason, cause: causeOf(cause, "cause") };
}

const WITHHELD: Readonly<Record<Withheld, KeyWithheld>> = {
  ended: KeyWithheld.ENDED,
  request_key_gone: KeyWithheld.REQUEST_KEY_GONE,
};

/** The fields of a key that was just made, or of the repeat of the call that made it. */
export function toMadeKey(made: { key?: string | undefined; withheld?: Withheld | undefined; isRepeat?: boolean }) {
  const { key = "", withheld, isRepeat = false } = made;
  return { key, isRepeat, ...(withheld && { keyWithheld: WITHHELD[withheld] }) };
}

/** A record as callers see it, with its state at `nowMs`. */
export function toApiKey(record: KeyRecord | HeldRecord, nowMs: number): ApiKey {
  const { state, revokedAt, revocationReason, revocationCause } = statusAt<Date | number>(record, nowMs);
  const optional = (field: string, time: Date | number | undefined) =>
    time !== undefined && { [field]: timestampFromMs(Number(time)) };
  return create(ApiKeySchema, {
    id: record.id,
    userId: record.userId,
    name: record.name ?? "",
    prefix: displayPrefix(record),
    scopes: [...record.scopes],
    state: STATE_NUMBERS[state],
    createdAt: timestampFromMs(Number(record.createdAt)),
    ...optional("expiresAt", record.expiresAt),
    ...optional("retiresAt", record.retiresAt),
    ...optional("revokedAt", revokedAt),
    ...optional("lastUsedAt", record.lastUsedAt),
    revocationReason: revocationReason ?? "",
    revocationCause: causeNumber(revocationCause),
    metadata: metadataOf(record),
    ...optional("suspendedAt", record.suspended?.at),
    suspensionReason: record.suspended?.reason ?? "",
    suspendedByAdmin: record.suspended?.byAdmin ?? false,
  });
}

function metadataOf({ metadata = [] }: Pick<KeyRecord | HeldRecord, "metadata">): Record<string, string> {
  return fromMetadata(typeof metadata === "string" ? metadata.split("\n") : metadata);
}

export function toVerifyResponse(verification: Verification): VerifyResponse {
  const { outcome, entry, nowMs } = verification;
  return create(VerifyResponseSchema, {
    outcome: OUTCOMES[outcome].number,
    ...(entry && { apiKey: toApiKey(entry, nowMs) }),
    ...restOfResponse(verification),
  });
}

/** Whether nothing is in the answer but the outcome, the key and the time: then one like it may be made once, and kept. */
export function isUsual({ missingScopes }: Verification): boolean {
  return missingScopes.length === 0;
}

/** The fields of a VerifyResponse but for the outcome and the key. */
export function restOfResponse({ missingScopes, asOfMs }: Verification) {
  return { missingScopes: [...missingScopes], asOf: timestampFromMs(asOfMs) };
}

/** One item of many. */
export function toVerifyResult(verdict: Verification | KeyError): MessageInitShape<typeof VerifyResultSchema> {
  return verdict instanceof KeyError
    ? { result: { case: "error", value: toVerifyError(verdict) } }
    : { result: { case: "response", value: toVerifyResponse(verdict) } };
}

/** The error of one item of many, in place of its answer. */
export function toVerifyError({ reason, message, retryAfterMs }: KeyError): VerifyError {
  return create(VerifyErrorSchema, { reason: ErrorReason[reason], message, ...toRetryAfter(retryAfterMs) });
}

function toRetryAfter(retryAfterMs: number | undefined) {
  return retryAfterMs === undefined ? {} : { retryAfter: durationFromMs(retryAfterMs) };
}
