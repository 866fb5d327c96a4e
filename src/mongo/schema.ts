import { type Db, type Document, type IndexDescription, MongoError, MongoServerError } from "mongodb";
import { FIELDS, type KeyRecord } from "../keys/record.ts";
import { StartupError } from "../observe/startup-error.ts";
import { onceConnected } from "./connection.ts";
import { hasCode } from "./server-errors.ts";

const DAY_MS = 86_400_000;

export const KEYS = "api_keys";
/** One document a process: proof, when it comes back on the change stream, of how fresh the process is. */
export const HEARTBEATS = "heartbeats";

/** The audit trail. */
export const AUDIT = "audit";

/**
 * One more at each change of the validation or of an index below: processes of two releases side by side, as in a rolling
 * upgrade, must not take each other's validation for a damage.
 */
export const SCHEMA_VERSION = 2;

const RELEASE = /^Latchkey's records, version (\d+)$/;

export const VALIDATOR = {
  $jsonSchema: {
    description: `Latchkey's records, version ${SCHEMA_VERSION}`,
    bsonType: "object",
    required: Object.keys(FIELDS).filter(isRequired).map(storedName),
    properties: Object.fromEntries(Object.entries(FIELDS).map(([name, { schema }]) => [storedName(name), schema])),
  },
};

function isRequired(name: string): boolean {
  return FIELDS[name as keyof KeyRecord].isRequired === true;
}

function storedName(name: string): string {
  return name === "id" ? "_id" : name;
}

type NamedIndex = IndexDescription & { name: string };

/** By name. They hold "one active key a user", "at most one retiring key a user" and "one key a request" under any concurrency. Nothing else does. */
export const UNIQUE_INDEXES = {
  one_active_key_per_user: { key: { userId: 1 }, unique: true, partialFilterExpression: { state: "active" } },
  one_retiring_key_per_user: { key: { userId: 1 }, unique: true, partialFilterExpression: { state: "retiring" } },
  one_key_per_request: {
    key: { userId: 1, "request.id": 1 },
    unique: true,
    partialFilterExpression: { "request.id": { $exists: true } },
  },
} as const;

export type UniqueIndex = keyof typeof UNIQUE_INDEXES;

const INDEXES: NamedIndex[] = [
  ...Object.entries(UNIQUE_INDEXES).map(([name, index]) => ({ name, ...index })),
  { name: "keys_of_user", key: { userId: 1, _id: 1 } },
  // The shown beginning of a key may be a whole prefix as well: without this, a search by it would read every record.
  { name: "keys_of_prefix", key: { prefix: 1, _id: 1 } },
  { name: "held_by_admins", key: { userId: 1 }, partialFilterExpression: { "suspended.byAdmin": true } },
  { name: "keys_of_metadata", key: { metadata: 1, _id: 1 }, partialFilterExpression: { metadata: { $exists: true } } },
];

const OLD_ENTRIES = "old_entries";

const AUDIT_INDEXES: NamedIndex[] = [
  { name: "of_actor", key: { actor: 1, _id: -1 } },
  { name: "of_user", key: { userId: 1, _id: -1 } },
  { name: "of_key", key: { keyIds: 1, _id: -1 } },
  { name: "of_action", key: { action: 1, _id: -1 } },
  { name: "of_result", key: { result: 1, _id: -1 } },
];

const HEARTBEAT_INDEXES: NamedIndex[] = [{ name: "old_heartbeats", key: { at: 1 }, expireAfterSeconds: 3_600 }];

const PURGE_INDEXES: NamedIndex[] = ["revokedAt", "retiresAt", "expiresAt"].map((end) => ({
  ...{ name: `ended_by_${end}`, key: { [end]: 1 }, sparse: true },
}));

export interface SchemaOptions {
  /** How long entries of the audit trail are kept. Default: 90 days. */
  auditRetentionMs?: number;
  /** Set: records of ended keys are looked for by when they ended. */
  purgeAfterMs?: number | undefined;
}

/** A user with more keys than one where an index allows one. */
export interface Surplus {
  index: UniqueIndex;
  userId: string;
  keyIds: string[];
}

/** Something stands in the way that nobody but a person can put right. */
export class SchemaConflict extends StartupError {
  constructor(
    message: string,
    readonly surplus: readonly Surplus[] = [],
  ) {
    super(message);
  }
}

