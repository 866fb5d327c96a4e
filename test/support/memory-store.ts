import type { AuditEntry } from "../../src/keys/audit.ts";
import type { KeyRecord } from "../../src/keys/key.ts";
import type { Change, CurrentKeys, Decide, KeyStore } from "../../src/keys/key-store.ts";
import type { SecretKeeper } from "../../src/keys/secret.ts";

export interface MemoryStore extends KeyStore {
  records: Map<string, KeyRecord>;
  /** The changes that were written, oldest first. */
  changes: Change<unknown>[];
  /** Called between the reads of a call and its change, as other writers may be. */
  before: () => void;
  put(...records: KeyRecord[]): void;
  lastAudit(): AuditEntry | undefined;
}

/** Keys in memory, for tests of what is decided about them: one change after the other, without conflicts. */
export function memoryStore(clock: () => Date): MemoryStore {
  const records = new Map<string, KeyRecord>();
  const changes: Change<unknown>[] = [];
  const all = () => [...records.values()];
  const currentOf = (userId: string): CurrentKeys => {
    const inState = (state: string) => all().find((record) => record.userId === userId && record.state === state);
    return { active: inState("active"), retiring: inState("retiring") };
  };
  const requestedBy = (userId: string, digest: string | undefined) =>
    all().find(({ userId: owner, request }) => owner === userId && request !== undefined && request.id === digest);
  const store: MemoryStore = {
    records,
    changes,
    before: () => {},
    put: (...put) => {
      for (const record of put) records.set(record.id, record);
    },
    lastAudit: () => changes.at(-1)?.audit,
    findCurrent: async (userId) => currentOf(userId),
    async findRequested(userId, digest) {
      const record = requestedBy(userId, digest);
      const previousId = record?.request?.previousId;
      return record && { record, previous: previousId === undefined ? undefined : records.get(previousId) };
    },
    async change<T>(userId: string, _deadlineMs: number, decide: Decide<T>, digest?: string) {
      store.before();
      const change = decide({ ...currentOf(userId), requested: requestedBy(userId, digest) }, clock());
      const { update, insert, audit } = change;
      if (update.length > 0 || insert !== undefined || audit !== undefined) changes.push(change);
      for (const record of update) records.set(record.id, { ...record, rev: record.rev + 1 });
      if (insert !== undefined) records.set(insert.id, insert);
      return change.answer;
    },
    findById: async (id) => records.get(id),
    list: async () => [],
    setFingerprint: async () => {},
    noteUses: async () => {},
  };
  return store;
}

/** A SecretKeeper whose hash can be read, so that no argon2 is waited for. */
export function plainSecrets(): SecretKeeper & { digested: string[] } {
  const digested: string[] = [];
  return {
    digested,
    async digest(id, secret) {
      digested.push(id);
      return { secretHash: `plain ${secret}`, fingerprint: { pepper: "p", mac: new Uint8Array(32) } };
    },
    prove: (_id, secret, digests) => ({ proven: digests?.secretHash === `plain ${secret}` }),
  };
}
