import { create } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromDate } from "@bufbuild/protobuf/wkt";
import {
  type ApiKey,
  ApiKeySchema,
  State,
  type VerifyError,
  VerifyErrorSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import { ErrorReason } from "#gen/latchkey/v1/error_reason_pb";
import type { KeyError } from "../keys/errors.ts";
import { displayPrefix, statusAt } from "../keys/key.ts";
import type { HeldRecord } from "../keys/view.ts";

const STATES = { active: State.ACTIVE, retiring: State.RETIRING, revoked: State.REVOKED, expired: State.EXPIRED };

/** What callers are told of a record, with its state at `nowMs`. */
export function toApiKey(record: HeldRecord, nowMs: number): ApiKey {
  const { state, revokedAt, revocationReason } = statusAt(record, new Date(nowMs));
  return create(ApiKeySchema, {
    id: record.id,
    userId: record.userId,
    name: record.name ?? "",
    prefix: displayPrefix(record),
    scopes: record.scopes,
    state: STATES[state],
    createdAt: timestampFromDate(record.createdAt),
    ...(record.expiresAt && { expiresAt: timestampFromDate(record.expiresAt) }),
    ...(record.retiresAt && { retiresAt: timestampFromDate(record.retiresAt) }),
    ...(revokedAt && { revokedAt: timestampFromDate(revokedAt) }),
    ...(record.lastUsedAt && { lastUsedAt: timestampFromDate(record.lastUsedAt) }),
    revocationReason: revocationReason ?? "",
  });
}

/** What one item of many is told instead of an answer. */
export function toVerifyError({ reason, message, retryAfterMs }: KeyError): VerifyError {
  const retry = retryAfterMs === undefined ? {} : { retryAfter: durationFromMs(retryAfterMs) };
  return create(VerifyErrorSchema, { reason: ErrorReason[reason], message, ...retry });
}
