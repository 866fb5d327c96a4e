import { type BatchedRead, createBatchedRead, type ReadResult } from "./batched-read.ts";
import { KeyError } from "./errors.ts";
import type { Freshness } from "./freshness.ts";
import type { KeyRecord } from "./key.ts";
import type { Entry, View } from "./view.ts";

/** Reads of records by id, for Verify. Each fails when the database does not answer; what that means is decided here. */
export interface RecordSource {
  /** At least as new as every event and every write of this process seen so far. */
  readRecent(ids: readonly string[], signal: AbortSignal): Promise<KeyRecord[]>;
  /** Reflects every write that anyone had acknowledged before the call. A primary cut off from its majority can't answer. */
  readProven(ids: readonly string[], signal: AbortSignal): Promise<KeyRecord[]>;
  /** As `readRecent`, from a secondary: for when there is no primary. */
  readFromSecondary(ids: readonly string[], signal: AbortSignal): Promise<KeyRecord[]>;
}

export interface LookupOptions {
  view: View;
  freshness: Freshness;
  source: RecordSource;
  /** Time without an answer after which the database counts as away. */
  readTimeoutMs: number;
  /** Unix milliseconds. */
  wallMs: () => number;
  /** Monotonic milliseconds. */
  clockMs?: () => number;
}

export interface Found {
  /** Undefined: no record has this id. */
  entry: Entry | undefined;
  /** The answer reflects every write acknowledged up to then; Unix milliseconds. */
  asOfMs: number;
}

export interface KeyLookup {
  /** The record, if the view is fresh and knows. */
  peek(id: string): Found | undefined;
  /** The record, at most as old as the bounds allow. DB_UNAVAILABLE when nothing that new can be had. */
  find(id: string): Promise<Found>;
  /** The record as of now; DB_UNAVAILABLE when that can't be proven. */
  findStrong(id: string): Promise<Found>;
  /** True while reads fail. */
  readonly outage: boolean;
}

/**
 * While the view is fresh, it answers, and what it lacks is read. While it is not, each call reads (shared with those that
 * came at the same time), and where the database does not answer, an outage is on: the view and secondaries answer
 * until the grace is over.
 */
export function createLookup(options: LookupOptions): KeyLookup {
  const { view, freshness, source, readTimeoutMs, wallMs, clockMs = () => performance.now() } = options;
  const common = { view, timeoutMs: readTimeoutMs, wallMs };
  const readRecent = createBatchedRead({ ...common, read: source.readRecent });
  const readProven = createBatchedRead({ ...common, read: source.readProven });
  const readFromSecondary = createBatchedRead({ ...common, read: source.readFromSecondary });
  let failedMs = Number.NEGATIVE_INFINITY;
  let probing = false;

  /** From a failed read until one succeeds, or until a proof that was sent after the failure comes back. */
  const isOutage = () => failedMs > freshness.provenMs;

  async function attempt(read: BatchedRead, id: string): Promise<ReadResult | undefined> {
    try {
      const result = await read(id);
      failedMs = Number.NEGATIVE_INFINITY;
      return result;
    } catch (error) {
      if (error instanceof KeyError) throw error;
      failedMs = clockMs();
      return undefined;
    }
  }

  /** In an outage nobody waits for the database; one read at a time finds out whether it is over. */
  function probe(id: string): void {
    if (probing) return;
    probing = true;
    void attempt(readProven, id)
      .catch(() => undefined)
      .finally(() => {
        probing = false;
      });
  }

  /** Says of no id that it is unknown: its record may have been made since, and to refuse a good key is worse than to ask again. */
  async function findInOutage(id: string): Promise<Found> {
    if (!freshness.isWithinGrace()) throw unavailable();
    const asOfMs = freshness.asOfMs;
    const held = view.get(id);
    if (held !== undefined) return { entry: held, asOfMs };
    if (view.isUnknown(id)) throw unavailable();
    const result = await readFromSecondary(id).catch((error: unknown) => {
      throw error instanceof KeyError ? error : unavailable(error);
    });
    if (result.entry === undefined) throw unavailable();
    return { entry: result.entry, asOfMs };
  }

  function peek(id: string): Found | undefined {
    if (!freshness.isFresh()) return undefined;
    const entry = view.get(id);
    return entry !== undefined || view.isUnknown(id) ? { entry, asOfMs: freshness.asOfMs } : undefined;
  }

  async function find(id: string): Promise<Found> {
    const known = peek(id);
    if (known !== undefined) return known;
    if (isOutage()) {
      probe(id);
      return findInOutage(id);
    }
    const fresh = freshness.isFresh();
    const asOfMs = freshness.asOfMs;
    const result = await attempt(fresh ? readRecent : readProven, id);
    if (result === undefined) return findInOutage(id);
    return { entry: result.entry, asOfMs: fresh ? asOfMs : result.beganMs };
  }

  return {
    peek,
    find,
    async findStrong(id) {
      if (isOutage()) {
        probe(id);
        throw unavailable();
      }
      const result = await attempt(readProven, id);
      if (result === undefined) throw unavailable();
      return { entry: result.entry, asOfMs: result.beganMs };
    },
    get outage() {
      return isOutage();
    },
  };
}

function unavailable(cause?: unknown): KeyError {
  return new KeyError(
    "DB_UNAVAILABLE",
    "The database can't be reached at the moment, and no answer as new as asked for is at hand. Try again shortly.",
    { retryAfterMs: 1_000, cause },
  );
}
