import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { afterAll, expect, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { ApiKeyService, Consistency, Outcome, State } from "#gen/latchkey/v1/api_key_service_pb";
import { createLatchkeyAdminClient } from "../../src/client/index.ts";
import { createKeyManager } from "../../src/keys/manage.ts";
import type { KeyStore } from "../../src/keys/ports.ts";
import type { SecretKeeper } from "../../src/keys/secret.ts";
import { formatKey, parseAnyKey } from "../../src/keys/text.ts";
import { refusalOf } from "../support/errors.ts";
import { PEPPER, startService, type TestService, userToken } from "../support/service.ts";

const started: TestService[] = [];
// The user tokens of the tests expire by the real clock, so the tests' clock starts there.
let now = new Date();
const advance = (ms: number) => {
  now = new Date(now.getTime() + ms);
};
const start = async (env: Record<string, string> = {}) => {
  const service = await startService({ env, clock: () => now });
  started.push(service);
  return service;
};
const ttl = (seconds: number, nanos = 0) => ({ case: "ttl" as const, value: { seconds: BigInt(seconds), nanos } });
afterAll(() => Promise.all(started.map((service) => service.stop())));

test("the record keeps its prefix: after LATCHKEY_KEY_PREFIX changes, earlier keys work through LATCHKEY_KEY_PREFIX_ALSO alone", async () => {
  const before = await start({ LATCHKEY_KEY_PREFIX: "old_live" });
  const { key } = await before.client().create({ scopes: ["read"] });
  expect(key).toMatch(/^old_live_/);
  const same = { MONGODB_DATABASE: before.database };
  const also = await start({ ...same, LATCHKEY_KEY_PREFIX: "new", LATCHKEY_KEY_PREFIX_ALSO: "old_live" });
  expect((await also.client().verify({ key })).outcome).toBe(Outcome.VALID);
  const without = await start({ ...same, LATCHKEY_KEY_PREFIX: "new" });
  expect((await without.client().verify({ key })).outcome).toBe(Outcome.MALFORMED);
  const relabelled = formatKey({ ...parseAnyKey(key)!, prefix: "new" });
  expect((await also.client().verify({ key: relabelled })).outcome).toBe(Outcome.NOT_FOUND);
});

test("times are kept to the millisecond, rounded down", async () => {
  const service = await start();
  const { apiKey } = await service.client().create({ scopes: ["read"], lifetime: ttl(5, 1_999_999) });
  expect(timestampDate(apiKey!.expiresAt!).getTime()).toBe(now.getTime() + 5_001);
  const at = new Date(now.getTime() + 60_000);
  const value = { seconds: BigInt(Math.floor(at.getTime() / 1_000)), nanos: 7_999_999 };
  const other = await service.client().create({ scopes: ["read"], lifetime: { case: "expiresAt", value } });
  expect(other.apiKey?.expiresAt?.nanos).toBe(7_000_000);
});

test("inherited scopes stay even where the policy would no longer grant them, and an inherited lifetime is clamped", async () => {
  const before = await start();
  const user = randomUUID();
  await before.client(user).create({ scopes: ["legacy"], lifetime: ttl(864_000) });
  const after = await start({
    MONGODB_DATABASE: before.database,
    LATCHKEY_SCOPES: "*,!legacy",
    LATCHKEY_MEMBER_SCOPES: "read",
    LATCHKEY_MAX_TTL: "1d",
  });
  const { apiKey } = await after.client(user).refresh({});
  expect(apiKey?.scopes).toEqual(["legacy"]);
  expect(timestampDate(apiKey!.expiresAt!).getTime()).toBe(now.getTime() + 86_400_000);
  expect(await refusalOf(after.client(user).refresh({ scopes: ["legacy"] }))).toMatchObject({
    reason: "INVALID_ARGUMENT",
  });
  expect(await refusalOf(after.client(user).refresh({ scopes: ["write"] }))).toMatchObject({
    reason: "SCOPE_FORBIDDEN",
  });
});

test("with only a retiring key left, Get is NO_KEY, Create is allowed, and Revoke returns the retiring key", async () => {
  const service = await start();
  for (const last of ["create", "revoke"] as const) {
    const client = service.client();
    const first = await client.create({ scopes: ["read"] });
    await client.refresh({ gracePeriod: { seconds: 600n }, lifetime: ttl(5) });
    advance(6_000);
    expect(await refusalOf(client.get({}))).toMatchObject({ reason: "NO_KEY" });
    expect((await client.verify({ key: first.key })).apiKey?.state).toBe(State.RETIRING);
    if (last === "create") {
      expect((await client.create({ scopes: ["read"] })).apiKey?.state).toBe(State.ACTIVE);
    } else {
      const revoked = await client.revoke({});
      expect(revoked.apiKey).toBeUndefined();
      expect(revoked).toMatchObject({
        revokedKeyPrefix: first.apiKey?.prefix,
        alsoRevoked: [{ id: first.apiKey?.id, state: State.REVOKED }],
      });
      expect((await client.verify({ key: first.key })).outcome).toBe(Outcome.REVOKED);
    }
  }
});

test("an explicit revocation outranks expiry", async () => {
  const client = (await start()).client();
  const { key } = await client.create({ scopes: ["read"], lifetime: ttl(5) });
  await client.revoke({ reason: "leaked" });
  advance(6_000);
  expect((await client.verify({ key })).apiKey).toMatchObject({ state: State.REVOKED, revocationReason: "leaked" });
});

test("as_of is the time before the read began; for MALFORMED, now", async () => {
  const client = (await start()).client();
  const { key } = await client.create({ scopes: ["read"] });
  for (const one of [key, "x"]) {
    const { asOf } = await client.verify({ key: one });
    expect(timestampDate(asOf!).getTime()).toBe(now.getTime());
  }
});

test("a call past its deadline writes nothing", async () => {
  const client = (await start()).client();
  const late = await client.create({ scopes: ["read"] }, { timeoutMs: 5 }).catch((error) => error);
  expect(late).toBeInstanceOf(Error);
  expect(await refusalOf(client.get({}))).toMatchObject({ reason: "NO_KEY" });
});

test("after the pepper is lost or rotated every key still verifies, and its fingerprint is renewed once", async () => {
  const before = await start();
  const { key, apiKey } = await before.client().create({ scopes: ["read"] });
  const other = Buffer.alloc(32, 9).toString("base64");
  const mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  const records = mongo
    .db(before.database)
    .collection<{ _id: string; fingerprint: { pepper: string }; rev: number }>("api_keys");
  for (const [peppers, expected] of [
    [`p2:${other}`, "p2"],
    [`p1:${PEPPER},p2:${other}`, "p1"],
  ] as const) {
    const after = await start({ MONGODB_DATABASE: before.database, LATCHKEY_PEPPERS: peppers });
    for (let call = 0; call < 2; call += 1) expect((await after.client().verify({ key })).outcome).toBe(Outcome.VALID);
    // Renewed behind the answer.
    while ((await records.findOne({ _id: apiKey!.id }))?.fingerprint.pepper !== expected) await sleep(20);
    expect((await after.client().verify({ key })).outcome).toBe(Outcome.VALID);
  }
  expect((await records.findOne({ _id: apiKey!.id }))?.rev).toBe(3);
  await mongo.close();
});

test("scopes are compared exactly: no part, pattern or other case of one stands for it", async () => {
  const client = (await start()).client();
  const { key } = await client.create({ scopes: ["billing:read"] });
  for (const required of ["billing", "billing:", "billing:rea", "billing:read:all"]) {
    const { outcome, missingScopes } = await client.verify({ key, requiredScopes: [required] });
    expect({ outcome, missingScopes }).toEqual({ outcome: Outcome.INSUFFICIENT_SCOPE, missingScopes: [required] });
  }
  for (const senseless of ["billing:*", "Billing:read", " billing:read"]) {
    expect(await refusalOf(client.verify({ key, requiredScopes: [senseless] }))).toMatchObject({
      reason: "INVALID_ARGUMENT",
      fields: ["required_scopes[0]"],
    });
  }
  expect((await client.verify({ key, requiredScopes: ["billing:read"] })).outcome).toBe(Outcome.VALID);
});

test("user_id and sub have 1 to 256 characters, no control characters, and are compared exactly", async () => {
  const service = await start();
  const admin = service.client(undefined, { admin: true });
  const name = randomUUID();
  const alike = [name, ` ${name}`, name.toUpperCase(), `${name}\u00e9`, `${name}e\u0301`, name.padEnd(256, "x")];
  for (const userId of alike) {
    const { apiKey } = await admin.create({ userId, scopes: ["read"] });
    expect((await service.client(userId).get({})).apiKey).toMatchObject({ id: apiKey?.id, userId });
  }
  for (const userId of [
    "",
    " \t",
    name.padEnd(257, "x"),
    `${name}\u0000`,
    `${name}\n`,
    `${name}\u007f`,
    `${name}\u0085`,
  ]) {
    for (const call of [
      () => admin.create({ userId, scopes: ["read"] }),
      () => admin.get({ userId }),
      () => admin.revoke({ userId }),
    ])
      expect(await refusalOf(call())).toMatchObject({ reason: "INVALID_ARGUMENT", fields: ["user_id"] });
  }
});

test("a sub that is blank or has control characters is UNAUTHENTICATED, and a reason with some is refused by name", async () => {
  const service = await start();
  for (const sub of [" ", "a\u0000b", "a\nb", "a\u007f", "a\u009f"]) {
    expect(await refusalOf(service.client(sub).get({}))).toMatchObject({
      reason: "UNAUTHENTICATED",
      message: "The token's sub must have 1 to 256 characters, no control character among them, and not be blank.",
    });
  }
  const client = service.client();
  await client.create({ scopes: ["read"] });
  for (const reason of ["left\u0000", "left\nthe team", "\u009b31m"]) {
    const refusal = { reason: "INVALID_ARGUMENT", fields: ["reason"] };
    expect(await refusalOf(client.revoke({ reason }))).toMatchObject(refusal);
  }
  await client.revoke({ reason: "left the team\u2028" });
});

test("a record whose user_id is no longer taken still verifies, is found, and is ended by its id", async () => {
  const service = await start();
  const { apiKey, key } = await service.client().create({ scopes: ["read"] });
  const userId = "old\nuser\u0000";
  const mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  const keys = mongo.db(service.database).collection<{ _id: string }>("api_keys");
  await keys.updateOne({ _id: apiKey!.id }, { $set: { userId }, $inc: { rev: 1 } });
  await mongo.close();
  const strong = { key, consistency: Consistency.STRONG };
  expect(await service.client().verify(strong)).toMatchObject({ outcome: Outcome.VALID, apiKey: { userId } });
  const admin = createLatchkeyAdminClient({
    baseUrl: service.baseUrl,
    token: () => userToken("root", { admin: true }),
  });
  expect((await admin.listKeys({ userId })).apiKeys).toMatchObject([{ id: apiKey!.id, userId }]);
  expect(await admin.revokeKey({ keyId: apiKey!.id, reason: "old" })).toMatchObject({ revoked: true });
  expect((await service.client().verify(strong)).outcome).toBe(Outcome.REVOKED);
});

test("LATCHKEY_MAX_GRACE: an explicit excess is refused, as much as it allows is taken", async () => {
  const client = (await start({ LATCHKEY_MAX_GRACE: "1m" })).client();
  await client.create({ scopes: ["read"] });
  expect(await refusalOf(client.refresh({ gracePeriod: { seconds: 60n, nanos: 1_000_000 } }))).toMatchObject({
    reason: "INVALID_ARGUMENT",
    fields: ["grace_period"],
  });
  const { previous } = await client.refresh({ gracePeriod: { seconds: 60n } });
  expect(timestampDate(previous!.retiresAt!).getTime()).toBe(now.getTime() + 60_000);
});

test("a key without an end, inherited under a LATCHKEY_MAX_TTL, ends by it", async () => {
  const before = await start();
  const user = randomUUID();
  expect((await before.client(user).create({ scopes: ["read"] })).apiKey?.expiresAt).toBeUndefined();
  const after = await start({ MONGODB_DATABASE: before.database, LATCHKEY_MAX_TTL: "1d" });
  const { apiKey } = await after.client(user).refresh({});
  expect(timestampDate(apiKey!.expiresAt!).getTime()).toBe(now.getTime() + 86_400_000);
});

test("an API key as bearer is refused before ADMIN_REQUIRED and fields, by shape and checksum: one with a typo is only a bad token", async () => {
  const service = await start();
  const bearing = (bearer: string) =>
    createClient(
      ApiKeyService,
      createConnectTransport({
        baseUrl: service.baseUrl,
        httpVersion: "1.1",
        interceptors: [
          (next) => (request) => {
            request.header.set("authorization", `Bearer ${bearer}`);
            return next(request);
          },
        ],
      }),
    );
  const unknown = formatKey({ prefix: "lk", id: "0".repeat(16), secret: "0".repeat(43) });
  const bad = { userId: "somebody", name: " ", scopes: ["admin"] };
  expect(await refusalOf(bearing(unknown).create(bad))).toMatchObject({ reason: "API_KEY_NOT_ALLOWED" });
  expect(await refusalOf(bearing(`${unknown.slice(0, -1)}!`).create(bad))).toMatchObject({ reason: "UNAUTHENTICATED" });
  expect(await refusalOf(bearing(await userToken("nobody")).create(bad))).toMatchObject({ reason: "ADMIN_REQUIRED" });
});

test("an explicit revocation outranks the end of a grace period: its time and reason stay", async () => {
  const client = (await start()).client();
  const { key } = await client.create({ scopes: ["read"] });
  await client.refresh({ gracePeriod: { seconds: 60n } });
  advance(1_000);
  const revokedAt = now.getTime();
  await client.revoke({ reason: "leaked" });
  advance(120_000);
  const { apiKey } = await client.verify({ key });
  expect(apiKey).toMatchObject({ state: State.REVOKED, revocationReason: "leaked" });
  expect(timestampDate(apiKey!.revokedAt!).getTime()).toBe(revokedAt);
});

test("Refresh over an expired key inherits its lifetime too, and the stored record is marked expired with it", async () => {
  const service = await start();
  const client = service.client();
  const first = await client.create({ scopes: ["read"], lifetime: ttl(5) });
  advance(60_000);
  const { apiKey } = await client.refresh({});
  expect(timestampDate(apiKey!.expiresAt!).getTime()).toBe(now.getTime() + 5_000);
  const mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  const records = mongo.db(service.database).collection<{ _id: string; state: string }>("api_keys");
  expect((await records.findOne({ _id: first.apiKey!.id }))?.state).toBe("expired");
  await mongo.close();
});

test("Create looks for an active key before it hashes: a refusal costs no argon2", async () => {
  let hashed = 0;
  const active = {
    ...{ id: "0".repeat(16), userId: "alice", prefix: "lk", scopes: ["read"], state: "active" as const, rev: 1 },
    ...{ secretHash: "$argon2id$", createdAt: now },
  };
  const patterns = { matches: () => true };
  const keys = createKeyManager({
    store: { findCurrent: async () => ({ active }) } as unknown as KeyStore,
    secrets: {
      digest: async () => {
        hashed += 1;
        throw new Error("not to be reached");
      },
    } as unknown as SecretKeeper,
    policy: { scopes: patterns, memberScopes: patterns, memberMetadata: patterns, maxGraceMs: 0 },
    prefix: "lk",
    clock: () => now,
    randomBytes: (size) => new Uint8Array(size),
  });
  const create = keys.create({ userId: "alice", admin: false }, { scopes: ["read"] }, performance.now() + 10_000);
  await expect(create).rejects.toMatchObject({ reason: "KEY_EXISTS" });
  expect(hashed).toBe(0);
});

test("the documentation says that a change answered by DB_UNAVAILABLE may still have been made", () => {
  for (const file of ["docs/api.md", "proto/latchkey/v1/error_reason.proto"]) {
    const text = readFileSync(file, "utf8").replaceAll(/\s*\n\s*\/\/\s*/g, " ");
    expect(text).toMatch(/may still have (been made|committed)/);
  }
});

test("an answer to GET is not to be stored, neither a key's description nor a refusal", async () => {
  const service = await start();
  const user = randomUUID();
  const url = `${service.baseUrl}/latchkey.v1.ApiKeyService/Get?connect=v1&encoding=json&message=%7B%7D`;
  const headers = { authorization: `Bearer ${await userToken(user)}` };
  for (const status of [404, 200]) {
    if (status === 200) await service.client(user).create({ scopes: ["read"] });
    const response = await fetch(url, { headers });
    expect([response.status, response.headers.get("cache-control")]).toEqual([status, "no-store"]);
  }
});

test("an error's reason is the bare word; the enum of the proto carries its prefix", async () => {
  const { ErrorReason } = await import("#gen/latchkey/v1/error_reason_pb");
  const { reason } = await refusalOf((await start()).client().get({}));
  expect(reason).toBe("NO_KEY");
  expect(ErrorReason[ErrorReason.NO_KEY]).toBe(reason);
  expect(readFileSync("proto/latchkey/v1/error_reason.proto", "utf8")).toContain(`ERROR_REASON_${reason} = `);
});
