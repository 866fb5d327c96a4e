import { randomUUID } from "node:crypto";
import { afterAll, afterEach, beforeAll, expect, test } from "@jest/globals";
import { MongoClient, type MongoServerError } from "mongodb";
import { MONGODB_ERROR_CODES } from "mongodb/lib/error.js";
import { Consistency } from "#gen/latchkey/v1/api_key_service_pb";
import type { KeyStore } from "../../src/keys/ports.ts";
import { createView } from "../../src/keys/verify/view.ts";
import { createClusterTime } from "../../src/mongo/cluster-time.ts";
import { type Connection, connect } from "../../src/mongo/connection.ts";
import { createKeyStore } from "../../src/mongo/key-store.ts";
import type { SchemaWatch } from "../../src/mongo/schema-watch.ts";
import { SERVER_CODES } from "../../src/mongo/server-errors.ts";
import { refusalOf } from "../support/errors.ts";
import { ask, untilGauge } from "../support/history.ts";
import { type ReplicaSet, startReplicaSet } from "../support/replica-set.ts";
import { noSecretChecks, watchOf } from "../support/schemas.ts";
import { startService, type TestService } from "../support/service.ts";

/** As the server says that it has too much to do, and did not begin. */
const OVERLOAD = ["SystemOverloadedError", "RetryableError"];
const RATE_LIMIT = SERVER_CODES.DB_UNAVAILABLE.IngressRequestRateLimitExceeded;

let set: ReplicaSet;
let mongo: MongoClient;
let service: TestService;
let connection: Connection;
let schema: SchemaWatch;

beforeAll(async () => {
  set = await startReplicaSet({ size: 1 });
  mongo = await MongoClient.connect(set.members[0]!.directUri);
  service = await startService({ env: { MONGODB_URI: set.uri, LATCHKEY_OUTAGE_GRACE: "24h" } });
  connection = await connect(set.uri);
  schema = await watchOf(connection.client.db(service.database));
  store = createKeyStore({
    ...{ schema, secretChecks: noSecretChecks },
    ...{ client: connection.client, database: service.database, clusterTime: createClusterTime() },
    ...{ view: createView({ maxKeys: 10 }), clock: () => new Date() },
  });
}, 120_000);
afterAll(async () => {
  await schema.stop();
  await connection.close();
  await service.stop();
  await mongo.close();
  await set.stop();
});
afterEach(() => failing("off"));

/** Of the service alone, commands fail so until they are told otherwise. */
async function failing(mode: "off" | "alwaysOn" | { times: number }, data: object = {}): Promise<void> {
  const failPoint = { configureFailPoint: "failCommand", mode, data: { appName: "latchkey", ...data } };
  await mongo.db("admin").command(failPoint);
}

const refuse = (
  failCommands: string[],
  errorLabels: string[] = OVERLOAD,
  mode: "alwaysOn" | { times: number } = "alwaysOn",
) => failing(mode, { failCommands, errorCode: RATE_LIMIT, errorLabels });

let store: KeyStore;

/** Makes a key in the store itself, so that only the store's own deadline is at work. */
async function create(withinMs: number, userId: string = randomUUID()): Promise<void> {
  const made = { id: newId(), userId, prefix: "lk", scopes: ["read"], state: "active" as const, createdAt: new Date() };
  const insert = { ...made, secretHash: "$argon2id$", fingerprint: { pepper: "p1", mac: Buffer.alloc(32) }, rev: 1 };
  await store.change(userId, performance.now() + withinMs, () => ({ update: [], insert, answer: undefined }));
}

const newId = () => randomUUID().replaceAll("-", "").slice(0, 16);

const keysOf = (user: string) => mongo.db(service.database).collection("api_keys").find({ userId: user }).toArray();

test("what MongoDB refuses for overload before it begins is OVERLOADED with RetryInfo: a Get, a Create, a Refresh, a Revoke", async () => {
  const user = randomUUID();
  const client = service.client(user);
  await client.create({ scopes: ["read"] });
  const overloaded = { code: "ResourceExhausted", reason: "OVERLOADED", retry: true };
  await refuse(["find"]);
  expect(await refusalOf(client.get({}))).toMatchObject(overloaded);
  expect(await refusalOf(service.client().create({ scopes: ["read"] }))).toMatchObject(overloaded);
  for (const command of ["find", "update", "insert"]) {
    await refuse([command]);
    expect(await refusalOf(client.refresh({}))).toMatchObject(overloaded);
  }
  await refuse(["find"], ["SystemOverloadedError", "NoWritesPerformed"]);
  expect(await refusalOf(client.revoke({}))).toMatchObject(overloaded);
  await failing("off");
  expect((await keysOf(user)).map(({ state }) => state)).toEqual(["active"]);
});

