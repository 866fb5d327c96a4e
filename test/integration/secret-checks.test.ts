import { randomUUID } from "node:crypto";
import { afterAll, afterEach, beforeAll, expect, test } from "@jest/globals";
import { Binary, MongoClient } from "mongodb";
import { Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { checkValue } from "../../src/mongo/secret-checks.ts";
import { refusalOf } from "../support/errors.ts";
import { runToEnd, stopProcesses } from "../support/process.ts";
import { JWT_SECRET, startService, type TestService } from "../support/service.ts";

let mongo: MongoClient;
const services: TestService[] = [];
beforeAll(async () => {
  mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
});
afterEach(async () => {
  await Promise.all(services.splice(0).map((service) => service.stop()));
  await stopProcesses();
});
afterAll(() => mongo.close());

const secretOf = (byte: number) => Buffer.alloc(32, byte).toString("base64");
const start = async (database: string, env: Record<string, string>) => {
  const service = await startService({ env: { MONGODB_DATABASE: database, ...env } });
  services.push(service);
  return service;
};
const newDatabase = () => `test-${randomUUID()}`;
const requestId = () => randomUUID();

test.each([
  ["LATCHKEY_PEPPERS", /The pepper "p2".*is another than .*latchkey peppers --forget p2$/],
  ["LATCHKEY_REQUEST_KEYS", /The request key "p2".*is another than .*latchkey peppers --forget-request-key p2$/],
])(
  "a start with another secret under a known id of %s is refused, naming the id and no secret",
  async (variable, words) => {
    const database = newDatabase();
    await start(database, { [variable]: `p1:${secretOf(1)},p2:${secretOf(2)}` });
    const another = start(database, { [variable]: `p1:${secretOf(1)},p2:${secretOf(3)}` });
    await expect(another).rejects.toMatchObject({ name: "StartupError", message: expect.stringMatching(words) });
    const message = await another.catch((error: Error) => error.message);
    for (const byte of [1, 2, 3]) expect(message).not.toContain(secretOf(byte));
    expect(message).not.toContain('"p1"');
    // In whatever order, with others, and as a new one under an id of its own.
    await start(database, { [variable]: `p3:${secretOf(3)},p2:${secretOf(2)},p1:${secretOf(1)}` });
    await start(database, { [variable]: `p1:${secretOf(1)}` });
  },
);

test("of two first starts at once with different secrets under one id, one is refused", async () => {
  const database = newDatabase();
  const starts = [1, 2].map((byte) => start(database, { LATCHKEY_PEPPERS: `p1:${secretOf(byte)}` }));
  const results = await Promise.allSettled(starts);
  expect(results.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
});

test("a process asks again before it makes its first key with the front entry of a ring, and makes none where it is another", async () => {
  const database = newDatabase();
  const env = { LATCHKEY_PEPPERS: `p1:${secretOf(1)}`, LATCHKEY_REQUEST_KEYS: `r1:${secretOf(2)}` };
  const used = await start(database, env);
  expect((await used.client().create({ scopes: ["read"] })).key).toMatch(/^lk_/);
  const checks = mongo.db(database).collection<{ _id: string; check: Binary }>("secret_checks");
  const replace = (kind: "pepper" | "request key", id: string, byte: number) => {
    const check = new Binary(checkValue({ kind, id, secret: Buffer.alloc(32, byte) }));
    return checks.updateOne({ _id: `${kind} ${id}` }, { $set: { check } });
  };
  const unused = await start(database, env);
  for (const [kind, id, byte, fields] of [
    ["pepper", "p1", 1, {}],
    ["request key", "r1", 2, { requestId: requestId() }],
  ] as const) {
    await replace(kind, id, 9);
    const user = randomUUID();
    const refused = await refusalOf(unused.client(user).create({ scopes: ["read"], ...fields }));
    expect(refused).toMatchObject({ code: "Internal", reason: "INTERNAL_ERROR" });
    expect(await mongo.db(database).collection("api_keys").countDocuments({ userId: user })).toBe(0);
    expect(unused.logs()).toContain(`The ${kind} \\"${id}\\"`);
    await replace(kind, id, byte);
    expect((await unused.client(user).create({ scopes: ["read"], ...fields })).key).toMatch(/^lk_/);
  }
});

test("latchkey peppers --forget is the way out of a lost pepper: another may take its id, and no key is lost", async () => {
  const database = newDatabase();
  const env = { LATCHKEY_PEPPERS: `p1:${secretOf(1)}`, LATCHKEY_REQUEST_KEYS: `r1:${secretOf(2)}` };
  const before = await start(database, env);
  const { key } = await before.client().create({ scopes: ["read"] });
  await Promise.all(services.splice(0).map((service) => service.stop()));
  const cli = {
    ...{ MONGODB_URI: process.env.TEST_MONGODB_URI!, MONGODB_DATABASE: database, LATCHKEY_JWT_SECRET: JWT_SECRET },
    ...{ LATCHKEY_PEPPERS: `p1:${secretOf(5)}`, LATCHKEY_REQUEST_KEYS: `r1:${secretOf(6)}` },
  };
  const unknown = await runToEnd(["peppers", "--forget", "p9"], cli);
  expect(unknown).toEqual({ code: 1, output: 'latchkey: The database knows no pepper "p9". Nothing was changed.' });
  const forgotten = await runToEnd(["peppers", "--forget", "p1"], cli);
  expect(forgotten).toMatchObject({ code: 0, output: expect.stringContaining("1 record(s) lost the fingerprint") });
  expect(await runToEnd(["peppers", "--forget-request-key", "r1"], cli)).toMatchObject({ code: 0 });
  const after = await start(database, {
    LATCHKEY_PEPPERS: cli.LATCHKEY_PEPPERS,
    LATCHKEY_REQUEST_KEYS: cli.LATCHKEY_REQUEST_KEYS,
  });
  expect((await after.client().verify({ key })).outcome).toBe(Outcome.VALID);
}, 120_000);
