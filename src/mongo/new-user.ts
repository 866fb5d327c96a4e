import type { Db } from "mongodb";
import { KEYS } from "./schema.ts";

/** Alice, or the first of her numbered kind who has no active key: `create` works for her, however often the service was tried. */
export async function newUser(db: Db): Promise<string> {
  const taken: string[] = await db.collection(KEYS).distinct("userId", { userId: /^alice/, state: "active" });
  for (let number = 1; ; number += 1) {
    const name = number === 1 ? "alice" : `alice-${number}`;
    if (!taken.includes(name)) return name;
  }
}
