import { create } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type ApiKey,
  ApiKeySchema,
  KeyWithheld,
  Outcome,
  State,
  type VerifyError,
  VerifyErrorSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import { ErrorReason } from "#gen/latchkey/v1/error_reason_pb";
import type { KeyError } from "../keys/errors.ts";
import type { Withheld } from "../keys/manage.ts";
import { displayPrefix, type KeyRecord, statusAt } from "../keys/record.ts";
import type { Outcome as OutcomeName } from "../keys/verify/verify.ts";
import type { HeldRecord } from "../keys/verify/view.ts";

const STATES = { active: State.ACTIVE, retiring: State.RETIRING, revoked: State.REVOKED, expired: State.EXPIRED };

export const OUTCOMES: Record<OutcomeName, Outcome> = {
  valid: Outcome.VALID,
  malformed: Outcome.MALFORMED,
  not_found: Outcome.NOT_FOUND,
  revoked: Outcome.REVOKED,
  expired: Outcome.EXPIRED,
  insufficient_scope: Outcome.INSUFFICIENT_SCOPE,
};

export const WITHHELD: Record<Withheld, KeyWithheld> = {
  ended: KeyWithheld.ENDED,
  request_key_gone: KeyWithheld.REQUEST_KEY_GONE,
};

/** A record as callers see it, with its state at `nowMs`. */
export function toApiKey(record: KeyRecord | HeldRecord, nowMs: number): ApiKey {
  const { state, revokedAt, revocationReason } = statusAt<Date | number>(record, nowMs);
  const optional = (field: string, time: Date | number | undefined) =>
    time !== undefined && { [field]: timestampFromMs(Number(time)) };
  return create(ApiKeySchema, {
    id: record.id,
    userId: record.userId,
    name: record.name ?? "",
    prefix: displayPrefix(record),
    scopes: [...record.scopes],
    state: STATES[state],
    createdAt: timestampFromMs(Number(record.createdAt)),
    ...optional("expiresAt", record.expiresAt),
    ...optional("retiresAt", record.retiresAt),
    ...optional("revokedAt", revokedAt),
    ...optional("lastUsedAt", record.lastUsedAt),
    revocationReason: revocationReason ?? "",
  });
}

/** The error of one item of many, in place of its answer. */
export function toVerifyError({ reason, message, retryAfterMs }: KeyError): VerifyError {
  const retry = retryAfterMs === undefined ? {} : { retryAfter: durationFromMs(retryAfterMs) };
  return create(VerifyErrorSchema, { reason: ErrorReason[reason], message, ...retry });
}