test("an overload that does not say that nothing was done is DB_UNAVAILABLE", async () => {
  await refuse(["find"], ["SystemOverloadedError"]);
  expect(await refusalOf(service.client().get({}))).toMatchObject({
    code: "Unavailable",
    reason: "DB_UNAVAILABLE",
    retry: true,
  });
});

test("a change that is refused for overload is tried again, its commit too", async () => {
  for (const [command, times] of [
    ["insert", 2],
    ["commitTransaction", 5],
  ] as const) {
    await refuse([command], OVERLOAD, { times });
    await create(30_000);
    await failing("off");
  }
});

test("a commit that is refused until the deadline may have been made for all that callers know: never OVERLOADED", async () => {
  await refuse(["commitTransaction"]);
  const user = randomUUID();
  await expect(create(500, user)).rejects.toMatchObject({ reason: "DB_UNAVAILABLE", retryAfterMs: 1_000 });
  await failing("off");
  // What was left open holds up nobody.
  await create(30_000, user);
  expect(await keysOf(user)).toHaveLength(1);
});

test("a commit that was made, but whose answer bears the labels of overload, is not told as undone", async () => {
  const user = randomUUID();
  const writeConcernError = { code: SERVER_CODES.DB_UNAVAILABLE.WriteConcernTimeout, errmsg: "waiting" };
  await failing("alwaysOn", { failCommands: ["commitTransaction"], writeConcernError, errorLabels: OVERLOAD });
  await expect(create(500, user)).rejects.toMatchObject({
    reason: "DB_UNAVAILABLE",
    message: expect.stringContaining("A change may still have been made."),
  });
  expect(await keysOf(user)).toHaveLength(1);
});

test("a transaction that the server gives up again and again is not called a conflict with other changes", async () => {
  const errorCode = SERVER_CODES.DB_UNAVAILABLE.LockTimeout;
  await failing("alwaysOn", { failCommands: ["insert"], errorCode, errorLabels: ["TransientTransactionError"] });
  await expect(create(2_000)).rejects.toMatchObject({ reason: "DB_UNAVAILABLE", retryAfterMs: 1_000 });
});

test("Verify answers from memory while reads are refused for overload, and OVERLOADED where it has no answer", async () => {
  const other = await startService({ env: { MONGODB_URI: set.uri, MONGODB_DATABASE: service.database } });
  const { key } = await other.client().create({ scopes: ["read"] });
  const { key: unread } = await other.client().create({ scopes: ["read"] });
  await other.stop();
  const anyone = service.client();
  expect((await ask(anyone, key)).outcome).toBe("VALID");
  await refuse(["find", "update", "getMore", "aggregate"]);
  const overloaded = { code: "ResourceExhausted", reason: "OVERLOADED", retry: true };
  expect(await refusalOf(anyone.verify({ key: unread }))).toMatchObject(overloaded);
  expect(await refusalOf(anyone.verify({ key: unread, consistency: Consistency.STRONG }))).toMatchObject(overloaded);
  await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 0);
  expect((await ask(anyone, key)).outcome).toBe("VALID");
  await failing("off");
  await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 1);
  expect((await ask(anyone, unread)).outcome).toBe("VALID");
}, 120_000);

/** Not to be had from a fail point: they say more than a code. */
const NOT_FEIGNED = ["DuplicateKey", "DocumentValidationFailure", "StaleDbVersion"];

test("each code of the table has the name that the server gives it, where its release knows it", async () => {
  const asker = await MongoClient.connect(`${set.members[0]!.directUri}&appName=asker&minHeartbeatFrequencyMS=20`);
  // Those that the driver acts upon have its names: see the unit test.
  const actedOn = new Set<number>(Object.values(MONGODB_ERROR_CODES));
  const codes = Object.values(SERVER_CODES)
    .flatMap((named) => Object.entries(named))
    .filter(([name, code]) => !actedOn.has(code) && !NOT_FEIGNED.includes(name));
  const [given, expected]: Record<string, string>[] = [{}, {}];
  for (const [name, errorCode] of codes) {
    await failing({ times: 1 }, { failCommands: ["count"], errorCode, appName: "asker" });
    const error = await asker
      .db("admin")
      .command({ count: "any" })
      .catch((thrown: unknown) => thrown);
    const { codeName } = error as MongoServerError;
    given![name] = codeName ?? String(error);
    expected![name] = codeName === `Location${errorCode}` ? codeName : name;
  }
  await asker.close();
  expect(given).toEqual(expected);
  expect(Object.values(given!).filter((name) => !name.startsWith("Location")).length).toBeGreaterThan(25);
}, 120_000);
