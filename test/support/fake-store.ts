import type { AuditEntry } from "../../src/keys/audit/entry.ts";
import type { Change, Decide, KeyStore } from "../../src/keys/ports.ts";
import type { KeyRecord } from "../../src/keys/record.ts";

/** What the fake holds, and what stands in its way. */
export interface FakeStoreParts {
  records: Map<string, KeyRecord>;
  trail: AuditEntry[];
  /** Told of each call by its method, before it does anything. */
  asked: (name: string) => Promise<void>;
  /** Milliseconds; the second decision of a change comes `laterMs` after the first. */
  nowMs: () => number;
  laterMs: number;
}

/**
 * The part of the store that managing keys needs, in memory; it passes the suite of the real one (`key-store-suite.ts`). `decide` is
 * asked twice each time, and records are frozen: they are their reader's to copy.
 */
export function createFakeStore({ records, trail, asked, nowMs, laterMs }: FakeStoreParts): KeyStore {
  const of = (userId: string, fits: (record: KeyRecord) => boolean) =>
    [...records.values()].find((record) => record.userId === userId && fits(record));
  const current = (userId: string) => ({
    active: of(userId, ({ state }) => state === "active"),
    retiring: of(userId, ({ state }) => state === "retiring"),
  });
  const held = (userId: string) =>
    [...records.values()].filter(
      (record) => record.userId === userId && record.suspended?.byAdmin && /revoked|expired/.test(record.state),
    );
  const put = (record: KeyRecord) => {
    records.set(record.id, Object.freeze(record));
    const rivals = [...records.values()].filter(({ id, userId }) => userId === record.userId && id !== record.id);
    for (const { state, request } of rivals) {
      if (/active|retiring/.test(state) && state === record.state) throw new Error(`two ${state} keys`);
      if (request && request.id === record.request?.id) throw new Error("two keys of one request id");
    }
  };
  return {
    assertComplete() {},
    findCurrent: async (userId) => {
      await asked("findCurrent");
      return current(userId);
    },
    findRequested: async (userId, digest) => {
      await asked("findRequested");
      const record = of(userId, ({ request }) => request?.id === digest);
      return record && { record, previous: records.get(record.request?.previousId ?? "") };
    },
    change: async <T>(userId: string, _deadlineMs: number, decide: Decide<T>, digest?: string) => {
      await asked("change");
      const requested = digest === undefined ? undefined : of(userId, ({ request }) => request?.id === digest);
      const stored = Object.freeze({ ...current(userId), requested, held: held(userId) });
      decide(stored, new Date(nowMs()));
      const { update, insert, answer, audit }: Change<T> = decide(stored, new Date(nowMs() + laterMs));
      const before = [...records];
      try {
        for (const record of update) {
          if (record.rev !== records.get(record.id)!.rev) throw new Error("another change came between");
          put({ ...record, rev: record.rev + 1 });
        }
        if (insert) put({ ...insert });
      } catch (error) {
        records.clear();
        for (const [id, record] of before) records.set(id, record);
        throw error;
      }
      if (audit) trail.push(audit);
      return answer;
    },
  } as Partial<KeyStore> as KeyStore;
}
