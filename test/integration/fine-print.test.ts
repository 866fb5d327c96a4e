import { randomUUID } from "node:crypto";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { afterAll, expect, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { Outcome, State } from "#gen/latchkey/v1/api_key_service_pb";
import { formatKey, parseAnyKey } from "../../src/keys/format.ts";
import { refusalOf } from "../support/errors.ts";
import { PEPPER, startService, type TestService } from "../support/service.ts";

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
    expect((await records.findOne({ _id: apiKey!.id }))?.fingerprint.pepper).toBe(expected);
  }
  expect((await records.findOne({ _id: apiKey!.id }))?.rev).toBe(3);
  await mongo.close();
});
