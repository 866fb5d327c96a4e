import { type Db, type IndexDescription, MongoError, MongoServerError } from "mongodb";
import { StartupError } from "../startup-error.ts";
import { hasCode } from "./server-errors.ts";

const DAY_MS = 86_400_000;

export const KEYS = "api_keys";
/** One document a process: proof, when it comes back on the change stream, of how fresh the process is. */
export const HEARTBEATS = "heartbeats";

/** Who did what. */
export const AUDIT = "audit";

const STATES = ["active", "retiring", "revoked", "expired"];

const VALIDATOR = {
  $jsonSchema: {
    bsonType: "object",
    required: ["_id", "userId", "prefix", "scopes", "state", "createdAt", "secretHash", "rev"],
    properties: {
      _id: { bsonType: "string", pattern: "^[0-9A-Za-z]{16}$" },
      userId: { bsonType: "string", minLength: 1, maxLength: 256 },
      name: { bsonType: "string", minLength: 1, maxLength: 128 },
      prefix: { bsonType: "string", minLength: 1, maxLength: 32 },
      scopes: { bsonType: "array", minItems: 1, maxItems: 64, items: { bsonType: "string" } },
      state: { enum: STATES },
      createdAt: { bsonType: "date" },
      expiresAt: { bsonType: "date" },
      retiresAt: { bsonType: "date" },
      revokedAt: { bsonType: "date" },
      revocationReason: { bsonType: "string", maxLength: 512 },
      lastUsedAt: { bsonType: "date" },
      secretHash: { bsonType: "string", pattern: "^\\$argon2id\\$" },
      fingerprint: {
        bsonType: "object",
        required: ["pepper", "mac"],
        properties: { pepper: { bsonType: "string" }, mac: { bsonType: "binData" } },
      },
      request: {
        bsonType: "object",
        required: ["id", "arguments", "ringId"],
        properties: {
          id: { bsonType: "string", pattern: "^[0-9A-Za-z_-]{43}$" },
          arguments: { bsonType: "string", pattern: "^[0-9A-Za-z_-]{43}$" },
          ringId: { bsonType: "string" },
          previousId: { bsonType: "string" },
          previousRevoked: { bsonType: "bool" },
        },
      },
      rev: { bsonType: ["int", "long", "double"], minimum: 1 },
    },
  },
};

/** The unique ones hold "one active key a user", "at most one retiring key a user" and "one key a request" under any concurrency. Nothing else does. */
const INDEXES: (IndexDescription & { name: string })[] = [
  { name: "one_active_key_per_user", key: { userId: 1 }, unique: true, partialFilterExpression: { state: "active" } },
  {
    name: "one_retiring_key_per_user",
    key: { userId: 1 },
    unique: true,
    partialFilterExpression: { state: "retiring" },
  },
  {
    name: "one_key_per_request",
    key: { userId: 1, "request.id": 1 },
    unique: true,
    partialFilterExpression: { "request.id": { $exists: true } },
  },
  { name: "keys_of_user", key: { userId: 1, _id: 1 } },
  // What is shown of a key may be a whole prefix as well: without this, a search by it would read every record.
  { name: "keys_of_prefix", key: { prefix: 1, _id: 1 } },
];

const AUDIT_INDEXES: (IndexDescription & { name: string })[] = [
  { name: "of_actor", key: { actor: 1, _id: -1 } },
  { name: "of_user", key: { userId: 1, _id: -1 } },
  { name: "of_key", key: { keyIds: 1, _id: -1 } },
  { name: "of_action", key: { action: 1, _id: -1 } },
  { name: "of_result", key: { result: 1, _id: -1 } },
];

export interface SchemaOptions {
  /** How long entries of the audit trail are kept. Default: 90 days. */
  auditRetentionMs?: number;
  /** Set: records of ended keys are looked for by when they ended. */
  purgeAfterMs?: number | undefined;
}

