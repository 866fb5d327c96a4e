import { LRUCache } from "lru-cache";
import {
  type Fingerprint,
  type HeldRecord,
  type KeyRecord,
  type KeyState,
  type Lifecycle,
  stateWithoutTime,
  statusAt,
} from "../record.ts";

/** A record in memory, and what was found out about it since it was read. One object: two take more memory, and longer to reach. */
export interface Entry extends Readonly<HeldRecord> {
  /** When time alone changes the record's state, in Unix milliseconds; undefined: never. */
  readonly changesAtMs: number | undefined;
  /** The proof of the secret; let go once the secret was proven, to save memory. */
  digests: { secretHash: string; fingerprint: Fingerprint | undefined } | undefined;
  /** The digest of the one right key, once it was presented. */
  provenDigest: string | undefined;
  /** When the key's use was last noted, in Unix seconds: a number of milliseconds would take an object of its own. */
  usedS: number;
  /** The edge's encodings of the record in `encodedState`, one character a byte and as JSON. */
  encoded: string | undefined;
  encodedJson: string | undefined;
  encodedState: KeyState | undefined;
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
  const share = createShare();
  let following = false;
  let uses = 0;

  const overtake = (id: string, rev: number) => {
    for (const { overtaken } of windows) overtaken.set(id, Math.max(rev, overtaken.get(id) ?? 0));
  };
  const invalidateWindows = () => {
    for (const window of windows) window.valid = false;
  };

  return {
    get(id) {
      // To move an entry to the front takes as long as all else that is done for a call whose key is not in the processor's
      // cache. One in eight is enough to keep what is used, more surely the more it is used.
      uses = (uses + 1) % 8;
      return uses === 0 ? entries.get(id) : entries.peek(id);
    },
    isUnknown: (id) => (uses === 0 ? unknown.get(id) : unknown.peek(id)) === true,

    open() {
      const window = { overtaken: new Map<string, number>(), valid: following };
      windows.add(window);
      return {
        keep(record) {
          // Older reads under way must not bring back what was before, not even where this one makes room for others.
          overtake(record.id, record.rev);
          unknown.delete(record.id);
          const held = entries.peek(record.id);
          if (held !== undefined && held.rev >= record.rev) return held;
          entries.delete(record.id);
          if ((window.overtaken.get(record.id) ?? 0) > record.rev) return undefined;
          const entry = toEntry(record, share);
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
      if (held !== undefined && held.rev < rev) entries.delete(id);
      unknown.delete(id);
    },
    dropUser(userId) {
      invalidateWindows();
      for (const [id, held] of entries.entries()) if (held.userId === userId) entries.delete(id);
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

/** Spelled out, so that all entries have one shape, and share what most of them have in common. */
function toEntry(record: KeyRecord, share: Share): Entry {
  const { id, userId, name, revocationReason, rev, secretHash, fingerprint } = record;
  const state = SHARED_STATES[stateWithoutTime(record)];
  const expiresAt = record.expiresAt?.getTime();
  const retiresAt = record.retiresAt?.getTime();
  const lastUsedAt = record.lastUsedAt?.getTime();
  return {
    id,
    userId,
    name,
    prefix: share.text(record.prefix),
    scopes: share.list(record.scopes),
    state,
    createdAt: record.createdAt.getTime(),
    expiresAt,
    retiresAt,
    revokedAt: record.revokedAt?.getTime(),
    lastUsedAt,
    revocationReason,
    revocationCause: record.revocationCause,
    metadata: record.metadata?.join("\n"),
    suspended: record.suspended,
    rev,
    changesAtMs: changesAtMs({ state, expiresAt, retiresAt }),
    digests: { secretHash, fingerprint },
    provenDigest: undefined,
    usedS: Math.floor((lastUsedAt ?? 0) / 1_000),
    encoded: undefined,
    encodedJson: undefined,
    encodedState: undefined,
  };
}

/** One copy of each word: what was decoded has its own. */
const SHARED_STATES: Record<KeyState, KeyState> = {
  active: "active",
  retiring: "retiring",
  revoked: "revoked",
  expired: "expired",
  suspended: "suspended",
};

/** The state at `nowMs`. */
export function stateAt(entry: Entry, nowMs: number): KeyState {
  const { changesAtMs } = entry;
  return changesAtMs === undefined || nowMs < changesAtMs ? entry.state : statusAt<number>(entry, nowMs).state;
}

function changesAtMs({ state, expiresAt, retiresAt }: Lifecycle<number>): number | undefined {
  if (state === "revoked" || state === "expired") return undefined;
  return expiresAt === undefined || retiresAt === undefined ? (expiresAt ?? retiresAt) : Math.min(expiresAt, retiresAt);
}

/** One copy of what was decoded many times. */
interface Share {
  text(value: string): string;
  list(values: readonly string[]): readonly string[];
}

const MAX_SHARED = 10_000;

function createShare(): Share {
  const texts = new LRUCache<string, string>({ max: MAX_SHARED });
  const lists = new LRUCache<string, readonly string[]>({ max: MAX_SHARED });
  const once = <T extends object | string>(cache: LRUCache<string, T>, key: string, value: T): T => {
    const known = cache.get(key);
    if (known === undefined) cache.set(key, value);
    return known ?? value;
  };
  return {
    text: (value) => once(texts, value, value),
    // A scope has no space in it.
    list: (values) => once(lists, values.join(" "), values),
  };
}
