import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, expect, jest, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { ApiKeyService, KeyWithheld, Outcome, State } from "#gen/latchkey/v1/api_key_service_pb";
import { parseAnyKey } from "../../src/keys/text.ts";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService, userToken } from "../support/service.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";

jest.setTimeout(120_000);

const ring = (...keys: [string, number][]) =>
  keys.map(([id, fill]) => `${id}:${Buffer.alloc(32, fill).toString("base64")}`).join(",");
const REQUEST_KEYS = ring(["r1", 1]);
const DAY_MS = 86_400_000;

// The tests' user tokens expire by the real clock.
let now = new Date();
let mongo: MongoClient;
let service: TestService;
const started: TestService[] = [];
const start = async (env: Record<string, string> = {}) => {
  const one = await startService({ env: { LATCHKEY_REQUEST_KEYS: REQUEST_KEYS, ...env }, clock: () => now });
  started.push(one);
  return one;
};
/** Another process of the same service. */
const beside = (env: Record<string, string> = {}) => start({ MONGODB_DATABASE: service.database, ...env });
beforeAll(async () => {
  mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  service = await start();
});
afterAll(async () => {
  await Promise.all(started.map((one) => one.stop()));
  await mongo.close();
});
const recordsOf = (userId: string) =>
  mongo.db(service.database).collection<{ _id: string }>("api_keys").find({ userId }).toArray();
const secretOf = (key: string) => parseAnyKey(key)!.secret;

const hashesOf = async ({ server }: TestService) => {
  const text = await (await fetch(`http://${server.opsAddress}/metrics`)).text();
  return Number(/^latchkey_hash_runs_total (\d+)/m.exec(text)![1]);
};

/** As a client does: a call that may be repeated, or was too late, is made again. */
async function insist<T>(call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      const { retry, code } = await refusalOf(Promise.reject(error));
      if (!retry && code !== "DeadlineExceeded") throw error;
    }
  }
}

test.each(["create", "refresh"] as const)(
  "a %s whose connection was cut between the commit and the answer is repeated with the same id, elsewhere too, and the key is not lost",
  async (method) => {
    const user = randomUUID();
    const request = { scopes: ["read"], requestId: randomUUID() };
    if (method === "refresh") await service.client(user).create({ scopes: ["read"] });
    const before = (await recordsOf(user)).length;
    const proxy = await startTcpProxy({ to: Number(service.server.address.split(":")[1]) });
    proxy.set({ blackHole: "toClient" });
    const authorization = `Bearer ${await userToken(user)}`;
    const cut = createClient(
      ApiKeyService,
      createConnectTransport({ baseUrl: `http://127.0.0.1:${proxy.port}`, httpVersion: "1.1" }),
    );
    const lost = refusalOf(cut[method](request, { headers: { authorization } }));
    while ((await recordsOf(user)).length === before) await sleep(20);
    proxy.set({ cut: true });
    expect((await lost).reason).toBeUndefined();
    const client = (await beside()).client(user);
    const { key, apiKey, isRepeat } = await client[method](request);
    expect(isRepeat).toBe(true);
    expect(await recordsOf(user)).toHaveLength(before + 1);
    expect((await client.verify({ key })).outcome).toBe(Outcome.VALID);
    expect(apiKey?.id).toBe(parseAnyKey(key)!.id);
    expect((await service.client(user)[method](request)).key).toBe(key);
    await proxy.close();
  },
);

test("a repeated refresh tells of the key that it replaced, as the first answer did", async () => {
  for (const gracePeriod of [{ seconds: 0n }, { seconds: 60n }]) {
    const client = service.client();
    await client.create({ scopes: ["read"] });
    const request = { requestId: randomUUID(), gracePeriod };
    const first = await client.refresh(request);
    expect(first.isRepeat).toBe(false);
    expect(await client.refresh(request)).toEqual({ ...first, isRepeat: true });
  }
});

test.each(["create", "refresh"] as const)(
  "of 16 equal calls of %s at once, through two processes, one makes the key and all have it",
  async (method) => {
    const user = randomUUID();
    const clients = [service.client(user), (await beside()).client(user)];
    const request = { scopes: ["read"], requestId: randomUUID() };
    const hashes = await hashesOf(service);
    const answers = await Promise.all(
      Array.from({ length: 16 }, (_, index) =>
        insist<{ key: string; isRepeat: boolean }>(() => clients[index % 2]![method](request)),
      ),
    );
    expect(new Set(answers.map(({ key }) => key)).size).toBe(1);
    // None, where a busy machine let the first answer come too late.
    expect(answers.filter(({ isRepeat }) => !isRepeat).length).toBeLessThanOrEqual(1);
    expect(await recordsOf(user)).toHaveLength(1);
    expect(await hashesOf(service)).toBeLessThanOrEqual(hashes + 3);
    expect((await clients[0]!.verify({ key: answers[0]!.key })).outcome).toBe(Outcome.VALID);
  },
);

