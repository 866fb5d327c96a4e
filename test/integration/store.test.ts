import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, beforeEach, expect, test } from "@jest/globals";
import { type Collection, type Db, MongoClient } from "mongodb";
import { KeyError } from "../../src/keys/errors.ts";
import type { KeyStore } from "../../src/keys/ports.ts";
import type { KeyRecord } from "../../src/keys/record.ts";
import { createView } from "../../src/keys/verify/view.ts";
import { createClusterTime } from "../../src/mongo/cluster-time.ts";
import { type Connection, connect } from "../../src/mongo/connection.ts";
import { createKeyStore } from "../../src/mongo/key-store.ts";
import { ensureSchema } from "../../src/mongo/schema.ts";
import type { SchemaCheck, SchemaWatch } from "../../src/mongo/schema-watch.ts";
import { SERVER_CODES } from "../../src/mongo/server-errors.ts";
import { startProxy } from "../support/cuttable-proxy.ts";
import { keyStoreSuite } from "../support/key-store-suite.ts";
import { interposed, noSecretChecks, type Step, watchOf } from "../support/schemas.ts";

function storeIn(client: MongoClient, database: string, schema: SchemaCheck): KeyStore {
  const view = createView({ maxKeys: 10 });
  const parts = { client, database, clusterTime: createClusterTime(), view, schema, secretChecks: noSecretChecks };
  return createKeyStore({ ...parts, clock: () => new Date() });
}

let connection: Connection;
let mongo: MongoClient;
let db: Db;
let stored: Collection<{ _id: string; userId: string; state: string; rev: number }>;
let store: KeyStore;
let schema: SchemaWatch;
beforeAll(async () => {
  connection = await connect(process.env.TEST_MONGODB_URI!);
  mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  const name = `test-${randomUUID()}`;
  db = mongo.db(name);
  await ensureSchema(db);
  stored = db.collection("api_keys");
  schema = await watchOf(connection.client.db(name));
  store = storeIn(connection.client, name, schema);
});
afterAll(async () => {
  await schema.stop();
  await connection.close();
  await mongo.close();
});

let user: string;
beforeEach(() => {
  user = randomUUID();
});
const inMs = (ms: number) => performance.now() + ms;
const newId = () => randomUUID().replaceAll("-", "").slice(0, 16);
const record = (fields: Partial<KeyRecord> = {}): KeyRecord => ({
  ...{ id: newId(), userId: user, prefix: "lk", scopes: ["read"], state: "active", createdAt: new Date(), rev: 1 },
  ...{ secretHash: "$argon2id$", fingerprint: { pepper: "p1", mac: Buffer.alloc(32, 1) } },
  ...fields,
});
const add = async (fields?: Partial<KeyRecord>) => {
  const insert = record(fields);
  return store.change(user, inMs(10_000), () => ({ update: [], insert, answer: insert }));
};
const refusal = (call: Promise<unknown>) =>
  call.then(
    () => Promise.reject(new Error("it was not refused")),
    (error: unknown) => {
      expect(error).toBeInstanceOf(KeyError);
      return error as KeyError;
    },
  );
const states = async () => (await stored.find({ userId: user }).toArray()).map(({ state }) => state).sort();

keyStoreSuite(() => store);

test("what is written is read back as it was, absent fields absent", async () => {
  const expiresAt = new Date(Date.now() + 60_000);
  const written = await add({ name: "laptop", expiresAt });
  expect(await store.findCurrent(user, inMs(10_000))).toEqual({ active: written, retiring: undefined });
  expect(Object.keys((await stored.findOne({ _id: written.id }))!)).not.toContain("retiresAt");
});

test("a second key of one request is never left, and another user's is another request", async () => {
  const request = { id: "r".repeat(43), arguments: "a".repeat(43), ringId: "r1" };
  const first = await add({ request, state: "revoked" });
  expect((await store.findRequested(user, request.id, inMs(10_000)))?.record).toEqual(first);
  const insert = record({ request, state: "revoked" });
  const again = store.change(user, inMs(3_000), () => ({ update: [], insert, answer: insert }));
  expect((await refusal(again)).reason).toBe("CONFLICT");
  expect(await store.findRequested(randomUUID(), request.id, inMs(10_000))).toBeUndefined();
  user = randomUUID();
  await add({ request, state: "revoked" });
});

