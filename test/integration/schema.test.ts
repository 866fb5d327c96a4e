import { createHash, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, expect, test } from "@jest/globals";
import { type Collection, type Db, MongoClient } from "mongodb";
import { Consistency, Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { createLatchkeyAdminClient } from "../../src/client/index.ts";
import type { KeyRecord } from "../../src/keys/record.ts";
import { createView } from "../../src/keys/verify/view.ts";
import { createClusterTime } from "../../src/mongo/cluster-time.ts";
import { createKeyStore } from "../../src/mongo/key-store.ts";
import { ensureSchema, SCHEMA_VERSION, UNIQUE_INDEXES, VALIDATOR } from "../../src/mongo/schema.ts";
import { refusalOf } from "../support/errors.ts";
import { interposed, noSecretChecks, STEPS, watchOf } from "../support/schemas.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

interface Stored {
  _id: string;
  userId: string;
  state: string;
  rev: number;
}

let mongo: MongoClient;
const services: TestService[] = [];
beforeAll(async () => {
  mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
});
afterEach(() => Promise.all(services.splice(0).map((service) => service.stop())));
afterAll(() => mongo.close());

const start = async (env: Record<string, string> = {}) => {
  const service = await startService({ env });
  services.push(service);
  return service;
};
const recordsOf = ({ database }: TestService): Collection<Stored> => mongo.db(database).collection<Stored>("api_keys");
const readyz = async ({ server }: TestService) => {
  const response = await fetch(`http://${server.opsAddress}/readyz`);
  return response.text();
};
const until = async (holds: () => boolean | Promise<boolean>) => {
  while (!(await holds())) await sleep(20);
};
const untilLogged = (service: TestService, event: string) => until(() => service.logs().includes(`"event":"${event}"`));
const newId = () => randomUUID().replaceAll("-", "").slice(0, 16);
const recordOf = (userId: string, fields: Partial<KeyRecord> = {}): KeyRecord => ({
  ...{ id: newId(), userId, prefix: "lk", scopes: ["read"], state: "active", createdAt: new Date(), rev: 1 },
  ...{ secretHash: "$argon2id$", fingerprint: { pepper: "p1", mac: Buffer.alloc(32, 1) } },
  ...fields,
});
const newDb = () => mongo.db(`test-${randomUUID()}`);
const freshDb = async (): Promise<Db> => {
  const db = newDb();
  await ensureSchema(db);
  return db;
};
/** No more than a change rests on. */
const barestDb = async (): Promise<Db> => {
  const db = newDb();
  const indexes = Object.entries(UNIQUE_INDEXES).map(([name, index]) => ({ name, ...index }));
  await db.createCollection("api_keys", { validator: VALIDATOR });
  await db.command({ createIndexes: "api_keys", indexes });
  return db;
};
const ACTIVE = "one_active_key_per_user";

/** What others may do to the database, each leaving a collection, if any, in which the index judges nothing. */
const INTERFERENCES: Record<string, (db: Db) => Promise<unknown>> = {
  "the index is dropped": (db) => db.collection("api_keys").dropIndex(ACTIVE),
  "all indexes are dropped": (db) => db.command({ dropIndexes: "api_keys", index: "*" }),
  "the index is hidden by collMod": (db) => db.command({ collMod: "api_keys", index: { name: ACTIVE, hidden: true } }),
  "a weaker index of the same name takes its place": async (db) => {
    await db.collection("api_keys").dropIndex(ACTIVE);
    const weaker = { name: ACTIVE, partialFilterExpression: { state: "active" } };
    await db.collection("api_keys").createIndex({ userId: 1 }, weaker);
  },
  "an index on something else takes its place": async (db) => {
    await db.collection("api_keys").dropIndex(ACTIVE);
    const other = { name: ACTIVE, unique: true, partialFilterExpression: { state: "active" } };
    await db.collection("api_keys").createIndex({ prefix: 1, userId: 1 }, other);
  },
  "the collection is dropped": (db) => db.collection("api_keys").drop(),
  "the collection is renamed": (db) => db.collection("api_keys").rename("elsewhere"),
  "another collection is renamed over it": async (db) => {
    await db.createCollection("bare");
    await db.collection("bare").rename("api_keys", { dropTarget: true });
  },
  "it is dropped, and made again without indexes": async (db) => {
    await db.collection("api_keys").drop();
    await db.createCollection("api_keys");
  },
  "the database is dropped": (db) => db.dropDatabase(),
};

const cases = Object.keys(INTERFERENCES).flatMap((what) => STEPS.map((step) => [what, step] as const));

test.each(cases)("no key is made that the index did not judge: %s, at the step %s of a Create", async (what, step) => {
  const db = await freshDb();
  const schema = await watchOf(db, { patiently: async () => {} });
  let over = false;
  let interference: Promise<unknown> | undefined;
  let wasOverAtCommit: boolean | undefined;
  const client = interposed(mongo, "api_keys", async (at) => {
    if (at === step && interference === undefined) {
      interference = INTERFERENCES[what]!(db).then(() => {
        over = true;
      });
      // In a transaction that has read the records it can't come to pass before the end: waiting for it would last for ever.
      await (step === "before" ? interference : Promise.race([interference, sleep(100)]));
    }
    if (at === "written") wasOverAtCommit = over;
  });
  const view = createView({ maxKeys: 10 });
  const parts = {
    client,
    database: db.databaseName,
    clusterTime: createClusterTime(),
    view,
    schema,
    secretChecks: noSecretChecks,
  };
  const store = createKeyStore({ ...parts, clock: () => new Date() });
  const user = randomUUID();
  const made = await store
    .change(user, performance.now() + 10_000, () => ({ update: [], insert: recordOf(user), answer: "made" }))
    .catch((error: unknown) => error);
  await interference;
  await schema.stop();
  if (step === "before") {
    expect(made).toMatchObject({ reason: "DB_INCOMPLETE", retryAfterMs: expect.any(Number) });
    for (const { name } of await db.listCollections().toArray())
      expect(await db.collection(name).countDocuments({ userId: user })).toBe(0);
  } else expect({ made, wasOverAtCommit }).toEqual({ made: "made", wasOverAtCommit: false });
  await db.dropDatabase();
});

test("that a user has no key is said of no time in which the records are away: they go after a look at whether they are there, before the read", async () => {
  const db = await freshDb();
  const user = randomUUID();
  const { id, ...record } = recordOf(user);
  await db.collection<{ _id: string }>("api_keys").insertOne({ _id: id, ...record } as never);
  const watch = await watchOf(db, { patiently: async () => {} });
  const rename = async () => void (await db.renameCollection("api_keys", "elsewhere"));
  let away: Promise<void> | undefined;
  let looked = () => {};
  const aLook = new Promise<void>((resolve) => {
    looked = resolve;
  });
  const parts = {
    client: interposed(mongo, "api_keys", async (at) => {
      if (at !== "looked up") return;
      await aLook;
      away ??= rename();
      await away;
    }),
    database: db.databaseName,
    clusterTime: createClusterTime(),
    view: createView({ maxKeys: 10 }),
    schema: { ...watch, confirmRecords: () => watch.confirmRecords().finally(looked) },
    secretChecks: noSecretChecks,
  };
  const store = createKeyStore({ ...parts, clock: () => new Date() });
  const answer = await store.findCurrent(user, performance.now() + 10_000).catch((error: unknown) => error);
  await db.renameCollection("elsewhere", "api_keys");
  const found = await store.findCurrent(user, performance.now() + 10_000);
  await watch.stop();
  expect(answer).toMatchObject({ reason: "DB_INCOMPLETE" });
  expect(found.active?.id).toBe(id);
});

test.each([
  ["one_active_key_per_user", { state: "active" }],
  ["one_retiring_key_per_user", { state: "retiring" }],
  [
    "one_key_per_request",
    { state: "revoked", request: { id: "r".repeat(43), arguments: "a".repeat(43), ringId: "r1" } },
  ],
] as const)("a change fails where %s is missing, and no other change does", async (index, fields) => {
  const db = await barestDb();
  await db.collection("api_keys").dropIndex(index);
  const schema = await watchOf(db, { patiently: async () => {} });
  const view = createView({ maxKeys: 10 });
  const store = createKeyStore({
    ...{
      client: mongo,
      database: db.databaseName,
      clusterTime: createClusterTime(),
      view,
      schema,
      secretChecks: noSecretChecks,
    },
    clock: () => new Date(),
  });
  const user = randomUUID();
  const change = (insert: KeyRecord | undefined, update: KeyRecord[] = []) =>
    store.change(user, performance.now() + 10_000, () => ({ update, ...(insert && { insert }), answer: "made" }));
  await expect(change(recordOf(user, fields))).rejects.toMatchObject({ reason: "DB_INCOMPLETE" });
  expect(await db.collection("api_keys").countDocuments()).toBe(0);
  const old = recordOf(user);
  await db.collection<{ _id: string }>("api_keys").insertOne({ ...old, _id: old.id } as never);
  expect(await change(undefined, [{ ...old, state: "revoked", revokedAt: new Date() }])).toBe("made");
  await schema.stop();
});

test("where a drop and a reload come between two processes' Creates, no user is left with two active keys, and what was lost is made again", async () => {
  const one = await start();
  const other = await start({ MONGODB_DATABASE: one.database });
  const users = Array.from({ length: 16 }, () => randomUUID());
  const keys: { userId: string; key: string }[] = [];
  for (const userId of users.slice(0, 4)) {
    const { key } = await one.client(userId).create({ scopes: ["read"] });
    keys.push({ userId, key });
  }
  const records = recordsOf(one);
  const saved = await records.find().toArray();
  const creates = users.flatMap((userId) =>
    [one, other, one, other, one, other].map((service) => async () => {
      const { key } = await service.client(userId).create({ scopes: ["read"] });
      keys.push({ userId, key });
    }),
  );
  expect(creates).toHaveLength(96);
  const first = Promise.allSettled(creates.slice(0, 48).map((create) => create()));
  await records.drop();
  await records.insertMany(saved);
  const second = Promise.allSettled(creates.slice(48).map((create) => create()));
  for (const result of [...(await first), ...(await second)]) {
    if (result.status === "fulfilled") continue;
    const { reason, retry } = await refusalOf(Promise.reject(result.reason));
    expect({ reason, fine: retry || reason === "KEY_EXISTS" }).toEqual({ reason, fine: true });
  }
  for (const service of [one, other]) await until(async () => (await readyz(service)).includes("[+] schema: ok"));
  const indexes = await records.indexes();
  for (const [name, index] of Object.entries(UNIQUE_INDEXES))
    expect(indexes).toContainEqual(expect.objectContaining({ name, ...index }));
  const active = await records.find({ state: "active" }).toArray();
  expect(new Set(active.map(({ userId }) => userId)).size).toBe(active.length);
  // What was restored counts, and each user can go on.
  for (const { key } of keys.slice(0, 4)) expect((await other.client().verify({ key })).outcome).toBe(Outcome.VALID);
  for (const service of [one, other]) {
    const { key } = await service.client().create({ scopes: ["read"] });
    expect((await service.client().verify({ key })).outcome).toBe(Outcome.VALID);
  }
}, 240_000);

const ALTERATIONS: Record<string, (db: Db) => Promise<unknown>> = {
  ...Object.fromEntries(
    Object.entries(INTERFERENCES).filter(([what]) => !/takes its place|renamed$|is dropped$/.test(what)),
  ),
  "the validation is taken away": (db) => db.command({ collMod: "api_keys", validator: {} }),
  "the validation is another": (db) => db.command({ collMod: "api_keys", validator: { userId: { $exists: true } } }),
  "the validation only warns": (db) => db.command({ collMod: "api_keys", validationAction: "warn" }),
  "the validation spares what is there": (db) => db.command({ collMod: "api_keys", validationLevel: "moderate" }),
};

test.each(Object.entries(ALTERATIONS))("what can be made again without a loss is made again: %s", async (_, alter) => {
  const db = await freshDb();
  const seen: (string | undefined)[] = [];
  const schema = await watchOf(db, { maxStalenessMs: 100, onChange: (missing) => seen.push(missing) });
  await alter(db);
  await until(() => seen.length > 0 && seen.at(-1) === undefined);
  expect(seen[0]).toMatch(/api_keys|one_active_key_per_user/);
  await schema.stop();
  const { validator, validationLevel, validationAction } = (await db.listCollections().toArray())
    .filter(({ name }) => name === "api_keys")
    .map((collection) => (collection as { options: Record<string, unknown> }).options)[0]!;
  expect({ validator, level: validationLevel ?? "strict", action: validationAction ?? "error" }).toEqual({
    ...{ validator: VALIDATOR, level: "strict", action: "error" },
  });
  const [index] = (await db.collection("api_keys").indexes()).filter(({ name }) => name === ACTIVE);
  expect(index).toEqual({ v: 2, name: ACTIVE, ...UNIQUE_INDEXES[ACTIVE] });
});

test.each([
  [
    "a weaker index of the same name takes its place",
    /"one_active_key_per_user" is another than .*Look at db\.api_keys\.getIndexes/,
  ],
  [
    "an index on something else takes its place",
    /"one_active_key_per_user" is another than .*Look at db\.api_keys\.getIndexes/,
  ],
] as const)("what somebody else made is left alone, and named with what to do: %s", async (what, words) => {
  const db = await freshDb();
  const schema = await watchOf(db, { maxStalenessMs: 100 });
  await INTERFERENCES[what]!(db);
  await until(() => words.test(schema.missing() ?? ""));
  const before = await db.collection("api_keys").indexes();
  await db.collection("api_keys").dropIndex(ACTIVE);
  await until(() => schema.missing() === undefined);
  expect(before.find(({ name }) => name === ACTIVE)).not.toEqual({ v: 2, name: ACTIVE, ...UNIQUE_INDEXES[ACTIVE] });
  await schema.stop();
});

test("a collection that can't hold the promise whatever its indexes is named: a view, a capped one, one with a collation", async () => {
  for (const [options, words] of [
    [{ viewOn: "elsewhere", pipeline: [] }, /is a view, not a plain collection/],
    [{ capped: true, size: 4_096 }, /with capped/],
    [{ collation: { locale: "en", strength: 2 } }, /with collation/],
  ] as const) {
    const db = newDb();
    await db.createCollection("api_keys", options as never);
    const schema = await watchOf(db, { maxStalenessMs: 100 });
    await until(() => words.test(schema.missing() ?? ""));
    await expect(schema.confirm()).rejects.toMatchObject({ reason: "DB_INCOMPLETE" });
    await expect(ensureSchema(db)).rejects.toMatchObject({
      name: "StartupError",
      message: expect.stringMatching(words),
    });
    await schema.stop();
  }
});

test("records that are gone for good are made again, empty, after a time in which a restore may come; meanwhile no answer rests on there being none", async () => {
  const service = await start();
  const user = randomUUID();
  await service.client(user).create({ scopes: ["read"] });
  await recordsOf(service).drop();
  const admin = service.client(user, { admin: true });
  for (const call of [
    () => service.client(user).create({ scopes: ["read"] }),
    () => service.client(user).refresh({ scopes: ["read"] }),
    () => service.client(user).get({}),
    () => service.client(user).revoke({}),
    () => admin.get({ userId: randomUUID() }),
  ])
    expect(await refusalOf(call())).toMatchObject({ code: "Unavailable", reason: "DB_INCOMPLETE", retry: true });
  await untilLogged(service, "schema_incomplete");
  expect(await readyz(service)).toMatch(/api_keys" is gone: it was dropped or renamed\. Restore it/);
  await untilLogged(service, "schema_complete");
  expect(service.logs()).toContain("made again, empty");
  expect((await service.client(user).create({ scopes: ["read"] })).key).toMatch(/^lk_/);
}, 120_000);

test("where users have two active keys, the log and readiness say who and what to do; keys can be ended, and then the index is made again", async () => {
  const service = await start();
  const [alice, bob, carol] = ["alice", "bob", "carol"].map((name) => `${name} ${randomUUID()}`) as [
    string,
    string,
    string,
  ];
  const keys: string[] = [];
  for (const user of [alice, bob, carol]) keys.push((await service.client(user).create({ scopes: ["read"] })).key);
  const records = recordsOf(service);
  await records.dropIndex(ACTIVE);
  const seconds = await Promise.all(
    [alice, bob, carol].map(async (userId) => ({ ...(await records.findOne({ userId }))!, _id: newId() })),
  );
  await records.insertMany(seconds);
  await until(async () => (await readyz(service)).includes(alice));
  const text = await readyz(service);
  for (const { userId, _id } of seconds) {
    expect(text).toContain(`"${userId}" (`);
    expect(text).toContain(_id);
  }
  expect(text).toMatch(/Revoke all but one key of each: latchkey admin revoke KEY-ID/);
  expect(service.logs()).toMatch(/"event":"schema_incomplete".*"surplus":\[\{"index":"one_active_key_per_user"/);

  expect(await refusalOf(service.client().create({ scopes: ["read"] }))).toMatchObject({ reason: "DB_INCOMPLETE" });
  for (const key of keys) expect((await service.client().verify({ key })).outcome).toBe(Outcome.VALID);

  // By the user, by an admin for the user, and by an admin for one key.
  const { apiKey, alsoRevoked } = await service.client(alice).revoke({});
  const ids = (await records.find({ userId: alice }).toArray()).map(({ _id }) => _id);
  expect([apiKey!.id, ...alsoRevoked.map(({ id }) => id)].sort()).toEqual(ids.sort());
  const admin = createLatchkeyAdminClient({
    baseUrl: service.baseUrl,
    token: () => userToken("root", { admin: true }),
  });
  expect((await admin.revokeUser({ userId: bob })).apiKeys).toHaveLength(2);
  expect((await admin.revokeKey({ keyId: seconds[2]!._id })).apiKey?.id).toBe(seconds[2]!._id);
  expect(await records.countDocuments({ state: "active" })).toBe(1);

  await until(async () => (await readyz(service)).includes("[+] schema: ok"));
  expect((await service.client().verify({ key: keys[2]! })).outcome).toBe(Outcome.VALID);
  expect((await service.client(alice).create({ scopes: ["read"] })).key).toMatch(/^lk_/);
  expect(await refusalOf(service.client(carol).create({ scopes: ["read"] }))).toMatchObject({ reason: "KEY_EXISTS" });
}, 120_000);

test("Verify goes on from the records while an index is lost, and by those that were put in place of others", async () => {
  const service = await start();
  const user = randomUUID();
  const { key } = await service.client(user).create({ scopes: ["read"] });
  const ask = async () => (await service.client().verify({ key })).outcome;
  expect(await ask()).toBe(Outcome.VALID);
  const db = mongo.db(service.database);
  await db.command({ dropIndexes: "api_keys", index: "*" });
  expect(await ask()).toBe(Outcome.VALID);
  // As `$out`, or a tool that loads beside and renames: no record of it is told by an event of its own.
  await db
    .collection("api_keys")
    .aggregate([{ $set: { state: "revoked", revokedAt: new Date() } }, { $out: "restored" }])
    .toArray();
  await db.collection("restored").rename("api_keys", { dropTarget: true });
  await until(async () => (await ask()) === Outcome.REVOKED);
  await recordsOf(service).updateOne(
    { userId: user },
    { $set: { state: "active" }, $unset: { revokedAt: "" }, $inc: { rev: 1 } },
  );
  await until(async () => (await ask()) === Outcome.VALID);
});

test("while there is no collection of records, a key that is not in memory is not called unknown: a restore may bring it back", async () => {
  const service = await start();
  const { key } = await service.client(randomUUID()).create({ scopes: ["read"] });
  const ask = (consistency = Consistency.UNSPECIFIED) => service.client().verify({ key, consistency });
  const kept = await recordsOf(service).find().toArray();
  await recordsOf(service).drop();
  await until(async () => (await readyz(service)).includes("[-] schema"));
  await until(() =>
    ask().then(
      () => false,
      () => true,
    ),
  );
  for (const consistency of [Consistency.UNSPECIFIED, Consistency.STRONG])
    expect(await refusalOf(ask(consistency))).toMatchObject({
      code: "Unavailable",
      reason: "DB_INCOMPLETE",
      retry: true,
    });
  await recordsOf(service).insertMany(kept);
  await until(async () => (await readyz(service)).includes("[+] schema"));
  expect((await ask()).outcome).toBe(Outcome.VALID);
  // Once there is a collection, and be it one that was made again empty, what it lacks is unknown.
  await recordsOf(service).deleteMany({});
  await until(async () => (await ask()).outcome === Outcome.NOT_FOUND);
});

test("an older release's validation is replaced, and a newer one's is left alone", async () => {
  const db = await freshDb();
  const validatorOf = (version: number) => ({
    $jsonSchema: { ...VALIDATOR.$jsonSchema, description: `Latchkey's records, version ${version}`, required: ["_id"] },
  });
  await db.command({ collMod: "api_keys", validator: validatorOf(SCHEMA_VERSION + 1) });
  const schema = await watchOf(db, { maxStalenessMs: 100 });
  expect(schema.missing()).toBeUndefined();
  await ensureSchema(db);
  expect((await db.collection("api_keys").options()).validator).toEqual(validatorOf(SCHEMA_VERSION + 1));
  await db.command({ collMod: "api_keys", validator: validatorOf(SCHEMA_VERSION - 1) });
  await until(async () => (await db.collection("api_keys").options()).validator.$jsonSchema.required.length > 1);
  await schema.stop();
});

test("whoever changes the validation or a unique index of the records gives them another version", () => {
  const text = JSON.stringify([{ ...VALIDATOR.$jsonSchema, description: "" }, UNIQUE_INDEXES]);
  expect([SCHEMA_VERSION, createHash("sha256").update(text).digest("hex").slice(0, 16)]).toEqual([
    2,
    "afed6433288a0ba4",
  ]);
});