test("a call that asks for anything else under a used id is REQUEST_ID_REUSED, and writes nothing", async () => {
  const user = randomUUID();
  const client = service.client(user);
  const request = { scopes: ["read"], name: "n", requestId: randomUUID() };
  const { apiKey } = await client.create(request);
  const reused = { code: "AlreadyExists", reason: "REQUEST_ID_REUSED", retry: false };
  const lifetime = { case: "ttl" as const, value: { seconds: 60n } };
  for (const other of [{ scopes: ["write"] }, { name: "m" }, { lifetime }, { scopes: ["NOT A SCOPE"] }]) {
    expect(await refusalOf(client.create({ ...request, ...other }))).toMatchObject(reused);
  }
  expect(await refusalOf(client.refresh(request))).toMatchObject(reused);
  expect((await recordsOf(user)).map(({ _id }) => _id)).toEqual([apiKey?.id]);
});

test("a repeat after the key was revoked or has expired tells its state, and no secret", async () => {
  const client = service.client();
  const request = { scopes: ["read"], requestId: randomUUID() };
  await client.create(request);
  await client.revoke({ reason: "lost" });
  const repeat = await client.create(request);
  expect(repeat).toMatchObject({ key: "", isRepeat: true, keyWithheld: KeyWithheld.ENDED });
  expect(repeat.apiKey).toMatchObject({ state: State.REVOKED, revocationReason: "lost" });

  const expiresAt = { seconds: BigInt(Math.floor(now.getTime() / 1_000) + 5), nanos: 0 };
  const brief = { ...request, requestId: randomUUID(), lifetime: { case: "expiresAt" as const, value: expiresAt } };
  const { key } = await client.create(brief);
  expect((await client.create(brief)).key).toBe(key);
  now = new Date(now.getTime() + 6_000);
  expect(await client.create(brief)).toMatchObject({ key: "", apiKey: { state: State.EXPIRED } });
});

test("after 24 hours an id may be used anew, and makes another key with another secret", async () => {
  const other = await startService({ env: { LATCHKEY_REQUEST_KEYS: REQUEST_KEYS }, clock: () => now });
  const requestId = randomUUID();
  const authorization = `Bearer ${await userToken("day", { ttlS: 10 * 86_400 })}`;
  const client = createClient(ApiKeyService, createConnectTransport({ baseUrl: other.baseUrl, httpVersion: "1.1" }));
  const headers = { headers: { authorization } };
  const records = mongo.db(other.database).collection("api_keys");
  const first = await client.create({ scopes: ["read"], requestId }, headers);
  now = new Date(now.getTime() + DAY_MS - 1);
  expect((await client.create({ scopes: ["read"], requestId }, headers)).key).toBe(first.key);
  now = new Date(now.getTime() + 1);
  expect(await refusalOf(client.create({ scopes: ["read"], requestId }, headers))).toMatchObject({
    reason: "KEY_EXISTS",
  });
  const request = { scopes: ["write"], requestId, gracePeriod: { seconds: 600n } };
  const second = await client.refresh(request, headers);
  expect(second.isRepeat).toBe(false);
  expect(secretOf(second.key)).not.toBe(secretOf(first.key));
  expect((await client.refresh(request, headers)).key).toBe(second.key);
  // Once more with the first key, that carries no request any more, retiring; and once with all of them revoked.
  now = new Date(now.getTime() + DAY_MS);
  const third = await client.refresh(request, headers);
  await client.revoke({}, headers);
  now = new Date(now.getTime() + DAY_MS);
  const fourth = await client.create({ scopes: ["read"], requestId }, headers);
  expect(new Set([first, second, third, fourth].map(({ key }) => secretOf(key))).size).toBe(4);
  expect(await records.countDocuments()).toBe(4);
  expect(await records.countDocuments({ request: { $exists: true } })).toBe(1);
  await other.stop();
  now = new Date();
});

