import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { type Client, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, expect, jest, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { AdminService, type AuditEntry, AuditResult } from "#gen/latchkey/v1/admin_service_pb";
import { ApiKeyService } from "#gen/latchkey/v1/api_key_service_pb";
import { ErrorReason } from "#gen/latchkey/v1/error_reason_pb";
import { KeyError } from "../../src/keys/errors.ts";
import { formatKey, parseAnyKey } from "../../src/keys/text.ts";
import { createAuditStore } from "../../src/mongo/audit-store.ts";
import { ensureSchema } from "../../src/mongo/schema.ts";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

jest.setTimeout(120_000);

const REQUEST_KEYS = `r1:${Buffer.alloc(32, 1).toString("base64")}`;
let mongo: MongoClient;
let service: TestService;
let admin: Client<typeof AdminService>;
beforeAll(async () => {
  mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  service = await startService({ env: { LATCHKEY_REQUEST_KEYS: REQUEST_KEYS } });
  const authorization = `Bearer ${await userToken("root", { admin: true })}`;
  admin = createClient(
    AdminService,
    createConnectTransport({
      ...{ baseUrl: service.baseUrl, httpVersion: "1.1" as const },
      interceptors: [
        (next) => (request) => {
          request.header.set("authorization", authorization);
          return next(request);
        },
      ],
    }),
  );
});
afterAll(async () => {
  await service.stop();
  await mongo.close();
});

/** Entries, oldest first, once there are `count` of them: those of denials and reads come a moment later. */
const trail = async (filter: Parameters<typeof admin.listAudit>[0], count: number): Promise<AuditEntry[]> => {
  for (;;) {
    const { entries } = await admin.listAudit(filter);
    if (entries.length >= count) return entries.toReversed();
    await sleep(50);
  }
};
const stored = () => mongo.db(service.database).collection<{ _id: string }>("audit");

test("each change has an entry: who, what, which keys, from where", async () => {
  const user = randomUUID();
  const { apiKey: first } = await service.client(user).create({ scopes: ["read"] });
  const { apiKey: second } = await service.client(user).refresh({ gracePeriod: { seconds: 60n } });
  await service.client("boss", { admin: true }).revoke({ userId: user });
  const entries = await trail({ userId: user }, 3);
  const of = { result: AuditResult.CHANGED, reason: 0, userId: user, peerAddress: "127.0.0.1", leftOut: 0n };
  expect(entries).toMatchObject([
    { ...of, action: "Create", actorId: user, actorIsAdmin: false, keyIds: [first!.id] },
    { ...of, action: "Refresh", actorId: user, keyIds: [second!.id, first!.id] },
    { ...of, action: "Revoke", actorId: "boss", actorIsAdmin: true, keyIds: [second!.id, first!.id] },
  ]);
  expect(entries.every(({ userAgent, time }) => userAgent.startsWith("connect-es/") && time !== undefined)).toBe(true);
});

test("the peer's address and the call's own id are told over HTTP/2 too, and no header stands for the address", async () => {
  const user = randomUUID();
  const client = createClient(ApiKeyService, createGrpcTransport({ baseUrl: service.baseUrl }));
  const headers = {
    authorization: `Bearer ${await userToken(user)}`,
    "x-request-id": "call-0815-4711",
    "x-forwarded-for": "203.0.113.9",
    forwarded: "for=203.0.113.9",
    "user-agent": "probe/1",
  };
  await client.create({ scopes: ["read"] }, { headers });
  const [entry] = await trail({ userId: user }, 1);
  expect(entry).toMatchObject({ peerAddress: "127.0.0.1", requestId: "call-0815-4711" });
  expect(JSON.stringify(await stored().findOne({ actor: user }))).not.toContain("203.0.113.9");
});

test("a change and its entry are one transaction: where the entry can't be written, nothing is changed", async () => {
  const db = mongo.db(service.database);
  const user = randomUUID();
  await db.command({ collMod: "audit", validator: { actor: { $ne: user } } });
  expect(await refusalOf(service.client(user).create({ scopes: ["read"] }))).toMatchObject({ reason: "DB_ERROR" });
  await db.command({ collMod: "audit", validator: {} });
  expect(await db.collection("api_keys").countDocuments({ userId: user })).toBe(0);
  await service.client(user).create({ scopes: ["read"] });
  // And a refused change has none.
  await refusalOf(service.client(user).create({ scopes: ["read"] }));
  expect(await trail({ userId: user }, 1)).toHaveLength(1);
});

test("an attempt that was undone leaves no entry: there are as many as changes, however many processes make them at once", async () => {
  const other = await startService({ env: { MONGODB_DATABASE: service.database } });
  const user = randomUUID();
  const clients = [service.client(user), other.client(user)];
  const calls = Array.from({ length: 24 }, (_, index) => clients[index % 2]!.refresh({ scopes: ["read"] }));
  const made = (await Promise.allSettled(calls)).filter(({ status }) => status === "fulfilled").length;
  await other.stop();
  expect(await mongo.db(service.database).collection("api_keys").countDocuments({ userId: user })).toBe(made);
  expect(await stored().countDocuments({ userId: user, result: "changed" })).toBe(made);
});

test("every kind of denial has an entry, with its reason and, where it is known, who it was", async () => {
  const user = randomUUID();
  const client = service.client(user);
  const { key } = await client.create({ scopes: ["read"] });
  const other = randomUUID();
  await refusalOf(client.create({ scopes: ["admin"] }));
  await refusalOf(client.get({ userId: other }));
  await refusalOf(client.revoke({}, { headers: { authorization: `Bearer ${key}`, "user-agent": `leaky ${key}` } }));
  await refusalOf(client.refresh({ userId: other }, { headers: { authorization: "Bearer nonsense" } }));
  const members = createClient(AdminService, createConnectTransport({ baseUrl: service.baseUrl, httpVersion: "1.1" }));
  const headers = { authorization: `Bearer ${await userToken(user)}` };
  const keyId = parseAnyKey(key)!.id;
  await refusalOf(members.revokeKey({ keyId }, { headers }));
  await refusalOf(members.revokeByPresentedKey({ key }, { headers }));
  const denied = { result: AuditResult.DENIED };
  expect(await trail({ actorId: user, ...denied }, 4)).toMatchObject([
    { action: "Create", reason: ErrorReason.SCOPE_FORBIDDEN, userId: user },
    { action: "Get", reason: ErrorReason.ADMIN_REQUIRED, userId: other },
    { action: "RevokeKey", reason: ErrorReason.ADMIN_REQUIRED, keyIds: [keyId] },
    { action: "RevokeByPresentedKey", reason: ErrorReason.ADMIN_REQUIRED, keyIds: [keyId] },
  ]);
  expect(await trail({ action: "Revoke", ...denied }, 1)).toMatchObject([
    { reason: ErrorReason.API_KEY_NOT_ALLOWED, actorId: "", peerAddress: "127.0.0.1" },
  ]);
  expect(await trail({ action: "Refresh", userId: other, ...denied }, 1)).toMatchObject([
    { reason: ErrorReason.UNAUTHENTICATED, actorId: "" },
  ]);
});

test("what an admin looks at has an entry, what a user looks at of their own has none; a repeat is answered, not changed", async () => {
  const user = randomUUID();
  const request = { scopes: ["read"], requestId: randomUUID() };
  const { apiKey } = await service.client(user).create(request);
  await service.client(user).create(request);
  await service.client(user).get({});
  await service.client("boss", { admin: true }).get({ userId: user });
  await admin.getKey({ keyId: apiKey!.id });
  const entries = await trail({ userId: user }, 4);
  expect(entries.map(({ action, result, actorId, keyIds }) => [action, result, actorId, keyIds[0]])).toEqual([
    ["Create", AuditResult.CHANGED, user, apiKey!.id],
    ["Create", AuditResult.ANSWERED, user, apiKey!.id],
    ["Get", AuditResult.ANSWERED, "boss", apiKey!.id],
    ["GetKey", AuditResult.ANSWERED, "root", apiKey!.id],
  ]);
});

test("what an admin looked for and did not find has an entry, with what was answered; what a user did not find of their own, none", async () => {
  const user = randomUUID();
  const { key } = await service.client().create({ scopes: ["read"] });
  const keyId = "0123456789ABCDEF";
  const guess = formatKey({ ...parseAnyKey(key)!, secret: "0".repeat(43) });
  await refusalOf(admin.getKey({ keyId }));
  await refusalOf(admin.revokeByPresentedKey({ key: guess }));
  await refusalOf(service.client(user).get({}));
  await refusalOf(service.client("boss", { admin: true }).revoke({ userId: user }));
  const of = { result: AuditResult.ANSWERED, reason: ErrorReason.KEY_NOT_FOUND };
  expect(await trail({ keyId }, 1)).toMatchObject([{ ...of, action: "GetKey", actorId: "root", keyIds: [keyId] }]);
  const tried = { action: "RevokeByPresentedKey", keyId: parseAnyKey(key)!.id };
  expect(await trail(tried, 1)).toMatchObject([{ ...of, actorId: "root" }]);
  expect(await trail({ userId: user }, 1)).toMatchObject([
    { action: "Revoke", result: AuditResult.ANSWERED, reason: ErrorReason.NO_KEY, actorId: "boss" },
  ]);
});

test("a flood of bad tokens leaves a bounded number of entries, and a count of the others", async () => {
  const flooded = await startService();
  const headers = { authorization: "Bearer nonsense" };
  const client = flooded.client();
  for (let round = 0; round < 10; round += 1)
    await Promise.all(Array.from({ length: 30 }, () => refusalOf(client.get({}, { headers }))));
  await flooded.stop();
  const entries = await mongo.db(flooded.database).collection("audit").find().toArray();
  const counts = entries.filter(({ leftOut }) => leftOut !== undefined);
  expect(entries.length).toBeLessThan(200);
  expect(counts).toMatchObject([{ action: "Get", result: "denied", reason: "UNAUTHENTICATED" }]);
  expect(entries.length - 1 + (counts[0]!.leftOut as number)).toBe(300);
});

test("pages lead from the newest entry to the oldest, and narrow by time and key", async () => {
  const user = randomUUID();
  const client = service.client(user);
  await client.create({ scopes: ["read"] });
  await sleep(2);
  const middle = new Date();
  await sleep(2);
  const { apiKey } = await client.refresh({});
  await client.refresh({});
  const seen: string[] = [];
  let pageToken = "";
  do {
    const { entries, nextPageToken } = await admin.listAudit({ userId: user, pageSize: 2, pageToken });
    seen.push(...entries.map(({ action }) => action));
    pageToken = nextPageToken;
  } while (pageToken !== "");
  expect(seen).toEqual(["Refresh", "Refresh", "Create"]);
  expect(await trail({ userId: user, since: timestampFromDate(middle) }, 2)).toHaveLength(2);
  expect(await trail({ userId: user, until: timestampFromDate(middle) }, 1)).toHaveLength(1);
  expect(await trail({ keyId: apiKey!.id, result: AuditResult.CHANGED }, 2)).toHaveLength(2);
  const never = { seconds: 10n ** 13n, nanos: 0 };
  expect(await refusalOf(admin.listAudit({ since: never, until: never, pageSize: -1, userId: "" }))).toMatchObject({
    fields: ["user_id", "since", "until", "page_size"],
  });
  const { nextPageToken } = await admin.listAudit({ userId: user, pageSize: 2 });
  for (const bad of [{ pageToken: nextPageToken }, { pageToken: "x" }, { pageSize: 501 }, { userId: "" }]) {
    expect(await refusalOf(admin.listAudit(bad))).toMatchObject({ reason: "INVALID_ARGUMENT" });
  }
});

test.each([{ actor: "b" }, { userId: "b" }, { keyId: "b" }, { action: "Revoke" }, { result: "changed" as const }])(
  "what is rare in the trail is found without reading the rest: %j",
  async (filter) => {
    const db = mongo.db(`test-${randomUUID()}`);
    await ensureSchema(db);
    const store = createAuditStore(db);
    const common = { ...{ at: new Date(), action: "Get", result: "denied" as const }, ...{ actor: "a", userId: "a" } };
    const rare = { action: "Revoke", result: "changed" as const, actor: "b", userId: "b", keyIds: ["b"] };
    const many = Array.from({ length: 200 }, () => ({ ...common, keyIds: ["a"] }));
    await store.write([{ ...common, ...rare }, ...many]);
    await db.command({ profile: 2 });
    expect(await store.list(filter, undefined, 100, Number.POSITIVE_INFINITY)).toMatchObject([rare]);
    await db.command({ profile: 0 });
    const [search] = await db.collection("system.profile").find({ op: "query" }).toArray();
    expect(search!.docsExamined).toBe(1);
  },
);

test("entries whose writing may have failed can be written again: each is there once", async () => {
  const db = mongo.db(`test-${randomUUID()}`);
  const store = createAuditStore(db);
  const entries = ["a", "b", "c"].map((actor) => ({
    ...{ at: new Date(), action: "Get", result: "denied" as const, actor, keyIds: [] },
  }));
  await store.write(entries.slice(0, 2));
  await store.write(entries);
  const actors = async () =>
    (await db.collection("audit").find().sort({ actor: 1 }).toArray()).map(({ actor }) => actor);
  expect(await actors()).toEqual(["a", "b", "c"]);
  await db.command({ collMod: "audit", validator: { actor: { $ne: "d" } } });
  const bad = [...entries, { ...entries[0]!, actor: "d" }];
  await expect(store.write(bad)).rejects.toBeInstanceOf(KeyError);
  expect(await actors()).toEqual(["a", "b", "c"]);
});

test("entries are kept for LATCHKEY_AUDIT_RETENTION, also when that is changed", async () => {
  const db = mongo.db(service.database);
  const seconds = async () =>
    (await db.collection("audit").indexes()).find(({ name }) => name === "old_entries")?.expireAfterSeconds;
  expect(await seconds()).toBe(90 * 86_400);
  await ensureSchema(db, { auditRetentionMs: 3_600_000 });
  expect(await seconds()).toBe(3_600);
});

test("the reason that a caller states is in the entry: of each call that revokes, of one whose key had ended before, and of one that was denied; a key in it is not", async () => {
  const user = randomUUID();
  const client = service.client(user);
  const { key, apiKey } = await client.create({ scopes: ["read"] });
  const member = await userToken(user);
  const members = createClient(AdminService, createConnectTransport({ baseUrl: service.baseUrl, httpVersion: "1.1" }));
  await refusalOf(
    members.revokeUser(
      { userId: user, reason: "not mine\nto say" },
      { headers: { authorization: `Bearer ${member}` } },
    ),
  );
  await client.revoke({ reason: `posted as ${key}` });
  await admin.revokeKey({ keyId: apiKey!.id, reason: "ended before" });
  const { key: second } = await client.create({ scopes: ["read"] });
  await admin.revokeByPresentedKey({ key: second, reason: "found in a log" });
  await client.create({ scopes: ["read"] });
  await admin.revokeUser({ userId: user, reason: "left the team" });
  const entries = await trail({ userId: user }, 8);
  const stated = entries.filter(({ statedReason }) => statedReason !== "");
  // Denials and reads are written a moment later than they were made.
  expect(stated.map(({ action, statedReason }) => `${action}: ${statedReason}`).sort()).toEqual([
    "Revoke: posted as [secret]",
    "RevokeByPresentedKey: found in a log",
    "RevokeKey: ended before",
    "RevokeUser: left the team",
    "RevokeUser: not mine to say",
  ]);
});

test("no entry holds a key, a secret, a hash, a token or a request id", async () => {
  const user = randomUUID();
  const token = await userToken(user);
  const request = { scopes: ["read"], requestId: randomUUID() };
  const headers = { authorization: `Bearer ${token}` };
  const { key } = await service.client(user).create(request, { headers });
  headers.authorization = `Bearer ${key}`;
  await refusalOf(service.client(user).get({ userId: key }, { headers }));
  await refusalOf(service.client(user).get({ userId: token }));
  await admin.revokeByPresentedKey({ key, reason: `found ${key}` });
  await refusalOf(admin.revokeByPresentedKey({ key: `${key}x` }));
  await trail({ userId: user, action: "RevokeByPresentedKey" }, 1);
  await service.stop();
  const text = JSON.stringify(await stored().find().toArray());
  expect(text).toContain(user);
  for (const secret of [parseAnyKey(key)!.secret, token.split(".")[2]!, request.requestId, "argon2", "Bearer"])
    expect(text).not.toContain(secret);
  service = await startService({ env: { MONGODB_DATABASE: service.database } });
});