/**
 * Makes the collections, their validation and their indexes if they are missing, and sets right what can be without a loss. An
 * index that conflicts is reported, never dropped. Fails with a StartupError. A build takes as long as it takes: the client
 * of `db` must have no `socketTimeoutMS`.
 */
export async function ensureSchema(db: Db, options: SchemaOptions = {}): Promise<void> {
  await atStart(db, () => makeSchema(db, options));
}

/**
 * Whatever MongoDB says to `operation` is a StartupError: it is read by who starts the service. What got no connection in time, and so
 * was not begun, is begun again for as long as the first connection of a process may take.
 */
export async function atStart<T>(db: Db, operation: () => Promise<T>): Promise<T> {
  return onceConnected(operation).catch((error: unknown) => {
    throw error instanceof MongoError ? refusalAtStart(db, error) : error;
  });
}

function refusalAtStart(db: Db, error: MongoError): StartupError {
  const isForbidden = hasCode(error, "Unauthorized");
  // A server's message repeats the whole command.
  const why = isForbidden ? "not allowed" : error instanceof MongoServerError ? error.codeName : error.message;
  return new StartupError(
    `The collections of the database "${db.databaseName}" can't be read, made or altered (${why}). ` +
      (isForbidden
        ? "The user in MONGODB_URI needs the roles readWrite and dbAdmin on it."
        : "Check that MongoDB is well, and that nothing else uses this database."),
  );
}

async function makeSchema(db: Db, options: SchemaOptions): Promise<void> {
  const present = await readCollection(db);
  if (present === undefined) {
    await db.createCollection(KEYS, { validator: VALIDATOR }).catch((error: unknown) => {
      if (!hasCode(error, "NamespaceExists")) throw error; // Another process was faster.
    });
  } else {
    const lasting = lastingFault(present);
    if (lasting !== undefined) throw new SchemaConflict(`${namespace(db, KEYS)} ${lasting}.`);
    if (validationFault(present) !== undefined)
      await db.command({ collMod: KEYS, validator: VALIDATOR, validationLevel: "strict", validationAction: "error" });
  }
  const conflicts: SchemaConflict[] = [];
  for (const { collection, indexes } of wanted(options))
    conflicts.push(...(await ensureIndexes(db, collection, indexes)));
  if (conflicts.length === 0) return;
  throw new SchemaConflict(
    conflicts.map(({ message }) => message).join(" "),
    conflicts.flatMap(({ surplus }) => surplus),
  );
}

/** Which indexes there are to be. */
function wanted({ auditRetentionMs = 90 * DAY_MS, purgeAfterMs }: SchemaOptions) {
  const expireAfterSeconds = Math.ceil(auditRetentionMs / 1_000);
  return [
    { collection: KEYS, indexes: [...INDEXES, ...(purgeAfterMs === undefined ? [] : PURGE_INDEXES)] },
    {
      collection: AUDIT,
      indexes: [...AUDIT_INDEXES, { name: OLD_ENTRIES, key: { at: 1 as const }, expireAfterSeconds }],
    },
    { collection: HEARTBEATS, indexes: HEARTBEAT_INDEXES },
  ];
}

/** All that is not as it must be. */
export interface SchemaFaults {
  /** There is no collection of records. */
  gone: boolean;
  /** Lacks of what changes rest on, in words. */
  grave: string[];
  /** Everything else. */
  slight: string[];
}

/** Looks, and changes nothing. `maxTimeMS`: for each command. */
export async function findFaults(db: Db, options: SchemaOptions, maxTimeMS: number): Promise<SchemaFaults> {
  const [present, ...stored] = await Promise.all([
    readCollection(db, maxTimeMS),
    ...wanted(options).map(({ collection }) => readIndexes(db, collection, maxTimeMS)),
  ]);
  if (present === undefined) return { gone: true, grave: [gone(db)], slight: [] };
  const grave = [lastingFault(present), validationFault(present)].flatMap((fault) =>
    fault === undefined ? [] : [`${namespace(db, KEYS)} ${fault}`],
  );
  const slight: string[] = [];
  for (const [at, { collection, indexes }] of wanted(options).entries()) {
    for (const index of indexes) {
      const fault = indexFault(index, stored[at]?.get(index.name));
      // The time is a setting: while processes are started anew one by one, it differs between them.
      if (fault === undefined || (index.name === OLD_ENTRIES && fault === ALTERED)) continue;
      if (index.name in UNIQUE_INDEXES) grave.push(inWords(index.name, fault));
      else slight.push(`${inWords(index.name, fault)} (${namespace(db, collection)})`);
    }
  }
  return { gone: false, grave, slight };
}

