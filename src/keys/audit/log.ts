import type { AuditEntry } from "./entry.ts";

interface AuditLogOptions {
  write(entries: readonly AuditEntry[]): Promise<void>;
  onFailed(error: unknown): void;
  clock: () => Date;
  /** A monotonic clock. */
  nowMs?: () => number;
}

/**
 * Writes down what is no change of a record: denials and reads. What anybody can cause without end is bounded: beyond a rate
 * it is only counted, and the counts are written once a minute.
 */
export interface AuditLog {
  note(entry: AuditEntry): void;
  /** Entries that were counted instead of written, since the start. */
  readonly leftOut: number;
  /** Writes what is held. */
  flush(): Promise<void>;
  /** Flushes a last time, counts included. */
  stop(): Promise<void>;
}

/** Entries written at once, and then a second: for strangers and members each, and for admins. */
export const BURST = 100;
const PER_SECOND = { strangers: 1, members: 1, admins: 10 };
/** Entries that wait to be written. */
const MAX_HELD = 1_000;
const FLUSH_EVERY_MS = 1_000;
const COUNTS_EVERY_MS = 60_000;

export function createAuditLog({ write, onFailed, clock, nowMs = () => performance.now() }: AuditLogOptions): AuditLog {
  const buckets = {
    strangers: { left: BURST, atMs: nowMs() },
    members: { left: BURST, atMs: nowMs() },
    admins: { left: BURST, atMs: nowMs() },
  };
  /** By action, result and reason: as many as the service has methods and refusals. */
  const counts = new Map<string, Pick<AuditEntry, "action" | "result" | "reason"> & { leftOut: number }>();
  let held: AuditEntry[] = [];
  let writing: Promise<void> | undefined;
  let countsAtMs = nowMs();
  let leftOut = 0;

  const isWithinRate = ({ actor, actorIsAdmin = false }: AuditEntry): boolean => {
    const kind = actor === undefined ? "strangers" : actorIsAdmin ? "admins" : "members";
    const bucket = buckets[kind];
    const now = nowMs();
    bucket.left = Math.min(BURST, bucket.left + ((now - bucket.atMs) / 1_000) * PER_SECOND[kind]);
    bucket.atMs = now;
    if (bucket.left < 1) return false;
    bucket.left -= 1;
    return true;
  };
  const leaveOut = ({ action, result, reason, leftOut: many }: AuditEntry) => {
    // A count of those before is no other one.
    if (many === undefined) leftOut += 1;
    const name = `${action} ${result} ${reason}`;
    const count = counts.get(name) ?? { action, result, reason, leftOut: 0 };
    count.leftOut += many ?? 1;
    counts.set(name, count);
  };
  const takeCounts = () => {
    countsAtMs = nowMs();
    const at = clock();
    for (const count of counts.values()) held.push({ ...count, at, keyIds: [] });
    counts.clear();
  };
  const flush = (): Promise<void> => {
    if (writing !== undefined) return writing;
    if (nowMs() - countsAtMs >= COUNTS_EVERY_MS) takeCounts();
    if (held.length === 0) return Promise.resolve();
    const batch = held;
    held = [];
    writing = write(batch)
      .catch((error: unknown) => {
        onFailed(error);
        // Tried again with what has come since; none is lost but in number.
        const kept = [...batch, ...held];
        held = kept.slice(0, MAX_HELD);
        for (const entry of kept.slice(MAX_HELD)) leaveOut(entry);
      })
      .finally(() => {
        writing = undefined;
      });
    return writing;
  };
  const timer = setInterval(() => void flush(), FLUSH_EVERY_MS).unref();

  return {
    note(entry) {
      if (held.length < MAX_HELD && isWithinRate(entry)) held.push(entry);
      else leaveOut(entry);
    },
    get leftOut() {
      return leftOut;
    },
    flush,
    async stop() {
      clearInterval(timer);
      await writing;
      takeCounts();
      await flush();
    },
  };
}
