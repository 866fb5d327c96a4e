import { type Caller, changedBy, endLive, liveOf } from "./caller.ts";
import { checked, KeyError } from "./errors.ts";
import { checkMetadata, checkMetadataSize, fromMetadata } from "./metadata.ts";
import { checkPageSize, type Page, pageOf, readPageToken } from "./pages.ts";
import { checkEnding, checkSoughtUserId, checkUserId, hasControlCharacter } from "./policy.ts";
import type { AuditFilter, AuditStore, KeyFilter, KeyStore, StoredAuditEntry } from "./ports.ts";
import type { Ended } from "./presented.ts";
import { type Ending, type KeyRecord, revoked } from "./record.ts";
import type { SecretKeeper } from "./secret.ts";
import { isKeyId, parseKey } from "./text.ts";

interface PageAsked {
  size: number;
  token: string;
}

/** Methods for admins. Who is one, is for the caller of these to say. `deadlineMs` is on the clock of `performance.now()`. */
export interface KeyAdmin {
  list(filter: KeyFilter, page: PageAsked, deadlineMs: number): Promise<Page<KeyRecord>>;
  get(id: string, deadlineMs: number): Promise<KeyRecord>;
  revoke(caller: Caller, id: string, ending: Ending, deadlineMs: number): Promise<Ended>;
  revokePresented(caller: Caller, key: string, ending: Ending, deadlineMs: number): Promise<Ended>;
  /** The keys that were ended: two at most, unless a unique index was lost for a time. */
  revokeUser(caller: Caller, userId: string, ending: Ending, deadlineMs: number): Promise<KeyRecord[]>;
  listAudit(filter: AuditFilter, page: PageAsked, deadlineMs: number): Promise<Page<StoredAuditEntry>>;
}

interface KeyAdminParts {
  store: KeyStore;
  audit: AuditStore;
  secrets: SecretKeeper;
  /** Prefixes of the service's keys. */
  prefixes: readonly string[];
  clock: () => Date;
}

const MAX_FILTER = 128;

export function createKeyAdmin({ store, audit, secrets, prefixes, clock }: KeyAdminParts): KeyAdmin {
  async function find(id: string, deadlineMs: number): Promise<KeyRecord> {
    // Whoever takes a whole key for its id must not have its secret asked of the database, which may log what is slow.
    const found = isKeyId(id) ? await store.findById(id, deadlineMs) : undefined;
    if (found === undefined) throw notFound("There is no key with this id.");
    return found;
  }

  async function end(
    caller: Caller,
    action: string,
    { id, userId }: KeyRecord,
    ending: Ending,
    deadlineMs: number,
  ): Promise<Ended> {
    const ended = await endLive(store, caller, action, { id, userId }, ending, deadlineMs);
    return ended === undefined
      ? { record: await find(id, deadlineMs), wasLive: false }
      : { record: ended, wasLive: true };
  }

  return {
    async list(filter, { size, token }, deadlineMs) {
      const { limit, after } = checked((violations) => {
        if (filter.userId !== undefined) checkSoughtUserId(filter.userId, violations);
        for (const field of ["prefix", "name"] as const) {
          const { length } = filter[field] ?? "";
          if (length > MAX_FILTER)
            violations.push({ field, description: `must have at most ${MAX_FILTER} characters` });
        }
        // No name holds any, and MongoDB refuses to look for some.
        if (hasControlCharacter(filter.name ?? ""))
          violations.push({ field: "name", description: "must not contain control characters" });
        checkMetadata(fromMetadata(filter.metadata ?? []), violations);
        checkMetadataSize(filter.metadata ?? [], violations);
        return { limit: checkPageSize(size, violations), after: readPageToken(token, { keys: filter }, violations) };
      });
      const found = await store.list(filter, after, limit + 1, clock(), deadlineMs);
      return pageOf(found, limit, { keys: filter }, bytesOf);
    },

    get: find,

    async revoke(caller, id, ending, deadlineMs) {
      checked((violations) => checkEnding(ending, violations));
      return end(caller, "RevokeKey", await find(id, deadlineMs), ending, deadlineMs);
    },

    async revokePresented(caller, key, ending, deadlineMs) {
      checked((violations) => checkEnding(ending, violations));
      const parsed = parseKey(key, prefixes);
      if (parsed === undefined) throw notFound("This is not a key of this service: its form or checksum is wrong.");
      const record = await store.findById(parsed.id, deadlineMs);
      const isOurs =
        record?.prefix === parsed.prefix && (await secrets.prove(parsed.id, parsed.secret, record, deadlineMs)).proven;
      if (!isOurs) throw notFound("No such key was made here.");
      return end(caller, "RevokeByPresentedKey", record, ending, deadlineMs);
    },

    async revokeUser(caller, userId, ending, deadlineMs) {
      checked((violations) => {
        checkUserId(userId, violations);
        checkEnding(ending, violations);
      });
      return store.change(userId, deadlineMs, (current, at) => {
        const update = liveOf(current, at).map((record) => revoked(record, ending, at));
        if (update.length === 0) return { update, answer: update };
        return changedBy(caller, "RevokeUser", userId, at, { update, answer: update }, ending);
      });
    },

    async listAudit(filter, { size, token }, deadlineMs) {
      const { limit, before } = checked((violations) => {
        if (filter.userId !== undefined) checkSoughtUserId(filter.userId, violations);
        if (filter.keyId !== undefined && !isKeyId(filter.keyId))
          violations.push({ field: "key_id", description: "is not the id of a key" });
        for (const field of ["since", "until"] as const) {
          if (Number.isNaN(filter[field]?.getTime())) violations.push({ field, description: "is not a valid time" });
        }
        return { limit: checkPageSize(size, violations), before: readPageToken(token, { audit: filter }, violations) };
      });
      return pageOf(await audit.list(filter, before, limit + 1, deadlineMs), limit, { audit: filter }, textBytes);
    },
  };
}

/** Times, numbers, tags and lengths of a key in an answer take less. */
const FIXED_BYTES = 384;

/** Of a key in an answer, and no less: all its texts, but for those that prove its secret. */
function bytesOf({ secretHash: _hash, fingerprint: _mac, request: _request, ...shown }: KeyRecord): number {
  return FIXED_BYTES + textBytes(shown);
}

function textBytes(value: unknown): number {
  if (typeof value === "string") return Buffer.byteLength(value) + 3;
  if (typeof value !== "object" || value === null) return 0;
  return Object.values(value).reduce((bytes: number, one) => bytes + textBytes(one), 0);
}

function notFound(message: string): KeyError {
  return new KeyError("KEY_NOT_FOUND", message);
}