test("a second active key is never left, whatever the change asks for: it ends as CONFLICT, and nothing of it is written", async () => {
  await add();
  const { reason, retryAfterMs } = await refusal(
    store.change(user, inMs(3_000), () => ({ update: [], insert: record(), answer: undefined })),
  );
  expect({ reason, again: retryAfterMs !== undefined }).toEqual({ reason: "CONFLICT", again: true });
  expect(await states()).toEqual(["active"]);
});

test("a change that was decided on a record which another has changed since is decided again", async () => {
  const first = await add();
  let decided = 0;
  await store.change(user, inMs(10_000), ({ active }) => {
    decided += 1;
    const stale = decided === 1 ? { ...active!, rev: active!.rev + 1 } : active!;
    return { update: [{ ...stale, state: "revoked" as const, revokedAt: new Date() }], insert: record(), answer: 0 };
  });
  expect(decided).toBe(2);
  expect(await states()).toEqual(["active", "revoked"]);
  expect((await stored.findOne({ _id: first.id }))?.rev).toBe(2);
});

test("a change is all or nothing: where the insert is refused, the update before it is not made", async () => {
  const first = await add();
  const error = await refusal(
    store.change(user, inMs(10_000), () => ({
      update: [{ ...first, state: "revoked" as const, revokedAt: new Date() }],
      insert: record({ prefix: "" }),
      answer: undefined,
    })),
  );
  expect(error).toMatchObject({ reason: "DB_ERROR", message: "The database refused the operation." });
  expect(error.cause).toMatchObject({ code: SERVER_CODES.DB_ERROR.DocumentValidationFailure });
  expect(await states()).toEqual(["active"]);
});

test("a call whose deadline has passed is DEADLINE_EXCEEDED, is decided never, and writes nothing", async () => {
  let decided = 0;
  const change = store.change(user, inMs(-1), () => {
    decided += 1;
    return { update: [], insert: record(), answer: undefined };
  });
  expect((await refusal(change)).reason).toBe("DEADLINE_EXCEEDED");
  expect((await refusal(store.findCurrent(user, inMs(-1)))).reason).toBe("DEADLINE_EXCEEDED");
  expect({ decided, states: await states() }).toEqual({ decided: 0, states: [] });
});

test("a deadline that passes while the change is decided leaves nothing written", async () => {
  const late = store.change(user, inMs(200), () => {
    const until = inMs(400);
    while (performance.now() < until);
    return { update: [], insert: record(), answer: undefined };
  });
  expect((await refusal(late)).reason).toBe("DEADLINE_EXCEEDED");
  expect(await states()).toEqual([]);
});

test("a fingerprint is replaced unless another change came between", async () => {
  const first = await add();
  const fingerprint = { pepper: "p2", mac: Buffer.alloc(32, 2) };
  await store.setFingerprint({ ...first, rev: 7 }, fingerprint, inMs(10_000));
  expect((await store.findCurrent(user, inMs(10_000))).active).toEqual(first);
  await store.setFingerprint(first, fingerprint, inMs(10_000));
  expect((await store.findCurrent(user, inMs(10_000))).active).toEqual({ ...first, fingerprint, rev: 2 });
});

test("without a server to ask, every call is DB_UNAVAILABLE and may be repeated", async () => {
  const calls: ((away: KeyStore) => Promise<unknown>)[] = [
    (away) => away.findCurrent(user, inMs(10_000)),
    (away) => away.change(user, inMs(10_000), () => ({ update: [], answer: undefined })),
    (away) => away.setFingerprint(record(), { pepper: "p", mac: Buffer.alloc(32) }, inMs(10_000)),
  ];
  for (const call of calls) {
    const client = new MongoClient("mongodb://127.0.0.1:1/?replicaSet=none", { serverSelectionTimeoutMS: 100 });
    expect(await refusal(call(storeIn(client, "none", schema)))).toMatchObject({
      reason: "DB_UNAVAILABLE",
      retryAfterMs: expect.any(Number),
    });
    await client.close();
  }
});

