import type { Db } from "mongodb";
import { KEYS } from "./schema.ts";

export interface FingerprintCount {
  /** The pepper's id; undefined: records without a fingerprint. */
  pepper: string | undefined;
  /** Active and retiring keys that have not run out. */
  good: number;
  /** Records in any state. */
  all: number;
}

/** How many records have their fingerprint under which pepper. Reads every record. */
export async function countFingerprints(db: Db, now: Date): Promise<FingerprintCount[]> {
  const isAhead = (end: string) => ({ $or: [{ $lte: [end, null] }, { $gt: [end, now] }] });
  const isGood = { $and: [{ $in: ["$state", ["active", "retiring"]] }, isAhead("$expiresAt"), isAhead("$retiresAt")] };
  const counted = await db
    .collection(KEYS)
    .aggregate<{ _id: string | null; good: number; all: number }>([
      { $group: { _id: "$fingerprint.pepper", good: { $sum: { $cond: [isGood, 1, 0] } }, all: { $sum: 1 } } },
    ])
    .toArray();
  return counted.map(({ _id, good, all }) => ({ pepper: _id ?? undefined, good, all }));
}
