import type { RecordSource } from "../keys/ports.ts";
import type { Freshness } from "../keys/verify/freshness.ts";

interface DatabaseCheckOptions {
  /** The client of changes. */
  database: { reachable(timeoutMs: number): Promise<boolean> };
  freshness: Pick<Freshness, "isFresh" | "isWithinGrace" | "provenMs">;
  source: Pick<RecordSource, "readProven">;
  /** Called again and again. `proven`: whether there was ever a proof of freshness. */
  onKeys(state: { answered: boolean; proven: boolean }): void;
  /** Called at each change of whether a primary with a majority answers. Taken for true at the start. */
  onDatabase(up: boolean): void;
}

const DATABASE_CHECK_MS = 1_000;
const CHECK_TIMEOUT_MS = 2_000;
/** Time alone ends the grace. */
const KEYS_CHECK_MS = 250;

/** Finds out whether the database answers, and whether keys are answered with it or without. Returns what ends it. */
export function checkDatabase({
  database,
  freshness,
  source,
  onKeys,
  onDatabase,
}: DatabaseCheckOptions): () => Promise<void> {
  let up = true;
  /** Reads of Verify are answered. */
  let reads = true;
  let ended = false;
  let wake = () => {};

  // A primary that was cut off from its majority answers a ping. Where no proofs come, a read that needs a majority tells.
  const readable = async (): Promise<boolean> => {
    if (freshness.isFresh()) return true;
    return source.readProven([], AbortSignal.timeout(CHECK_TIMEOUT_MS)).then(
      () => true,
      () => false,
    );
  };
  const checkKeys = () => {
    const proven = Number.isFinite(freshness.provenMs);
    onKeys({ proven, answered: proven && (freshness.isFresh() || freshness.isWithinGrace() || reads) });
  };
  const done = (async () => {
    while (!ended) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, DATABASE_CHECK_MS);
        wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      if (ended) return;
      const before: boolean = up;
      const [isReachable, isReadable] = await Promise.all([database.reachable(CHECK_TIMEOUT_MS), readable()]);
      reads = isReadable;
      up = isReachable && isReadable;
      if (up !== before && !ended) onDatabase(up);
    }
  })();
  checkKeys();
  const timer = setInterval(checkKeys, KEYS_CHECK_MS);

  return () => {
    ended = true;
    clearInterval(timer);
    wake();
    return done;
  };
}
