import type { Entry } from "./view.ts";

interface UsageOptions {
  /** Writes when keys were used, in Unix milliseconds by id. May fail: that loses freshness, and nothing else. */
  write(used: ReadonlyMap<string, number>): Promise<void>;
  onFailed: (error: unknown) => void;
}

export interface Usage {
  /** Notes a use; most calls do nothing. */
  note(entry: Entry, nowMs: number): void;
  /** Writes what was noted. */
  flush(): Promise<void>;
  /** Flushes a last time. */
  stop(): Promise<void>;
}

/** A key's use is written at most this often. */
export const USE_EVERY_MS = 60_000;
const FLUSH_EVERY_MS = 5_000;
/** Notes held; beyond this a flush is due at once. */
const MAX_NOTES = 5_000;

/** Gathers `last_used_at` away from the fast path, and writes it in batches. */
export function createUsage({ write, onFailed }: UsageOptions): Usage {
  let noted = new Map<string, number>();
  let writing: Promise<void> | undefined;

  const flush = (): Promise<void> => {
    if (writing !== undefined) return writing;
    if (noted.size === 0) return Promise.resolve();
    const batch = noted;
    noted = new Map();
    writing = write(batch)
      .catch(onFailed)
      .finally(() => {
        writing = undefined;
      });
    return writing;
  };
  const timer = setInterval(() => void flush(), FLUSH_EVERY_MS).unref();

  return {
    note(entry, nowMs) {
      if (nowMs - entry.usedS * 1_000 < USE_EVERY_MS) return;
      // A burst of more keys than fit while the database is away: their uses are noted a little later.
      if (noted.size >= MAX_NOTES && writing !== undefined) return;
      entry.usedS = Math.floor(nowMs / 1_000);
      noted.set(entry.id, nowMs);
      if (noted.size >= MAX_NOTES) void flush();
    },
    flush,
    async stop() {
      clearInterval(timer);
      await flush();
      await flush();
    },
  };
}
