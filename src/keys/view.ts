import { LRUCache } from "lru-cache";
import type { Fingerprint, KeyRecord } from "./key.ts";

/** A record without what proves its secret. */
export type HeldRecord = Omit<KeyRecord, "secretHash" | "fingerprint">;

/** A record in memory, and what was found out about it since it was read. */
export interface Entry {
  readonly record: HeldRecord;
  /** When time alone changes the record's state, in Unix milliseconds; Infinity: never. */
  readonly changesAtMs: number;
  /** What proves the secret; let go once the secret was proven, to save memory. */
  digests: { secretHash: string; fingerprint: Fingerprint | undefined } | undefined;
  /** The digest of the one right key, once it was presented. */
  provenDigest: string | undefined;
  /** When the key's use was last noted, in Unix milliseconds. */
  usedMs: number;
  /** The edge's encoding of the record, one character a byte, good until `encodedUntilMs`. */
  encoded: string | undefined;
  encodedUntilMs: number;
}

/**
 * A read or a write under way. What it brings is kept unless an event about the same key, or another read or write, overtook
 * it: otherwise a slow read could bring a revoked key back after the revocation was seen.
 */
export interface ViewWindow {
  /** The entry to answer from: the newest known. Undefined when an event overtook the record; read again. */
  keep(record: KeyRecord): Entry | undefined;
  /** Remembers that no record has this id. False when an event overtook the read; read again. */
  keepUnknown(id: string): boolean;
  close(): void;
}

/**
 * A bounded memory of records by id. It never goes back to an older `rev`, and holds nothing that an event, past or to
 * come, could not correct. It doesn't know how fresh it is; `freshness.ts` does.
 */
export interface View {
  get(id: string): Entry | undefined;
  /** Whether it is known that no record has this id. */
  isUnknown(id: string): boolean;
  open(): ViewWindow;
  /** An event: the record is now at `rev` (or later); Infinity: it is gone. */
  changed(id: string, rev: number): void;
  /** A write of this user's keys may or may not have been made. */
  dropUser(userId: string): void;
  /** Events are followed from a moment before now on, and those of before are lost: forget everything, and begin to keep. */
  restart(): void;
  readonly size: number;
}

export function createView({ maxKeys }: { maxKeys: number }): View {
  const entries = new LRUCache<string, Entry>({ max: maxKeys });
  const unknown = new LRUCache<string, true>({ max: maxKeys });
  const windows = new Set<{ overtaken: Map<string, number>; valid: boolean }>();
  let following = false;

  const overtake = (id: string, rev: number) => {
    for (const { overtaken } of windows) overtaken.set(id, Math.max(rev, overtaken.get(id) ?? 0));
  };
  const invalidateWindows = () => {
    for (const window of windows) window.valid = false;
  };

  return {
    get: (id) => entries.get(id),
    isUnknown: (id) => unknown.get(id) === true,

    open() {
      const window = { overtaken: new Map<string, number>(), valid: following };
      windows.add(window);
      return {
        keep(record) {
          // Older reads under way must not bring back what was before, not even where this one makes room for others.
          overtake(record.id, record.rev);
          unknown.delete(record.id);
          const held = entries.peek(record.id);
          if (held !== undefined && held.record.rev >= record.rev) return held;
          entries.delete(record.id);
          if ((window.overtaken.get(record.id) ?? 0) > record.rev) return undefined;
          const entry = toEntry(record);
          // The secret of an id never changes.
          entry.provenDigest = held?.provenDigest;
          if (window.valid) entries.set(record.id, entry);
          return entry;
        },
        keepUnknown(id) {
          if (window.overtaken.has(id)) return false;
          if (window.valid) {
            entries.delete(id);
            unknown.set(id, true);
          }
          return true;
        },
        close: () => windows.delete(window),
      };
    },

    changed(id, rev) {
      overtake(id, rev);
      const held = entries.peek(id);
      if (held !== undefined && held.record.rev < rev) entries.delete(id);
      unknown.delete(id);
    },
    dropUser(userId) {
      invalidateWindows();
      for (const [id, { record }] of entries.entries()) if (record.userId === userId) entries.delete(id);
    },
    restart() {
      invalidateWindows();
      entries.clear();
      unknown.clear();
      following = true;
    },
    get size() {
      return entries.size;
    },
  };
}

function toEntry({ secretHash, fingerprint, ...record }: KeyRecord): Entry {
  return {
    record,
    changesAtMs: changesAtMs(record),
    digests: { secretHash, fingerprint },
    provenDigest: undefined,
    usedMs: record.lastUsedAt?.getTime() ?? 0,
    encoded: undefined,
    encodedUntilMs: 0,
  };
}

function changesAtMs({ state, expiresAt, retiresAt }: HeldRecord): number {
  if (state !== "active" && state !== "retiring") return Number.POSITIVE_INFINITY;
  return Math.min(expiresAt?.getTime() ?? Number.POSITIVE_INFINITY, retiresAt?.getTime() ?? Number.POSITIVE_INFINITY);
}
