import { randomUUID } from "node:crypto";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { Outcome, State } from "#gen/latchkey/v1/api_key_service_pb";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService } from "../support/service.ts";

let service: TestService;
let now = new Date();
const advance = (ms: number) => {
  now = new Date(now.getTime() + ms);
};

beforeAll(async () => {
  service = await startService({
    clock: () => now,
    env: { LATCHKEY_SCOPES: "*,!forbidden:*", LATCHKEY_MAX_TTL: "30d" },
  });
});
afterAll(() => service.stop());

const seconds = (value: number) => ({ case: "ttl" as const, value: { seconds: BigInt(value) } });
const outcomeOf = async (key: string, requiredScopes: string[] = []) =>
  (await service.client().verify({ key, requiredScopes })).outcome;

describe.each(["grpc", "connect"] as const)("over %s", (protocol) => {
  test("a key is created, verified, looked at, rotated and revoked", async () => {
    const user = randomUUID();
    const client = service.client(user, { protocol });
    const created = await client.create({ name: "  laptop ", scopes: ["write", "read", "read"] });
    expect(created.key).toMatch(/^lk_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}$/);
    expect(created.apiKey).toMatchObject({
      userId: user,
      name: "laptop",
      scopes: ["read", "write"],
      state: State.ACTIVE,
    });
    expect(created.apiKey?.prefix).toBe(created.key.slice(0, 11));

    const verified = await client.verify({ key: created.key, requiredScopes: ["read"] });
    expect(verified).toMatchObject({ outcome: Outcome.VALID, apiKey: { id: created.apiKey?.id }, missingScopes: [] });
    expect((await client.get({})).apiKey?.id).toBe(created.apiKey?.id);

    const refreshed = await client.refresh({});
    expect(refreshed).toMatchObject({
      previousKeyRevoked: true,
      apiKey: { name: "laptop", scopes: ["read", "write"] },
    });
    expect(refreshed.previous).toMatchObject({
      id: created.apiKey?.id,
      state: State.REVOKED,
      revocationReason: "superseded",
    });
    expect(await outcomeOf(created.key)).toBe(Outcome.REVOKED);
    expect(await outcomeOf(refreshed.key)).toBe(Outcome.VALID);

    const revoked = await client.revoke({ reason: "lost" });
    expect(revoked).toMatchObject({
      revokedKeyPrefix: refreshed.apiKey?.prefix,
      alsoRevoked: [],
      apiKey: { revocationReason: "lost" },
    });
    expect(await outcomeOf(refreshed.key)).toBe(Outcome.REVOKED);
    expect(await refusalOf(client.get({}))).toMatchObject({ code: "NotFound", reason: "NO_KEY" });
    expect((await client.create({ scopes: ["read"] })).apiKey?.state).toBe(State.ACTIVE);
  });
});

test("Create is refused while an active key exists, and says what to do", async () => {
  const client = service.client();
  await client.create({ scopes: ["read"] });
  expect(await refusalOf(client.create({ scopes: ["read"] }))).toMatchObject({
    code: "AlreadyExists",
    reason: "KEY_EXISTS",
    message: "An active API key already exists. Revoke it first or use refresh.",
    retry: false,
  });
});

test("a key with a grace period goes on working until retires_at, then is revoked as superseded", async () => {
  const client = service.client();
  const first = await client.create({ scopes: ["read"] });
  const second = await client.refresh({ gracePeriod: { seconds: 60n } });
  expect(second).toMatchObject({ previousKeyRevoked: false, previous: { state: State.RETIRING } });
  expect(await outcomeOf(first.key)).toBe(Outcome.VALID);
  advance(60_000);
  const { outcome, apiKey } = await client.verify({ key: first.key });
  expect(outcome).toBe(Outcome.REVOKED);
  expect(apiKey).toMatchObject({
    state: State.REVOKED,
    revocationReason: "superseded",
    revokedAt: second.previous?.retiresAt,
  });
});

test("an earlier retiring key is revoked at once by the next Refresh, with or without a grace period", async () => {
  for (const seconds of [0n, 60n]) {
    const client = service.client();
    const first = await client.create({ scopes: ["read"] });
    await client.refresh({ gracePeriod: { seconds: 60n } });
    await client.refresh({ gracePeriod: { seconds } });
    expect(await outcomeOf(first.key)).toBe(Outcome.REVOKED);
  }
});

