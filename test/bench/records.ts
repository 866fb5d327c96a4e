import { createHmac, randomBytes } from "node:crypto";
import { Binary, type MongoClient } from "mongodb";
import { formatKey, ID_LENGTH, randomBase62, SECRET_LENGTH } from "../../src/keys/text.ts";
import { ensureSchema } from "../../src/mongo/schema.ts";

export interface Seed {
  client: MongoClient;
  database: string;
  count: number;
  pepper: { id: string; secret: Buffer };
  /** How many of the keys are wanted; others are stored and forgotten. Default: all. */
  keep?: number;
}

/** Where the service keeps its records. */
export const COLLECTION = "api_keys";

const PREFIX = "lk";
const BATCH = 5_000;
/** Good in form, and of no secret: an argon2 run on it would refuse the key, and be noticed. */
const PLACEHOLDER_HASH = `$argon2id$v=19$m=19456,t=2,p=1$${"A".repeat(22)}$${"A".repeat(43)}`;

/** Puts good keys into MongoDB as the service would have, less the argon2 each, and returns them. The user of key n is `user-n`. */
export async function storeKeys({ client, database, count, pepper, keep = count }: Seed): Promise<string[]> {
  const db = client.db(database);
  await ensureSchema(db);
  const collection = db.collection<{ _id: string }>(COLLECTION);
  const bytes = pool();
  const kept: string[] = [];
  const createdAt = new Date();
  // MongoDB stores a batch while the next one is made.
  let stored: Promise<unknown> = Promise.resolve();
  for (let from = 0; from < count; from += BATCH) {
    const batch = Array.from({ length: Math.min(BATCH, count - from) }, (_, index) => {
      const id = randomBase62(ID_LENGTH, bytes);
      const secret = randomBase62(SECRET_LENGTH, bytes);
      if (kept.length < keep) kept.push(formatKey({ prefix: PREFIX, id, secret }));
      const mac = createHmac("sha256", pepper.secret).update(`${id}_${secret}`, "ascii").digest();
      return {
        ...{ _id: id, userId: `user-${from + index}`, name: "benchmark", prefix: PREFIX },
        ...{ scopes: ["billing:write", "read"], state: "active", createdAt, secretHash: PLACEHOLDER_HASH },
        ...{ fingerprint: { pepper: pepper.id, mac: new Binary(mac) }, rev: 1 },
      };
    });
    // The first batch shows that the records are as they must be; checking a million costs half a minute.
    const options = { ordered: false, writeConcern: { w: 1 }, bypassDocumentValidation: from > 0 };
    await stored;
    stored = collection.insertMany(batch, options);
  }
  await stored;
  return kept;
}

/** A key in good form that was never issued. */
export function unknownKey(): string {
  return formatKey({
    prefix: PREFIX,
    id: randomBase62(ID_LENGTH, randomBytes),
    secret: randomBase62(SECRET_LENGTH, randomBytes),
  });
}

/** The id of a key that exists, with a secret that is not its own. */
export function wrongSecret(key: string): string {
  const id = key.slice(PREFIX.length + 1, PREFIX.length + 1 + ID_LENGTH);
  return formatKey({ prefix: PREFIX, id, secret: randomBase62(SECRET_LENGTH, randomBytes) });
}

export function badChecksum(key: string): string {
  return key.slice(0, -1) + (key.endsWith("0") ? "1" : "0");
}

/** Random bytes in small portions are dear, one system call each. */
function pool(): (size: number) => Uint8Array {
  let bytes = randomBytes(0);
  return (size) => {
    if (bytes.length < size) bytes = randomBytes(1 << 16);
    const portion = bytes.subarray(0, size);
    bytes = bytes.subarray(size);
    return portion;
  };
}