test("a call whose client is closed while it looks for a server is DB_UNAVAILABLE and may be repeated", async () => {
  const client = new MongoClient("mongodb://127.0.0.1:1/?replicaSet=none", { serverSelectionTimeoutMS: 20_000 });
  const searching = new Promise((resolve) => client.once("serverHeartbeatFailed", resolve));
  const call = refusal(storeIn(client, "none", schema).findCurrent(user, inMs(20_000)));
  await searching;
  await client.close();
  const { reason, retryAfterMs, cause } = await call;
  expect({ reason, retryAfterMs }).toEqual({ reason: "DB_UNAVAILABLE", retryAfterMs: expect.any(Number) });
  expect(cause).toMatchObject({ name: "MongoTopologyClosedError" });
});

test("where the connection has gone silent a call ends at its deadline: DEADLINE_EXCEEDED, or DB_UNAVAILABLE once it may have been committed", async () => {
  const there = new URL(process.env.TEST_MONGODB_URI!);
  const proxy = await startProxy(there.host);
  const uri = Object.assign(new URL(there), { host: proxy.address });
  uri.searchParams.delete("replicaSet");
  uri.searchParams.set("directConnection", "true");
  const client = await MongoClient.connect(uri.href);
  let silentAt: Step | undefined;
  const stepwise = interposed(client, "api_keys", async (step) => {
    if (step === silentAt) proxy.blackHole(true);
  });
  const away = storeIn(stepwise, db.databaseName, schema);
  const change = () => away.change(user, inMs(4_000), () => ({ update: [], insert: record(), answer: undefined }));
  for (const [step, reason] of [
    ["before", "DEADLINE_EXCEEDED"],
    ["insert", "DEADLINE_EXCEEDED"],
    ["written", "DB_UNAVAILABLE"],
  ] as const) {
    // After a silence the driver first has to find the server again.
    await away.findCurrent(user, inMs(60_000)).catch(() => away.findCurrent(user, inMs(60_000)));
    silentAt = step;
    expect((await refusal(change())).reason).toBe(reason);
    user = randomUUID();
    const reads = [away.findCurrent(user, inMs(500)), away.findById(newId(), inMs(500))];
    for (const read of reads) expect((await refusal(read)).reason).toBe("DEADLINE_EXCEEDED");
    silentAt = undefined;
    proxy.blackHole(false);
  }
  await client.close();
  await proxy.close();
}, 120_000);

test("a collection made before its validation gets it, and what is in it stays", async () => {
  const earlier = mongo.db(`test-${randomUUID()}`);
  const collection = earlier.collection<{ _id: string; userId: string }>("api_keys");
  await collection.insertOne({ _id: "earlier", userId: "alice" });
  await ensureSchema(earlier);
  await expect(collection.insertOne({ _id: "later", userId: "alice" })).rejects.toThrow(/validation/);
  expect(await collection.countDocuments()).toBe(1);
});

test("where a user already has two active keys, the start says so and changes neither", async () => {
  const earlier = mongo.db(`test-${randomUUID()}`);
  const collection = earlier.collection<{ _id: string; userId: string; state: string }>("api_keys");
  await collection.insertMany(["a", "b"].map((_id) => ({ _id, userId: "alice", state: "active" })));
  await collection.insertOne({ _id: "c", userId: "bob", state: "active" });
  await expect(ensureSchema(earlier)).rejects.toMatchObject({
    name: "StartupError",
    message: expect.stringMatching(
      /"one_active_key_per_user" can't be built: .* already has two such keys: "alice" \(a, b\)\. Revoke all but one/,
    ),
  });
  expect(await collection.countDocuments({ state: "active" })).toBe(3);
});