test("ids are the owner's: equal ones of two users stand for two keys, and an admin's repeat for a user is that user's", async () => {
  const requestId = randomUUID();
  const request = { scopes: ["read"], requestId };
  const [alice, bob] = [randomUUID(), randomUUID()];
  const mine = await service.client(alice).create(request);
  const theirs = await service.client(bob).create(request);
  expect(theirs.isRepeat).toBe(false);
  expect(secretOf(theirs.key)).not.toBe(secretOf(mine.key));
  const admin = service.client(randomUUID(), { admin: true });
  expect((await admin.create({ ...request, userId: alice })).key).toBe(mine.key);
  expect(await refusalOf(service.client(bob).create({ ...request, userId: alice }))).toMatchObject({
    reason: "ADMIN_REQUIRED",
  });
});

test("a bad id is told with all other bad fields; without request keys any id is REQUEST_ID_UNSUPPORTED", async () => {
  for (const requestId of ["", "x".repeat(21), "x".repeat(65), "x".repeat(22).replace("x", "/")]) {
    const refusal = await refusalOf(service.client().create({ scopes: ["Read"], requestId }));
    expect(refusal).toMatchObject({ reason: "INVALID_ARGUMENT", fields: ["request_id", "scopes[0]"] });
  }
  const without = await startService();
  started.push(without);
  const client = without.client();
  const refused = { code: "FailedPrecondition", reason: "REQUEST_ID_UNSUPPORTED", retry: false };
  for (const call of [client.create, client.refresh])
    expect(await refusalOf(call({ scopes: ["read"], requestId: randomUUID() }))).toMatchObject(refused);
  expect((await client.create({ scopes: ["read"] })).key).toMatch(/^lk_/);
});

test("the secret is told again while its request key is in the ring, and the key's record alone once it is not", async () => {
  const user = randomUUID();
  const request = { scopes: ["read"], requestId: randomUUID() };
  const { key } = await service.client(user).create(request);
  const rotated = await beside({ LATCHKEY_REQUEST_KEYS: ring(["r2", 2], ["r1", 1]) });
  expect((await rotated.client(user).create(request)).key).toBe(key);
  const repeat = await (await beside({ LATCHKEY_REQUEST_KEYS: ring(["r2", 2]) })).client(user).create(request);
  expect(repeat).toMatchObject({ key: "", isRepeat: true, keyWithheld: KeyWithheld.REQUEST_KEY_GONE });
  expect(repeat.apiKey).toMatchObject({ id: parseAnyKey(key)!.id, state: State.ACTIVE });
});

test("neither the database nor the log holds a request id or what is derived from it", async () => {
  const user = randomUUID();
  const requestId = randomUUID();
  const client = service.client(user);
  const { key } = await client.create({ scopes: ["read"], requestId });
  await client.create({ scopes: ["read"], requestId }, { headers: { "x-request-id": requestId } });
  await refusalOf(client.create({ scopes: ["write"], requestId }));
  const misspelt = await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/Create`, {
    ...{ method: "POST", body: JSON.stringify({ scopes: ["read"], tll: "60s", requestId }) },
    headers: {
      ...{ authorization: `Bearer ${await userToken(user)}`, "content-type": "application/json" },
      "x-request-id": requestId,
    },
  });
  expect(misspelt.status).toBe(400);
  const collections = await mongo.db(service.database).collections();
  const stored = JSON.stringify(await Promise.all(collections.map((one) => one.find().toArray())));
  expect(stored).toContain(user);
  for (const text of [stored, service.logs()]) {
    expect(text).not.toContain(requestId);
    expect(text).not.toContain(secretOf(key));
    expect(text).not.toContain(Buffer.alloc(32, 1).toString("base64"));
  }
});

test("no change of a user's keys, with a request id or without, scans the keys of others", async () => {
  const db = mongo.db(service.database);
  await db.command({ profile: 2 });
  const client = service.client();
  await client.create({ scopes: ["read"], requestId: randomUUID() });
  await client.refresh({ requestId: randomUUID() });
  await client.refresh({});
  await client.revoke({});
  await db.command({ profile: 0 });
  const plans = await db
    .collection("system.profile")
    .find({ ns: `${service.database}.api_keys`, planSummary: { $exists: true } })
    .map(({ planSummary }) => String(planSummary))
    .toArray();
  expect(plans.length).toBeGreaterThan(4);
  expect(plans.filter((plan) => plan.includes("COLLSCAN"))).toEqual([]);
});