/** Of the unique indexes alone, as fast as can be. */
export async function findUniqueFaults(db: Db, maxTimeMS: number): Promise<Pick<SchemaFaults, "gone" | "grave">> {
  const stored = await readIndexes(db, KEYS, maxTimeMS);
  if (stored === undefined) return { gone: true, grave: [gone(db)] };
  const grave = Object.entries(UNIQUE_INDEXES).flatMap(([name, index]) => {
    const fault = indexFault({ name, ...index }, stored.get(name));
    return fault === undefined ? [] : [inWords(name, fault)];
  });
  return { gone: false, grave };
}

function gone(db: Db): string {
  return `${namespace(db, KEYS)} is gone: it was dropped or renamed`;
}

interface StoredCollection {
  type?: string;
  options: Document;
}

async function readCollection(db: Db, maxTimeMS?: number): Promise<StoredCollection | undefined> {
  const found = await db.listCollections({ name: KEYS }, maxTimeMS === undefined ? {} : { maxTimeMS }).toArray();
  return found[0] as StoredCollection | undefined;
}

/** A fault that no command could put right. */
function lastingFault({ type = "collection", options }: StoredCollection): string | undefined {
  const odd = ["capped", "collation", "timeseries", "clusteredIndex"].filter((option) => options[option] !== undefined);
  if (type === "collection" && odd.length === 0) return undefined;
  return `is ${type === "collection" ? `a collection with ${odd.join(" and ")}` : `a ${type}`}, not a plain collection: move its records into one`;
}

function validationFault({ options }: StoredCollection): string | undefined {
  const { validator, validationLevel = "strict", validationAction = "error" } = options;
  const [, release = 0] = RELEASE.exec(String(validator?.$jsonSchema?.description)) ?? [];
  // A newer release that runs beside this one, or did before it.
  if (Number(release) > SCHEMA_VERSION) return undefined;
  if (validator === undefined) return "has lost its validation";
  if (validationLevel !== "strict" || validationAction !== "error") return "lets in what its validation finds wrong";
  return JSON.stringify(validator) === JSON.stringify(VALIDATOR) ? undefined : "has another validation";
}

interface StoredIndex extends Document {
  name: string;
  /** Set while it is being built: it refuses nothing yet. */
  buildUUID?: unknown;
}

/** Undefined: there is no such collection. */
async function readIndexes(
  db: Db,
  collection: string,
  maxTimeMS?: number,
): Promise<Map<string, StoredIndex> | undefined> {
  const command = { listIndexes: collection, includeBuildUUIDs: true, ...(maxTimeMS !== undefined && { maxTimeMS }) };
  const answer = await db.command(command, { readPreference: "primary" }).catch((error: unknown) => {
    if (hasCode(error, "NamespaceNotFound", "CommandNotSupportedOnView")) return undefined;
    throw error;
  });
  if (answer === undefined) return undefined;
  const indexes = (answer.cursor.firstBatch as Document[]).map(({ spec, buildUUID, ...index }) =>
    spec === undefined ? index : { ...spec, buildUUID },
  ) as StoredIndex[];
  return new Map(indexes.map((index) => [index.name, index]));
}

function inWords(index: string, fault: string): string {
  return `the index "${index}" ${fault}`;
}

const ALTERED = "is another than the one that Latchkey makes";
const HIDDEN = "is hidden";

function indexFault(index: NamedIndex, stored: StoredIndex | undefined): string | undefined {
  if (stored === undefined) return "is missing";
  const { buildUUID, hidden, ...definition } = stored;
  if (definitionOf(definition) !== definitionOf(index)) return ALTERED;
  if (buildUUID !== undefined) return "is being built";
  return hidden === true ? HIDDEN : undefined;
}

/** Equal for equal definitions, whatever the order of their options. */
function definitionOf({ v: _, ns: _ns, background: _background, key, ...options }: Document): string {
  const set = Object.entries(options).filter(([, value]) => value !== undefined && value !== false);
  return JSON.stringify([Object.entries(key), set.sort(([a], [b]) => (a < b ? -1 : 1))]);
}