test("a grace period never outlives the key's own expiry", async () => {
  const client = service.client();
  const first = await client.create({ scopes: ["read"], lifetime: seconds(30) });
  const { previous } = await client.refresh({ gracePeriod: { seconds: 3_600n } });
  expect(previous?.retiresAt).toEqual(first.apiKey?.expiresAt);
  advance(30_000);
  expect(await outcomeOf(first.key)).toBe(Outcome.EXPIRED);
});

test("Revoke ends the active and the retiring key, and returns both", async () => {
  const client = service.client();
  const first = await client.create({ scopes: ["read"] });
  const second = await client.refresh({ gracePeriod: { seconds: 60n } });
  const revoked = await client.revoke({});
  expect(revoked.apiKey?.id).toBe(second.apiKey?.id);
  expect(revoked.alsoRevoked.map(({ id }) => id)).toEqual([first.apiKey?.id]);
  expect(await Promise.all([outcomeOf(first.key), outcomeOf(second.key)])).toEqual([Outcome.REVOKED, Outcome.REVOKED]);
});

test("rotation passes the same lifetime on, and never makes an expiring key permanent", async () => {
  const client = service.client();
  await client.create({ scopes: ["read"], lifetime: seconds(100) });
  advance(40_000);
  const { apiKey } = await client.refresh({});
  const lifetimeMs = timestampDate(apiKey!.expiresAt!).getTime() - timestampDate(apiKey!.createdAt!).getTime();
  expect(lifetimeMs).toBe(100_000);
});

test("an expired key does not count: Get and Revoke find none, Create succeeds and the record becomes expired", async () => {
  const client = service.client();
  const first = await client.create({ scopes: ["read"], lifetime: seconds(5) });
  advance(5_000);
  expect(await outcomeOf(first.key)).toBe(Outcome.EXPIRED);
  expect(await refusalOf(client.get({}))).toMatchObject({ reason: "NO_KEY" });
  expect(await refusalOf(client.revoke({}))).toMatchObject({ reason: "NO_KEY" });
  const second = await client.create({ scopes: ["read"] });
  expect(await outcomeOf(second.key)).toBe(Outcome.VALID);
  expect((await client.verify({ key: first.key })).apiKey?.state).toBe(State.EXPIRED);
});

test("Refresh over an expired key inherits from it, marks it expired, and does not say that it revoked it", async () => {
  const client = service.client();
  const first = await client.create({ name: "n", scopes: ["read"], lifetime: seconds(5) });
  advance(6_000);
  const refreshed = await client.refresh({ gracePeriod: { seconds: 60n } });
  expect(refreshed).toMatchObject({ previousKeyRevoked: false, apiKey: { name: "n", scopes: ["read"] } });
  expect(refreshed.previous).toMatchObject({ id: first.apiKey?.id, state: State.EXPIRED });
});

test("Refresh without any key creates one, and then needs scopes", async () => {
  const client = service.client();
  expect(await refusalOf(client.refresh({}))).toMatchObject({ reason: "INVALID_ARGUMENT", fields: ["scopes"] });
  const { previous, previousKeyRevoked } = await client.refresh({ scopes: ["read"] });
  expect({ previous, previousKeyRevoked }).toEqual({ previous: undefined, previousKeyRevoked: false });
});

test("with a longest lifetime, a key without an end gets one, and an explicit excess is refused", async () => {
  const { apiKey } = await service.client().create({ scopes: ["read"] });
  expect(timestampDate(apiKey!.expiresAt!).getTime()).toBe(now.getTime() + 30 * 86_400_000);
  const refusal = await refusalOf(service.client().create({ scopes: ["read"], lifetime: seconds(31 * 86_400) }));
  expect(refusal).toMatchObject({ reason: "INVALID_ARGUMENT", fields: ["ttl"] });
});

