import type { Collection, Db, Filter } from "mongodb";
import type { KeyDocument } from "./records.ts";
import { KEYS } from "./schema.ts";

interface PurgeOptions {
  db: Db;
  /** How long after its end a key's record is kept. */
  purgeAfterMs: number;
  clock: () => Date;
  onPurged(records: number): void;
  onFailed(error: unknown): void;
}

const PURGE_EVERY_MS = 3_600_000;
/** Records removed at once, so that no removal holds up other writes for long. */
const BATCH = 500;

/** Removes records of keys that ended long ago, now and then. Processes may do so side by side. Returns what ends it. */
export function startPurge({ db, purgeAfterMs, clock, onPurged, onFailed }: PurgeOptions): () => Promise<void> {
  let stopped = false;
  const run = async () => {
    // By the earlier of both clocks: what one that is far ahead takes for ended may still be used.
    const { localTime } = await db.command({ hello: 1 });
    const cutoff = new Date(Math.min(clock().getTime(), localTime.getTime()) - purgeAfterMs);
    for (let removed = BATCH; removed === BATCH && !stopped; ) {
      removed = await purgeSome(db.collection(KEYS), cutoff);
      if (removed > 0) onPurged(removed);
    }
  };
  let running = run().catch(onFailed);
  const timer = setInterval(() => {
    running = running.then(run).catch(onFailed);
  }, PURGE_EVERY_MS).unref();
  return () => {
    stopped = true;
    clearInterval(timer);
    return running;
  };
}

/** A key that could be used after `cutoff` is never removed: what it takes is asked again as each record is. */
async function purgeSome(keys: Collection<KeyDocument>, cutoff: Date): Promise<number> {
  const endedBefore: Filter<KeyDocument> = {
    // Else a user whom an admin stopped could make a key again once the records are gone.
    "suspended.byAdmin": { $ne: true },
    $or: [
      { state: "revoked", revokedAt: { $lte: cutoff } },
      { state: "retiring", retiresAt: { $lte: cutoff } },
      { state: { $in: ["active", "retiring", "expired"] }, expiresAt: { $lte: cutoff } },
    ],
  };
  const found = await keys.find(endedBefore, { projection: { _id: 1 }, limit: BATCH }).toArray();
  if (found.length === 0) return 0;
  const ids = found.map(({ _id }) => _id);
  const { deletedCount } = await keys.deleteMany({ _id: { $in: ids }, ...endedBefore });
  return deletedCount;
}