const PURGE_INDEXES: (IndexDescription & { name: string })[] = ["revokedAt", "retiresAt", "expiresAt"].map((end) => ({
  ...{ name: `ended_by_${end}`, key: { [end]: 1 }, sparse: true },
}));

/**
 * Makes the collection, its validation and its indexes if they are missing. An index that conflicts is reported, never dropped.
 * Fails with a StartupError.
 */
export async function ensureSchema(db: Db, options: SchemaOptions = {}): Promise<void> {
  await atStart(db, () => makeSchema(db, options));
}

/** Whatever MongoDB says to `operation` is a StartupError: it is read by who starts the service. */
export async function atStart<T>(db: Db, operation: () => Promise<T>): Promise<T> {
  return operation().catch((error: unknown) => {
    if (!(error instanceof MongoError)) throw error;
    const isForbidden = hasCode(error, "Unauthorized");
    // A server's message repeats the whole command.
    const why = isForbidden ? "not allowed" : error instanceof MongoServerError ? error.codeName : error.message;
    throw new StartupError(
      `The collections of the database "${db.databaseName}" can't be read, made or altered (${why}). ` +
        (isForbidden
          ? "The user in MONGODB_URI needs the roles readWrite and dbAdmin on it."
          : "Check that MongoDB is well, and that nothing else uses this database."),
    );
  });
}

async function makeSchema(db: Db, { auditRetentionMs = 90 * DAY_MS, purgeAfterMs }: SchemaOptions): Promise<void> {
  const [existing] = await db.listCollections({ name: KEYS }).toArray();
  const present = existing as { options?: { validator?: unknown } } | undefined;
  if (present === undefined) {
    await db.createCollection(KEYS, { validator: VALIDATOR }).catch((error: unknown) => {
      if (!hasCode(error, "NamespaceExists")) throw error; // Another process was faster.
    });
  } else if (JSON.stringify(present.options?.validator) !== JSON.stringify(VALIDATOR)) {
    await db.command({
      collMod: KEYS,
      validator: VALIDATOR,
      validationLevel: "strict",
      validationAction: "error",
    });
  }
  for (const index of [...INDEXES, ...(purgeAfterMs === undefined ? [] : PURGE_INDEXES)]) await ensureIndex(db, index);
  await db.collection(AUDIT).createIndexes(AUDIT_INDEXES);
  await ensureRetention(db, Math.ceil(auditRetentionMs / 1_000));
  await db.collection(HEARTBEATS).createIndex({ at: 1 }, { name: "old_heartbeats", expireAfterSeconds: 3_600 });
}

const OLD_ENTRIES = "old_entries";

async function ensureRetention(db: Db, expireAfterSeconds: number): Promise<void> {
  try {
    await db.collection(AUDIT).createIndex({ at: 1 }, { name: OLD_ENTRIES, expireAfterSeconds });
  } catch (error) {
    if (!hasCode(error, "IndexOptionsConflict")) throw error; // It was another time before.
    await db.command({ collMod: AUDIT, index: { name: OLD_ENTRIES, expireAfterSeconds } });
  }
}

async function ensureIndex(db: Db, { name, key, ...options }: IndexDescription & { name: string }): Promise<void> {
  try {
    await db.collection(KEYS).createIndex(key as Record<string, 1>, { name, ...options });
  } catch (error) {
    if (hasCode(error, "IndexOptionsConflict", "IndexKeySpecsConflict")) {
      throw new StartupError(
        `The collection "${db.databaseName}.${KEYS}" has an index that conflicts with "${name}", on which Latchkey relies. ` +
          `It was left alone. Look at db.${KEYS}.getIndexes(), drop the conflicting one, and start again.`,
      );
    }
    if (hasCode(error, "DuplicateKey")) {
      throw new StartupError(
        `The index "${name}" can't be built: some user in "${db.databaseName}.${KEYS}" already has two such keys. Revoke one of them and start again.`,
      );
    }
    throw error;
  }
}
