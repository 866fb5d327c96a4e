import { KeyError } from "./errors.ts";

export type ChangeKind = "created" | "retiring" | "revoked" | "expired" | "updated" | "removed";

/** A change of a record, at a moment that all processes agree on. Changes of one transaction share it. */
export interface KeyChange {
  id: string;
  kind: ChangeKind;
  clusterTime: bigint;
}

/** A message to a watcher. To go on after it, watch from `position`: messages of that very moment come again. */
export type WatchMessage = { position: bigint } & (
  | { event: "change"; change: KeyChange }
  /** Every change acknowledged up to `asOfMs` (Unix milliseconds) has been sent. */
  | { event: "heartbeat"; asOfMs: number }
  /** Changes were missed. */
  | { event: "restart"; asOfMs: number }
);

export const MAX_HELD_CHANGES = 10_000;

interface ChangesOptions {
  /** Changes held for those who resume or read slowly. Default: 10,000. */
  maxHeld?: number;
  /** Watchers at once. Default: 1,000. */
  maxWatchers?: number;
}

/**
 * The recent changes of records, and those who follow them. A watcher is no more than a place in the one bounded memory of
 * changes: one who falls out of it at its old end has to start again.
 */
export interface Changes {
  /** Changes are followed from `clusterTime` on, and may have been missed before. */
  restarted(clusterTime: bigint): void;
  /** Must be called in the order of the cluster times. */
  changed(change: KeyChange): void;
  /** Every change acknowledged before `asOfMs` has been reported by `changed`. */
  proven(asOfMs: number, clusterTime: bigint): void;
  /**
   * Changes from now on, or from the position of the last message, of this process or another. Without a position a
   * heartbeat comes first; with one that is "unknown" or further back than what is held, a restart. Ends when `signal` is
   * aborted, and with the drain. OVERLOADED when there are too many watchers.
   */
  watch(from: bigint | "unknown" | undefined, signal: AbortSignal): AsyncGenerator<WatchMessage, void>;
  /** Every watch ends, for good. */
  drain(): void;
  readonly watchers: number;
  /** Restarts sent so far. */
  readonly restarts: number;
}

export function createChanges({ maxHeld = MAX_HELD_CHANGES, maxWatchers = 1_000 }: ChangesOptions = {}): Changes {
  /** Changes by their number, modulo its length: those from `oldest` up to, but without, `next`. */
  const ring: KeyChange[] = new Array(maxHeld);
  let oldest = 0;
  let next = 0;
  /** Every change at or after this moment is held; undefined before any are followed. */
  let since: bigint | undefined;
  /** The last moment heard of. */
  let latest = 0n;
  /** The last proof, and the number of the change that came after it. */
  let proof: { asOfMs: number; next: number; clusterTime: bigint } | undefined;
  let restarts = 0;
  let draining = false;
  const watchers = new Set<() => void>();

  const wakeAll = () => {
    for (const wake of watchers) wake();
  };

  /** The number of the first change for a watcher that goes on from `from`; undefined when some are no longer held. */
  function placeOf(from: bigint): number | undefined {
    if (since === undefined || from < since) return undefined;
    let place = next;
    while (place > oldest && ring[(place - 1) % maxHeld]!.clusterTime >= from) place -= 1;
    return place;
  }

  async function* watch(from: bigint | "unknown" | undefined, signal: AbortSignal): AsyncGenerator<WatchMessage, void> {
    if (watchers.size >= maxWatchers) {
      throw new KeyError("OVERLOADED", "Too many watches are open here. Try again shortly.", { retryAfterMs: 1_000 });
    }
    let wake = () => {};
    const onNews = () => wake();
    watchers.add(onNews);
    signal.addEventListener("abort", onNews);
    // -1: behind all that is held.
    let place = from === undefined ? next : from === "unknown" ? -1 : (placeOf(from) ?? -1);
    let position = typeof from === "bigint" ? from : latest;
    let toldAsOfMs = Number.NEGATIVE_INFINITY;
    try {
      while (!signal.aborted && !draining) {
        const news = new Promise<void>((resolve) => {
          wake = resolve;
        });
        // Before the first proof there is nothing to send.
        if (proof === undefined) {
          await news;
        } else if (place < oldest) {
          place = next;
          position = latest;
          restarts += 1;
          yield { event: "restart", asOfMs: proof.asOfMs, position };
        } else if (proof.asOfMs > toldAsOfMs && place >= proof.next) {
          toldAsOfMs = proof.asOfMs;
          if (proof.clusterTime > position) position = proof.clusterTime;
          yield { event: "heartbeat", asOfMs: proof.asOfMs, position };
        } else if (place < next) {
          const change = ring[place % maxHeld]!;
          place += 1;
          position = change.clusterTime;
          yield { event: "change", change, position };
        } else {
          await news;
        }
      }
    } finally {
      watchers.delete(onNews);
      signal.removeEventListener("abort", onNews);
    }
  }

  return {
    restarted(clusterTime) {
      // A number without a change: whoever stands before it has missed something.
      next += 1;
      oldest = next;
      since = clusterTime;
      latest = clusterTime;
      wakeAll();
    },
    changed(change) {
      if (next - oldest === maxHeld) {
        since = ring[oldest % maxHeld]!.clusterTime + 1n;
        oldest += 1;
      }
      ring[next % maxHeld] = change;
      next += 1;
      latest = change.clusterTime;
      wakeAll();
    },
    proven(asOfMs, clusterTime) {
      proof = { asOfMs, next, clusterTime };
      latest = clusterTime;
      wakeAll();
    },
    watch,
    drain() {
      draining = true;
      wakeAll();
    },
    get watchers() {
      return watchers.size;
    },
    get restarts() {
      return restarts;
    },
  };
}
