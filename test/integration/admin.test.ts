import { randomUUID } from "node:crypto";
import { toBinary } from "@bufbuild/protobuf";
import { type Client, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, expect, jest, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { AdminService, ListKeysResponseSchema } from "#gen/latchkey/v1/admin_service_pb";
import { type ApiKey, KeyChangeKind, Outcome, State } from "#gen/latchkey/v1/api_key_service_pb";
import { createLatchkeyAdminClient } from "../../src/client/index.ts";
import { formatKey, parseAnyKey } from "../../src/keys/text.ts";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

jest.setTimeout(120_000);

const DAY_MS = 86_400_000;
// The tests' user tokens expire by the real clock.
let now = new Date();
let mongo: MongoClient;
let service: TestService;
let admin: Client<typeof AdminService>;
const started: TestService[] = [];
const start = async (env: Record<string, string> = {}, clock = () => now) => {
  const one = await startService({ env, clock });
  started.push(one);
  return one;
};
const adminOf = (one: TestService) =>
  createLatchkeyAdminClient({
    baseUrl: one.baseUrl,
    token: () => userToken("root", { admin: true }),
    timeoutMs: 10_000,
  });
beforeAll(async () => {
  mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  service = await start();
  admin = adminOf(service);
});
afterAll(async () => {
  await Promise.all(started.map((one) => one.stop()));
  await mongo.close();
});
const ids = (keys: ApiKey[]) => keys.map(({ id }) => id).sort();
const verify = async (key: string) => (await service.client().verify({ key })).outcome;

test("every method is for admins alone, and says nothing of its fields to others", async () => {
  const plain = createClient(AdminService, createConnectTransport({ baseUrl: service.baseUrl, httpVersion: "1.1" }));
  const member = { headers: { authorization: `Bearer ${await userToken("member")}` } };
  const { key } = await service.client().create({ scopes: ["read"] });
  const calls = [
    plain.listKeys,
    plain.getKey,
    plain.revokeKey,
    plain.revokeByPresentedKey,
    plain.revokeUser,
    plain.listAudit,
  ];
  expect(calls).toHaveLength(AdminService.methods.length);
  for (const call of calls as ((request: object, options?: object) => Promise<unknown>)[]) {
    expect(await refusalOf(call({ pageSize: -1, key, reason: "superseded" }, member))).toMatchObject({
      code: "PermissionDenied",
      reason: "ADMIN_REQUIRED",
      fields: [],
    });
    expect(await refusalOf(call({}))).toMatchObject({ reason: "UNAUTHENTICATED" });
    const byKey = { headers: { authorization: `Bearer ${key}` } };
    expect(await refusalOf(call({}, byKey))).toMatchObject({ reason: "API_KEY_NOT_ALLOWED" });
  }
  expect(await verify(key)).toBe(Outcome.VALID);
});

test("keys are found by user, by state at this moment, by what is shown of them and by a part of their name, and in pages", async () => {
  const user = randomUUID();
  const client = service.client(user);
  const mark = randomUUID();
  const grace = { gracePeriod: { seconds: 60n } };
  const one = await client.create({ scopes: ["read"], name: `${mark} First (.*)` });
  const two = await client.refresh({ name: `${mark} second` });
  const three = await client.refresh({ name: `${mark} third`, ...grace });
  const brief = await service
    .client()
    .create({ scopes: ["read"], name: `${mark} brief`, lifetime: { case: "ttl", value: { seconds: 30n } } });
  const all = ids([one, two, three, brief].map(({ apiKey }) => apiKey!));
  const found = async (filter: Parameters<typeof admin.listKeys>[0]) => ids((await admin.listKeys(filter)).apiKeys);

  expect(await found({ userId: user })).toEqual(ids([one.apiKey!, two.apiKey!, three.apiKey!]));
  expect(await found({ name: mark.toUpperCase() })).toEqual(all);
  expect(await found({ name: `${mark} first (.*)` })).toEqual([one.apiKey!.id]);
  expect(await found({ name: `${mark}.*` })).toEqual([]);
  expect(await found({ name: mark, state: State.ACTIVE })).toEqual(ids([three.apiKey!, brief.apiKey!]));
  expect(await found({ name: mark, state: State.RETIRING })).toEqual([two.apiKey!.id]);
  expect(await found({ name: mark, state: State.REVOKED })).toEqual([one.apiKey!.id]);
  for (const prefix of [two.apiKey!.prefix, two.apiKey!.prefix.slice(0, -1), `lk_${two.apiKey!.id}`])
    expect(await found({ name: mark, prefix })).toEqual([two.apiKey!.id]);
  expect(await found({ name: mark, prefix: "lk" })).toEqual(all);
  expect(await found({ name: mark, prefix: "l" })).toEqual([]);

  now = new Date(now.getTime() + 90_000);
  expect(await found({ name: mark, state: State.EXPIRED })).toEqual([brief.apiKey!.id]);
  expect(await found({ name: mark, state: State.REVOKED })).toEqual(ids([one.apiKey!, two.apiKey!]));
  expect(await found({ name: mark, state: State.ACTIVE })).toEqual([three.apiKey!.id]);
  for (const state of [State.ACTIVE, State.RETIRING, State.REVOKED, State.EXPIRED])
    for (const key of (await admin.listKeys({ name: mark, state })).apiKeys) expect(key.state).toBe(state);

  const paged: ApiKey[] = [];
  let pageToken = "";
  do {
    const { apiKeys, nextPageToken } = await admin.listKeys({ name: mark, pageSize: 3, pageToken });
    paged.push(...apiKeys);
    pageToken = nextPageToken;
  } while (pageToken !== "");
  expect(paged.map(({ id }) => id)).toEqual(all);
  const { nextPageToken } = await admin.listKeys({ name: mark, pageSize: 3 });
  const bad = { pageSize: 501, pageToken: nextPageToken, name: "x".repeat(129), prefix: "x".repeat(129), userId: "" };
  expect((await refusalOf(admin.listKeys(bad))).fields.sort()).toEqual(
    ["name", "page_size", "page_token", "prefix", "user_id"].sort(),
  );
  expect(await refusalOf(admin.listKeys({ state: 99 as State }))).toMatchObject({ fields: ["state"] });
  expect(await refusalOf(admin.listKeys({ name: "a\0b" }))).toMatchObject({ fields: ["name"] });
  const ofTrail = await admin.listAudit({ pageSize: 1 });
  expect(ofTrail.nextPageToken).not.toBe("");
  expect(await refusalOf(admin.listKeys({ pageToken: ofTrail.nextPageToken }))).toMatchObject({
    fields: ["page_token"],
  });
});

test("a whole key finds its record as a prefix, and none as an id; no other record is read, and the database not asked about its secret", async () => {
  for (let others = 0; others < 4; others += 1) await service.client().create({ scopes: ["read"] });
  const { key, apiKey } = await service.client().create({ scopes: ["read"] });
  const db = mongo.db(service.database);
  await db.command({ profile: 2 });
  // As people paste it, and as they cut it off.
  for (const prefix of [
    key,
    `${key}"`,
    ` ${key}\n`,
    `${key},x`,
    ...[19, 20, 28, 36, 37, 60].map((end) => key.slice(0, end)),
  ])
    expect([prefix, ids((await admin.listKeys({ prefix })).apiKeys)]).toEqual([prefix, [apiKey!.id]]);
  expect(await refusalOf(admin.getKey({ keyId: key }))).toMatchObject({ reason: "KEY_NOT_FOUND" });
  expect(await refusalOf(admin.listAudit({ keyId: key }))).toMatchObject({ fields: ["key_id"] });
  await db.command({ profile: 0 });
  const [search] = await db
    .collection("system.profile")
    .find({ op: "query", "command.filter.$and": { $exists: true } })
    .toArray();
  expect(search!.docsExamined).toBeLessThanOrEqual(2);
  const asked = JSON.stringify(await db.collection("system.profile").find().toArray());
  expect(asked).toContain(apiKey!.id);
  expect(asked).not.toContain(parseAnyKey(key)!.secret.slice(0, 17));
});

test("a key is looked at and revoked by its id, in whatever state it is; a second time changes nothing", async () => {
  const { key, apiKey } = await service.client().create({ scopes: ["read"] });
  const keyId = apiKey!.id;
  expect((await admin.getKey({ keyId })).apiKey).toEqual(apiKey);
  const first = await admin.revokeKey({ keyId, reason: "left" });
  expect(first).toMatchObject({ revoked: true, apiKey: { state: State.REVOKED, revocationReason: "left" } });
  expect(await verify(key)).toBe(Outcome.REVOKED);
  const second = await admin.revokeKey({ keyId, reason: "again" });
  expect(second).toEqual({ ...first, revoked: false });
  expect((await admin.getKey({ keyId })).apiKey).toEqual(first.apiKey);
  for (const call of [admin.getKey({ keyId: "0000000000000000" }), admin.revokeKey({ keyId: "" })])
    expect(await refusalOf(call)).toMatchObject({ code: "NotFound", reason: "KEY_NOT_FOUND", retry: false });
  expect(await refusalOf(admin.revokeKey({ keyId, reason: "superseded" }))).toMatchObject({ fields: ["reason"] });
});

test("revoking a retiring key by its id leaves the active one, and the other way round", async () => {
  const client = service.client();
  const old = await client.create({ scopes: ["read"] });
  const current = await client.refresh({ gracePeriod: { seconds: 600n } });
  await admin.revokeKey({ keyId: old.apiKey!.id });
  expect([await verify(old.key), await verify(current.key)]).toEqual([Outcome.REVOKED, Outcome.VALID]);
  const next = await client.refresh({ gracePeriod: { seconds: 600n } });
  await admin.revokeKey({ keyId: next.apiKey!.id });
  expect([await verify(current.key), await verify(next.key)]).toEqual([Outcome.VALID, Outcome.REVOKED]);
});

test("a key that was found is revoked by itself, and by nothing less than the whole key", async () => {
  const { key, apiKey } = await service.client().create({ scopes: ["read"] });
  const parsed = parseAnyKey(key)!;
  const notFound = { code: "NotFound", reason: "KEY_NOT_FOUND" };
  for (const presented of [
    ...["", "garbage", key.slice(0, -1), `${key} `],
    formatKey({ ...parsed, secret: "0".repeat(43) }),
    formatKey({ ...parsed, id: "0".repeat(16) }),
    formatKey({ ...parsed, prefix: "other" }),
  ]) {
    const refusal = await refusalOf(admin.revokeByPresentedKey({ key: presented }));
    expect(refusal).toMatchObject(notFound);
    if (presented !== "") expect(refusal.message).not.toContain(presented);
  }
  expect(await verify(key)).toBe(Outcome.VALID);
  const answer = await admin.revokeByPresentedKey({ key, reason: "in a repository" });
  expect(answer).toMatchObject({ revoked: true, apiKey: { id: apiKey!.id, revocationReason: "in a repository" } });
  expect(await verify(key)).toBe(Outcome.REVOKED);
  expect(await admin.revokeByPresentedKey({ key })).toEqual({ ...answer, revoked: false });
  expect(service.logs()).not.toContain(parsed.secret);
});

test("all of a user's keys are revoked at once; of a user without keys, none", async () => {
  const user = randomUUID();
  const client = service.client(user);
  const keys = [await client.create({ scopes: ["read"] }), await client.refresh({ gracePeriod: { seconds: 600n } })];
  const { apiKeys } = await admin.revokeUser({ userId: user, reason: "left" });
  expect(ids(apiKeys)).toEqual(ids(keys.map(({ apiKey }) => apiKey!)));
  expect(apiKeys[0]!.id).toBe(keys[1]!.apiKey!.id);
  for (const { key } of keys) expect(await verify(key)).toBe(Outcome.REVOKED);
  expect((await admin.revokeUser({ userId: user })).apiKeys).toEqual([]);
  expect(await refusalOf(admin.revokeUser({ userId: "" }))).toMatchObject({ fields: ["user_id"] });
});

test("records of keys that ended LATCHKEY_PURGE_AFTER ago are removed, others are not, and views and watchers learn of it", async () => {
  const tokens = { ttlS: 10 * 86_400 };
  // The database has its own time, and what it takes for alive is not removed: it all begins in the past.
  const realNow = new Date();
  now = new Date(realNow.getTime() - 1.5 * DAY_MS);
  const first = await start();
  const make = async (end: (client: ReturnType<TestService["client"]>, headers: object) => Promise<unknown>) => {
    const client = first.client();
    const headers = { headers: { authorization: `Bearer ${await userToken(randomUUID(), tokens)}` } };
    const made = await client.create({ scopes: ["read"], lifetime: { case: undefined } }, headers);
    await end(client, headers);
    return made.key;
  };
  const ttl = (seconds: bigint) => ({ case: "ttl" as const, value: { seconds } });
  const kept = {
    active: await make(async () => {}),
    retiring: await make((client, headers) => client.refresh({ gracePeriod: { seconds: 400_000n } }, headers)),
    expiring: await make((client, headers) =>
      client.refresh({ lifetime: ttl(400_000n), gracePeriod: { seconds: 600_000n } }, headers),
    ),
  };
  const gone = {
    revoked: await make((client, headers) => client.revoke({}, headers)),
    superseded: await make((client, headers) => client.refresh({}, headers)),
    retired: await make((client, headers) => client.refresh({ gracePeriod: { seconds: 60n } }, headers)),
  };
  const { key: expired } = await first.client().create({ scopes: ["read"], lifetime: ttl(60n) });
  for (const key of [...Object.values(kept), ...Object.values(gone), expired]) await first.client().verify({ key });
  const removed = new Set<string>();
  const controller = new AbortController();
  let begun = () => {};
  const watches = new Promise<void>((resolve) => {
    begun = resolve;
  });
  const watching = (async () => {
    for await (const { event } of first.client().watch({}, { signal: controller.signal, timeoutMs: 0 })) {
      begun();
      if (event.case === "change" && event.value.kind === KeyChangeKind.REMOVED) removed.add(event.value.keyId);
      if (removed.size === 4) return;
    }
  })();

  await watches;

  // A day and a half later; the clock of the process that removes is a month ahead.
  now = realNow;
  const ahead = new Date(realNow.getTime() + 30 * DAY_MS);
  const second = await start({ MONGODB_DATABASE: first.database, LATCHKEY_PURGE_AFTER: "1d" }, () => ahead);
  await watching;
  controller.abort();
  const endedIds = [...Object.values(gone), expired].map((key) => parseAnyKey(key)!.id).sort();
  expect([...removed].sort()).toEqual(endedIds);
  for (const key of [...Object.values(gone), expired])
    expect((await first.client().verify({ key })).outcome).toBe(Outcome.NOT_FOUND);
  for (const key of Object.values(kept)) expect((await first.client().verify({ key })).outcome).toBe(Outcome.VALID);
  expect(
    await mongo
      .db(first.database)
      .collection("api_keys")
      .countDocuments({ _id: { $in: endedIds as never[] } }),
  ).toBe(0);
  expect(second.logs()).toContain('"event":"purged"');
});

test("a page of ListKeys is no larger than the 4 MiB that clients take, and the pages hold all keys", async () => {
  const one = await start();
  const scopes = Array.from({ length: 64 }, (_, index) => `s${index}`.padEnd(128, "x"));
  await one.client().create({ scopes, name: "\u{1F511}".repeat(128) });
  const keys = mongo.db(one.database).collection<{ _id: string }>("api_keys");
  const { fingerprint: _, ...record } = (await keys.findOne({})) as Record<string, unknown> & { _id: string };
  const copies = Array.from({ length: 499 }, (_each, index) => ({
    ...{ ...record, _id: String(index).padStart(16, "0"), userId: "\u{1F511}".repeat(250) + index },
  }));
  await keys.insertMany(copies);
  let pageToken = "";
  let seen = 0;
  let pages = 0;
  do {
    const page = await adminOf(one).listKeys({ pageSize: 500, pageToken });
    expect(toBinary(ListKeysResponseSchema, page).length).toBeLessThan(4 * 1024 * 1024);
    seen += page.apiKeys.length;
    pages += 1;
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  expect([seen, pages]).toEqual([500, 2]);
});