test("Verify tells a bad key by its outcome, and revoked or expired only to whoever proved the secret", async () => {
  const client = service.client();
  const { key } = await client.create({ scopes: ["read"] });
  await client.revoke({});
  const other = (await service.client().create({ scopes: ["read"] })).key;
  for (const bad of ["", " ", ` ${key}`, key.slice(0, -1), key.replace("lk_", "xx_"), "x".repeat(10_000)]) {
    const { outcome, apiKey } = await client.verify({ key: bad });
    expect({ outcome, apiKey }).toEqual({ outcome: Outcome.MALFORMED, apiKey: undefined });
  }
  const { formatKey, parseAnyKey } = await import("../../src/keys/text.ts");
  const [mine, theirs] = [parseAnyKey(key)!, parseAnyKey(other)!];
  for (const forged of [formatKey({ ...mine, secret: theirs.secret }), formatKey({ ...mine, id: "0".repeat(16) })]) {
    const { outcome, apiKey } = await client.verify({ key: forged });
    expect({ outcome, apiKey }).toEqual({ outcome: Outcome.NOT_FOUND, apiKey: undefined });
  }
});

test("Verify names the scopes that are missing, in the order they were asked for", async () => {
  const { key } = await service.client().create({ scopes: ["b", "d"] });
  const answer = await service.client().verify({ key, requiredScopes: ["c", "b", "a"] });
  expect(answer).toMatchObject({ outcome: Outcome.INSUFFICIENT_SCOPE, missingScopes: ["c", "a"] });
});

test("a member may not grant admin scopes, an admin may, and nobody a scope that does not exist", async () => {
  for (const scope of ["admin", "admin:keys", "admin:a:b"]) {
    expect(await refusalOf(service.client().create({ scopes: [scope] }))).toMatchObject({
      code: "PermissionDenied",
      reason: "SCOPE_FORBIDDEN",
    });
    expect((await service.client(undefined, { admin: true }).create({ scopes: [scope] })).apiKey?.scopes).toEqual([
      scope,
    ]);
  }
  const unknown = service.client(undefined, { admin: true }).create({ scopes: ["forbidden:x"] });
  expect(await refusalOf(unknown)).toMatchObject({ reason: "INVALID_ARGUMENT", fields: ["scopes[0]"] });
});

test("only an admin manages another user's key", async () => {
  const user = randomUUID();
  expect(await refusalOf(service.client().create({ userId: user, scopes: [] }))).toMatchObject({
    reason: "ADMIN_REQUIRED",
  });
  const admin = service.client(undefined, { admin: true });
  expect((await admin.create({ userId: user, scopes: ["read"] })).apiKey?.userId).toBe(user);
  expect((await service.client(user).get({})).apiKey?.userId).toBe(user);
  expect(await refusalOf(admin.get({ userId: "" }))).toMatchObject({ reason: "INVALID_ARGUMENT", fields: ["user_id"] });
});

test("every bad field is reported at once, and nothing is written", async () => {
  const client = service.client();
  const refusal = await refusalOf(
    client.create({ name: " ", scopes: ["Bad", "ok"], lifetime: { case: "ttl", value: { seconds: -1n } } }),
  );
  expect(refusal).toMatchObject({
    code: "InvalidArgument",
    reason: "INVALID_ARGUMENT",
    fields: ["name", "scopes[0]", "ttl"],
  });
  expect(await refusalOf(client.get({}))).toMatchObject({ reason: "NO_KEY" });
});

test("64 concurrent Creates for one user: one succeeds, 63 are told KEY_EXISTS", async () => {
  const client = service.client();
  const results = await Promise.allSettled(Array.from({ length: 64 }, () => client.create({ scopes: ["read"] })));
  const refusals = await Promise.all(
    results.filter((one) => one.status === "rejected").map((one) => refusalOf(Promise.reject(one.reason))),
  );
  expect(refusals.map(({ reason }) => reason)).toEqual(Array(63).fill("KEY_EXISTS"));
});

test("64 concurrent Refreshes for one user leave one key that verifies, and no Get ever sees none", async () => {
  const client = service.client();
  await client.create({ scopes: ["read"] });
  let running = true;
  let gets = 0;
  const watching = (async () => {
    for (; running; gets += 1) await client.get({});
  })();
  const results = await Promise.allSettled(Array.from({ length: 64 }, () => client.refresh({})));
  running = false;
  await watching;
  expect(gets).toBeGreaterThan(0);
  const keys = results.flatMap((one) => (one.status === "fulfilled" ? [one.value.key] : []));
  for (const one of results) {
    if (one.status === "rejected") expect(await refusalOf(Promise.reject(one.reason))).toMatchObject({ retry: true });
  }
  const outcomes = await Promise.all(keys.map((key) => outcomeOf(key)));
  expect(outcomes.filter((outcome) => outcome === Outcome.VALID)).toHaveLength(1);
});
