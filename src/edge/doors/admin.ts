import { type Timestamp, timestampFromDate, timestampMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { type AdminService, AuditResult } from "#gen/latchkey/v1/admin_service_pb";
import { type ApiKey, State } from "#gen/latchkey/v1/api_key_service_pb";
import { ErrorReason } from "#gen/latchkey/v1/error_reason_pb";
import type { KeyAdmin } from "../../keys/admin.ts";
import type { AuditResult as AuditResultName } from "../../keys/audit/entry.ts";
import { checked, invalid } from "../../keys/errors.ts";
import { checkMetadata, toMetadata } from "../../keys/metadata.ts";
import type { StoredAuditEntry } from "../../keys/ports.ts";
import type { Ended } from "../../keys/presented.ts";
import type { KeyRecord, KeyState } from "../../keys/record.ts";
import { causeNumber, causeOf, endingOf, STATE_NUMBERS, toApiKey } from "../answer.ts";
import { callerOf, deadlineOf, note } from "../call.ts";

/** undefined: State.UNSPECIFIED. */
const stateNamed = (state: State): KeyState | undefined =>
  (Object.keys(STATE_NUMBERS) as KeyState[]).find((name) => STATE_NUMBERS[name] === state);

const RESULTS: Record<AuditResultName, AuditResult> = {
  changed: AuditResult.CHANGED,
  answered: AuditResult.ANSWERED,
  denied: AuditResult.DENIED,
};

export function createAdminService(admin: KeyAdmin, clock: () => Date): ServiceImpl<typeof AdminService> {
  const describe = (record: KeyRecord): ApiKey => toApiKey(record, clock().getTime());
  const ended = (context: HandlerContext, { record, wasLive }: Ended) => {
    note(context, { userOfKeys: record.userId, keyId: record.id, changed: wasLive });
    return { apiKey: describe(record), revoked: wasLive };
  };

  return {
    async listKeys({ userId, state, prefix, name, metadata, revocationCause, pageSize, pageToken }, context) {
      if (State[state] === undefined) throw invalid([{ field: "state", description: `${state} is not a state` }]);
      // As a map: a name with a `=` in it would be read as another entry.
      checked((violations) => checkMetadata(metadata, violations));
      const filter = {
        ...{ userId, state: stateNamed(state), prefix: prefix || undefined, name: name || undefined },
        ...(revocationCause !== 0 && { revocationCause: causeOf(revocationCause, "revocation_cause") }),
        ...(Object.keys(metadata).length > 0 && { metadata: toMetadata(metadata) }),
      };
      const { items, nextToken } = await admin.list(filter, { size: pageSize, token: pageToken }, deadlineOf(context));
      return { apiKeys: items.map(describe), nextPageToken: nextToken ?? "" };
    },

    async getKey({ keyId }, context) {
      const record = await admin.get(keyId, deadlineOf(context));
      note(context, { userOfKeys: record.userId, keyId: record.id });
      return { apiKey: describe(record) };
    },

    async revokeKey({ keyId, reason, cause }, context) {
      return ended(context, await admin.revoke(callerOf(context), keyId, endingOf(reason, cause), deadlineOf(context)));
    },

    async revokeByPresentedKey({ key, reason, cause }, context) {
      return ended(
        context,
        await admin.revokePresented(callerOf(context), key, endingOf(reason, cause), deadlineOf(context)),
      );
    },

    async revokeUser({ userId, reason, cause }, context) {
      const records = await admin.revokeUser(callerOf(context), userId, endingOf(reason, cause), deadlineOf(context));
      note(context, { changed: records.length > 0 });
      return { apiKeys: records.map(describe) };
    },

    async listAudit({ actorId, userId, keyId, action, result, since, until, pageSize, pageToken }, context) {
      const [resultName] = Object.entries(RESULTS).find(([, value]) => value === result) ?? [];
      if (resultName === undefined && result !== AuditResult.UNSPECIFIED)
        throw invalid([{ field: "result", description: `${result} is not a result` }]);
      const filter = {
        ...{ actor: actorId, userId, keyId: keyId || undefined, action: action || undefined },
        ...{ result: resultName as AuditResultName | undefined, since: dateOf(since), until: dateOf(until) },
      };
      const page = { size: pageSize, token: pageToken };
      const { items, nextToken } = await admin.listAudit(filter, page, deadlineOf(context));
      return { entries: items.map(toMessage), nextPageToken: nextToken ?? "" };
    },
  };
}

function dateOf(time: Timestamp | undefined): Date | undefined {
  return time && new Date(timestampMs(time));
}

function toMessage(entry: StoredAuditEntry) {
  const {
    id,
    at,
    action,
    result,
    reason,
    actor,
    actorIsAdmin,
    userId,
    keyIds,
    origin,
    leftOut,
    statedReason,
    cause,
    changes,
  } = entry;
  return {
    ...{ id, time: timestampFromDate(at), action, result: RESULTS[result] },
    reason: reason === undefined ? ErrorReason.UNSPECIFIED : ErrorReason[reason],
    ...{ actorId: actor ?? "", actorIsAdmin: actorIsAdmin ?? false, userId: userId ?? "", keyIds },
    ...{ peerAddress: origin?.peer ?? "", userAgent: origin?.userAgent ?? "", requestId: origin?.requestId ?? "" },
    ...{
      leftOut: BigInt(leftOut ?? 0),
      statedReason: statedReason ?? "",
      changes: changes ?? [],
      cause: causeNumber(cause),
    },
  };
}
