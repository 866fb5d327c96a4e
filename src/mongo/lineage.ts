import { createHash } from "node:crypto";
import type { Db, UUID } from "mongodb";
import { atStart, KEYS } from "./schema.ts";

/** Tells these records from any others: 8 hexadecimal digits, made of what the database itself calls their collection. */
export async function readLineage(db: Db): Promise<string> {
  const [found] = (await atStart(db, () => db.listCollections({ name: KEYS }).toArray())) as {
    info?: { uuid?: UUID };
  }[];
  return createHash("sha256")
    .update(found?.info?.uuid?.toHexString() ?? "")
    .digest("hex")
    .slice(0, 8);
}