/** Returns what stands in the way of some. */
async function ensureIndexes(db: Db, collection: string, indexes: readonly NamedIndex[]): Promise<SchemaConflict[]> {
  const stored = await readIndexes(db, collection);
  const faulty = indexes.filter((index) => indexFault(index, stored?.get(index.name)) !== undefined);
  const isMissing = ({ name }: NamedIndex) => stored?.get(name) === undefined;
  const conflicts: SchemaConflict[] = [];
  // All at once where nothing stands in the way: they are built in one reading of the collection.
  if (faulty.length === 0 || (faulty.every(isMissing) && (await build(db, collection, faulty)) === undefined))
    return [];
  for (const index of faulty) {
    const conflict = await ensureIndex(db, collection, index);
    if (conflict !== undefined) conflicts.push(conflict);
  }
  return conflicts;
}

/** Returns why it can't be done: IndexOptionsConflict, IndexKeySpecsConflict, DuplicateKey. */
async function build(
  db: Db,
  collection: string,
  indexes: readonly NamedIndex[],
): Promise<"conflict" | "duplicates" | undefined> {
  try {
    // By default a build waits for every member of the set, and one that is down for long holds it up for as long.
    await db.collection(collection).createIndexes([...indexes], { commitQuorum: "majority" });
    return undefined;
  } catch (error) {
    if (hasCode(error, "IndexOptionsConflict", "IndexKeySpecsConflict")) return "conflict";
    if (hasCode(error, "DuplicateKey")) return "duplicates";
    throw error;
  }
}

async function ensureIndex(db: Db, collection: string, index: NamedIndex): Promise<SchemaConflict | undefined> {
  const { name, expireAfterSeconds } = index;
  const problem = await build(db, collection, [index]);
  const fault = indexFault(index, (await readIndexes(db, collection))?.get(name));
  if (problem === "duplicates" && name in UNIQUE_INDEXES) return surplusFound(db, name as UniqueIndex);
  if (fault === HIDDEN) await db.command({ collMod: collection, index: { name, hidden: false } });
  // It was another time before.
  else if (fault !== undefined && name === OLD_ENTRIES)
    await db.command({ collMod: collection, index: { name, expireAfterSeconds } });
  else if (fault !== undefined || problem !== undefined) {
    return new SchemaConflict(
      `The collection ${namespace(db, collection)} has an index that conflicts with "${name}", on which Latchkey relies. ` +
        `It was left alone. Look at db.${collection}.getIndexes(), and drop the conflicting one: Latchkey then makes its own, at the latest when it is started.`,
    );
  }
  return undefined;
}

const MAX_SURPLUS = 20;

async function surplusFound(db: Db, index: UniqueIndex): Promise<SchemaConflict> {
  const { key, partialFilterExpression } = UNIQUE_INDEXES[index];
  const group = Object.fromEntries(Object.keys(key).map((field) => [field.replace(".", "_"), `$${field}`]));
  const found = await db
    .collection(KEYS)
    .aggregate<{ _id: { userId: string }; keyIds: string[] }>(
      [
        { $match: partialFilterExpression },
        { $group: { _id: group, keyIds: { $push: "$_id" } } },
        { $match: { "keyIds.1": { $exists: true } } },
        { $limit: MAX_SURPLUS + 1 },
      ],
      { allowDiskUse: true },
    )
    .toArray();
  const surplus = found.map(({ _id: { userId }, keyIds }) => ({ index, userId, keyIds }));
  const shown = surplus
    .slice(0, MAX_SURPLUS)
    .map(({ userId, keyIds }) => `${JSON.stringify(userId)} (${keyIds.join(", ")})`)
    .join("; ");
  const more = surplus.length > MAX_SURPLUS ? ` These are the first ${MAX_SURPLUS}.` : "";
  return new SchemaConflict(
    `The index "${index}" can't be built: some user in ${namespace(db, KEYS)} already has two such keys: ${shown}.${more} ` +
      `${index === "one_key_per_request" ? WAYS_OUT.request : WAYS_OUT.key} Latchkey then makes the index, at the latest when it is started.`,
    surplus,
  );
}

/** The first is served without the index; the second can be done while nothing is. */
const WAYS_OUT = {
  key:
    "Revoke all but one key of each: latchkey admin revoke KEY-ID, or in mongosh " +
    `db.${KEYS}.updateOne({_id: "KEY-ID"}, {$set: {state: "revoked", revokedAt: new Date()}, $inc: {rev: 1}}).`,
  request:
    "Take the request from all but one key of each, in mongosh " +
    `db.${KEYS}.updateOne({_id: "KEY-ID"}, {$unset: {request: ""}, $inc: {rev: 1}}).`,
};

function namespace(db: Db, collection: string): string {
  return `"${db.databaseName}.${collection}"`;
}
