import { randomBytes } from "node:crypto";
import { beforeEach, describe, expect, test } from "@jest/globals";
import { KeyError } from "../../src/keys/errors.ts";
import { parseKey } from "../../src/keys/format.ts";
import type { KeyRecord } from "../../src/keys/key.ts";
import { type Caller, createKeyManager, type KeyManager, type KeyManagerParts } from "../../src/keys/manage.ts";
import { parseScopePatterns } from "../../src/keys/policy.ts";
import { createRequestSecrets } from "../../src/keys/request-id.ts";
import { type MemoryStore, memoryStore, plainSecrets } from "../support/memory-store.ts";
import { recordOf } from "../support/records.ts";

const DEADLINE = Number.POSITIVE_INFINITY;
const HOUR = 3_600_000;
const requestId = "r".repeat(22);
const origin = { peer: "192.0.2.1", userAgent: "test", requestId: "x" };
const alice: Caller = { userId: "alice", admin: false, origin };
const admin: Caller = { userId: "root", admin: true };
const requestKey = (id: string, fill = 1) => ({ id, secret: Buffer.alloc(32, fill) });

let nowMs: number;
let store: MemoryStore;
let secrets: ReturnType<typeof plainSecrets>;
let keys: KeyManager;

const build = (parts: Partial<KeyManagerParts> = {}) =>
  createKeyManager({
    ...{ store, secrets, prefix: "lk", clock: () => new Date(nowMs), randomBytes },
    requests: createRequestSecrets([requestKey("k1")]),
    policy: {
      ...{ scopes: parseScopePatterns(["*"])!, memberScopes: parseScopePatterns(["!admin:*"])! },
      ...{ maxTtlMs: undefined, maxGraceMs: 24 * HOUR },
    },
    ...parts,
  });

beforeEach(() => {
  nowMs = 1_000 * HOUR;
  store = memoryStore(() => new Date(nowMs));
  secrets = plainSecrets();
  keys = build();
});

const at = (ms: number) => new Date(nowMs + ms);
const span = (ms: number) => ({ seconds: BigInt(Math.floor(ms / 1_000)), nanos: (ms % 1_000) * 1_000_000 });
const ttl = (ms: number) => ({ case: "ttl" as const, value: span(ms) });
const held = (id: string, fields: Partial<KeyRecord> = {}) => {
  const record = recordOf(id, 1, { userId: "alice", createdAt: at(-HOUR), ...fields });
  store.put(record);
  return record;
};
const scopes = ["read"];
const create = (input = {}, caller = alice) => keys.create(caller, { scopes, ...input }, DEADLINE);
const refresh = (input = {}, caller = alice) => keys.refresh(caller, { scopes: [], ...input }, DEADLINE);
const changesBefore = (change: () => void) => {
  store.before = () => {
    store.before = () => {};
    change();
  };
};
const policyOf = (maxTtlMs: number) => ({
  ...{ scopes: parseScopePatterns(["*"])!, memberScopes: parseScopePatterns(["*"])! },
  ...{ maxTtlMs, maxGraceMs: HOUR },
});

describe("Create", () => {
  test("stores an active record of what was asked for, and answers the key of it", async () => {
    const { record, key, ...rest } = await create({ name: " ci ", scopes: ["write", "read"] });
    const parsed = parseKey(key!, ["lk"])!;
    expect(rest).toEqual({});
    expect(record).toEqual({
      ...{ id: parsed.id, userId: "alice", prefix: "lk", name: "ci", scopes: ["read", "write"], state: "active" },
      ...{ secretHash: `plain ${parsed.secret}`, fingerprint: { pepper: "p", mac: new Uint8Array(32) }, rev: 1 },
      ...{ createdAt: at(0), expiresAt: undefined },
    });
    expect(store.records.get(parsed.id)).toBe(record);
    expect(store.lastAudit()).toEqual({
      ...{ at: at(0), action: "Create", result: "changed", actor: "alice", actorIsAdmin: false, userId: "alice" },
      ...{ keyIds: [parsed.id], origin },
    });
  });

  test("a live key is KEY_EXISTS before anything is hashed, and also when it came while the new one was hashed", async () => {
    const exists = { reason: "KEY_EXISTS", message: expect.stringContaining("already exists") };
    changesBefore(() => held("meanwhile"));
    await expect(create()).rejects.toMatchObject(exists);
    expect([secrets.digested.length, store.changes.length]).toEqual([1, 0]);
    await expect(create()).rejects.toMatchObject(exists);
    expect(secrets.digested).toHaveLength(1);
    await expect(create({ requestId })).rejects.toMatchObject(exists);
  });

  test("a key that has run out makes room, and is written down as expired", async () => {
    held("old", { expiresAt: at(0) });
    const { record } = await create();
    expect(store.records.get("old")).toMatchObject({ state: "expired", rev: 2 });
    expect(store.lastAudit()?.keyIds).toEqual([record.id, "old"]);
  });

  test("all bad fields are told at once, before rights to scopes", async () => {
    const bad = { name: " ", scopes: [], lifetime: ttl(0), requestId: "short", userId: "" };
    await expect(create(bad)).rejects.toMatchObject({
      reason: "INVALID_ARGUMENT",
      violations: ["user_id", "request_id", "name", "scopes", "ttl"].map((field) => ({ field })),
    });
    await expect(create({ scopes: ["admin:x"], name: " " })).rejects.toMatchObject({ reason: "INVALID_ARGUMENT" });
  });

  test("only an admin manages another's keys, or grants what members may not", async () => {
    await expect(create({ userId: "bob" })).rejects.toMatchObject({
      ...{ reason: "ADMIN_REQUIRED", message: expect.stringContaining("Only an admin") },
    });
    expect((await create({ userId: "alice" })).record.userId).toBe("alice");
    await expect(create({ scopes: ["admin:x", "read", "admin:y"] })).rejects.toMatchObject({
      ...{ reason: "SCOPE_FORBIDDEN", metadata: { scopes: "admin:x,admin:y" } },
      message: "You may not grant these scopes: admin:x, admin:y. Ask an admin to.",
    });
    const { record } = await create({ userId: "bob", scopes: ["admin:x"] }, admin);
    expect(record).toMatchObject({ userId: "bob", scopes: ["admin:x"] });
    expect(store.lastAudit()).toMatchObject({ actor: "root", actorIsAdmin: true, userId: "bob" });
  });

  test("a ttl counts from the creation, expires_at is kept, and the longest lifetime bounds those without an end", async () => {
    changesBefore(() => {
      nowMs += 5;
    });
    expect((await create({ lifetime: ttl(2_000) })).record.expiresAt).toEqual(at(2_000));
    const end = nowMs + 3_000;
    changesBefore(() => {
      nowMs += 5;
    });
    const lifetime = { case: "expiresAt" as const, value: span(end) };
    expect((await create({ lifetime, userId: "bob" }, admin)).record.expiresAt?.getTime()).toBe(end);
    keys = build({ policy: policyOf(HOUR) });
    expect((await create({ userId: "carol" }, admin)).record.expiresAt).toEqual(at(HOUR));
  });

  test("without request keys a request id is refused", async () => {
    keys = build({ requests: undefined });
    await expect(create({ requestId })).rejects.toMatchObject({
      ...{ reason: "REQUEST_ID_UNSUPPORTED", message: expect.stringContaining("request_id") },
    });
  });
});

describe("a request id", () => {
  test("an old request of a key that ended is forgotten beside the changes of the current ones", async () => {
    const old = await create({ requestId });
    store.put({ ...old.record, state: "revoked" });
    nowMs += 24 * HOUR;
    held("active");
    held("retiring", { state: "retiring", retiresAt: at(HOUR) });
    await refresh({ requestId });
    expect(store.changes.at(-1)!.update.map(({ id, state }) => [id, state])).toEqual([
      [old.record.id, "revoked"],
      ["retiring", "revoked"],
      ["active", "revoked"],
    ]);
  });

  test("the same call again has the same key, and nothing is made", async () => {
    const first = await create({ requestId });
    const second = await create({ requestId });
    expect(first.isRepeat).toBeUndefined();
    expect(second).toEqual({ ...first, previous: undefined, previousKeyRevoked: false, isRepeat: true });
    expect(first.record.request).toMatchObject({ ringId: "k1" });
    expect([secrets.digested.length, store.changes.length]).toEqual([1, 1]);
  });

  test("another call with it is REQUEST_ID_REUSED, and tells the key that was made", async () => {
    const { record } = await create({ requestId });
    await expect(create({ requestId, scopes: ["write"] })).rejects.toMatchObject({
      ...{ reason: "REQUEST_ID_REUSED", metadata: { key_id: record.id } },
      message: expect.stringContaining("something else"),
    });
  });

  test("the key is withheld once it ended, or where its request key is gone or another one", async () => {
    await create({ requestId });
    keys = build({ requests: createRequestSecrets([requestKey("k2")]) });
    const gone = await create({ requestId });
    keys = build({ requests: createRequestSecrets([requestKey("k1", 9)]) });
    const changed = await create({ requestId });
    for (const answer of [gone, changed]) {
      expect(answer).toMatchObject({ withheld: "request_key_gone", isRepeat: true });
      expect(answer.key).toBeUndefined();
    }
    keys = build();
    await keys.revoke(alice, undefined, "", DEADLINE);
    const ended = await create({ requestId });
    expect(ended).toMatchObject({ withheld: "ended", record: { state: "revoked" } });
    expect(ended.key).toBeUndefined();
  });

  test("after 24 hours it is forgotten with the new key, be the old one current or not", async () => {
    const old = await refresh({ scopes, requestId });
    nowMs += 24 * HOUR;
    const next = await refresh({ scopes, requestId, gracePeriod: span(1_000) });
    expect(next.isRepeat).toBeUndefined();
    expect(next.record.id).not.toBe(old.record.id);
    expect(store.records.get(old.record.id)).toMatchObject({ state: "retiring", request: undefined, rev: 2 });
    expect(store.changes.at(-1)!.update).toHaveLength(1);
    nowMs += 24 * HOUR;
    store.put({ ...next.record, state: "revoked" });
    const last = await create({ requestId });
    expect(store.changes.at(-1)!.update.map(({ id, request }) => [id, request])).toEqual([[next.record.id, undefined]]);
    expect(last.record.request).toMatchObject({ id: next.record.request!.id });
  });

  test("no earlier call is looked for where there can be none", async () => {
    const looked: string[] = [];
    store.findRequested = async (_, digest) => {
      looked.push(digest);
      return undefined;
    };
    await create();
    await expect(create({ requestId: "short" })).rejects.toMatchObject({ violations: [{ field: "request_id" }] });
    await expect(create({ requestId, userId: "" })).rejects.toMatchObject({ violations: [{ field: "user_id" }] });
    keys = build({ requests: undefined });
    await expect(create({ requestId })).rejects.toMatchObject({ reason: "REQUEST_ID_UNSUPPORTED" });
    expect(looked).toEqual([]);
  });

  test("a Create and a Refresh are two calls, whatever else they have in common", async () => {
    await create({ requestId });
    await expect(refresh({ scopes, requestId })).rejects.toMatchObject({ reason: "REQUEST_ID_REUSED" });
  });

  test("calls of two users at once don't wait for each other", async () => {
    const { digest } = secrets;
    let release = () => {};
    secrets.digest = (...args) =>
      new Promise((resolve) => {
        release = () => resolve(digest(...args));
      });
    const first = create({ requestId });
    await new Promise(setImmediate);
    secrets.digest = digest;
    expect((await create({ requestId, userId: "bob" }, admin)).key).toBeDefined();
    release();
    expect((await first).key).toBeDefined();
  });

  test("a refusal for any other reason than a key that exists is passed on", async () => {
    await create({ requestId: "q".repeat(22) });
    store.records.clear();
    const made = await create({ requestId });
    store.records.clear();
    changesBefore(() => {
      store.put(made.record);
      throw new KeyError("DB_UNAVAILABLE", "away");
    });
    await expect(create({ requestId })).rejects.toMatchObject({ reason: "DB_UNAVAILABLE" });
  });

  test("equal calls at once cost one hash, and all get the same key", async () => {
    const answers = await Promise.all([create({ requestId }), create({ requestId }), create({ requestId })]);
    expect(new Set(answers.map(({ key }) => key)).size).toBe(1);
    expect(answers.map(({ isRepeat }) => isRepeat === true)).toEqual([false, true, true]);
    expect(secrets.digested).toHaveLength(1);
  });

  test.each(["create", "refresh"] as const)(
    "%s: what another process made meanwhile by the same call is answered",
    async (method) => {
      const call = () => keys[method](alice, { scopes, requestId }, DEADLINE);
      let other: KeyRecord | undefined;
      const { record } = await call();
      store.records.clear();
      changesBefore(() => {
        other = record;
        store.put(record);
      });
      const before = store.changes.length;
      expect(await call()).toMatchObject({ isRepeat: true, record: { id: other!.id } });
      expect(store.changes).toHaveLength(before);
    },
  );

  test("what another process made before the look at the user's keys is answered too", async () => {
    const { record } = await create({ requestId });
    store.records.clear();
    const { findCurrent } = store;
    store.findCurrent = (...args) => {
      store.put(record);
      return findCurrent(...args);
    };
    expect(await create({ requestId })).toMatchObject({ isRepeat: true, record: { id: record.id } });
  });

  test("what another made and is gone again is CONFLICT, to be tried again", async () => {
    const { record } = await create({ requestId });
    store.findRequested = async () => undefined;
    store.put(record);
    store.findCurrent = async () => ({});
    await expect(create({ requestId })).rejects.toMatchObject({
      reason: "CONFLICT",
      retryAfterMs: 100,
      message: "Try again.",
    });
  });

  test("a call that fails leaves nothing behind: the next is made", async () => {
    const { digest } = secrets;
    secrets.digest = () => Promise.reject(new Error("no hash"));
    const failing = [create({ requestId }), create({ requestId })];
    for (const call of failing) await expect(call).rejects.toThrow("no hash");
    secrets.digest = digest;
    expect((await create({ requestId })).key).toBeDefined();
  });
});

describe("Get", () => {
  test("the active key while it is live; else NO_KEY", async () => {
    const noKey = { reason: "NO_KEY", message: "There is no active API key." };
    await expect(keys.get(alice, undefined, DEADLINE)).rejects.toMatchObject(noKey);
    const record = held("a", { expiresAt: at(1) });
    expect(await keys.get(admin, "alice", DEADLINE)).toBe(record);
    nowMs += 1;
    await expect(keys.get(alice, undefined, DEADLINE)).rejects.toMatchObject(noKey);
    await expect(keys.get(alice, "bob", DEADLINE)).rejects.toMatchObject({ reason: "ADMIN_REQUIRED" });
    await expect(keys.get(alice, "", DEADLINE)).rejects.toMatchObject({ violations: [{ field: "user_id" }] });
  });
});

describe("Refresh", () => {
  test("without a grace period the old key is revoked, and what was not said is as it was", async () => {
    held("old", { name: "ci", scopes: ["read", "write"], expiresAt: at(HOUR) });
    const { record, previous, previousKeyRevoked, key } = await refresh({ requestId });
    expect(parseKey(key!, ["lk"])?.id).toBe(record.id);
    expect(record).toMatchObject({ name: "ci", scopes: ["read", "write"], expiresAt: at(2 * HOUR), createdAt: at(0) });
    expect(record.request).toMatchObject({ previousId: "old", previousRevoked: true });
    expect([previous, previousKeyRevoked]).toMatchObject([
      { id: "old", state: "revoked", revokedAt: at(0), revocationReason: "superseded" },
      true,
    ]);
    expect(store.lastAudit()).toMatchObject({ action: "Refresh", userId: "alice", keyIds: [record.id, "old"] });
    expect(await refresh({ requestId })).toMatchObject({ previous: { id: "old" }, previousKeyRevoked: true, key });
  });

  test("what is said replaces what was", async () => {
    held("old", { name: "ci", scopes: ["read", "write"] });
    const { record } = await refresh({ name: "new", scopes: ["other"], lifetime: ttl(9_000) });
    expect(record).toMatchObject({ name: "new", scopes: ["other"], expiresAt: at(9_000) });
    expect((await refresh()).record.expiresAt).toEqual(at(9_000));
  });

  test("with a grace period the old key retires, no later than it expires, and an older retiring one ends first", async () => {
    held("older", { state: "retiring", retiresAt: at(HOUR) });
    held("old");
    const { previous, previousKeyRevoked } = await refresh({ gracePeriod: span(5_000) });
    expect([previous, previousKeyRevoked]).toMatchObject([{ state: "retiring", retiresAt: at(5_000) }, false]);
    expect(store.changes[0]!.update).toMatchObject([
      { id: "older", state: "revoked", revokedAt: at(0), revocationReason: "superseded" },
      { id: "old", state: "retiring" },
    ]);
    held("short", { userId: "bob", expiresAt: at(1_000) });
    const bob = await refresh({ userId: "bob", gracePeriod: span(5_000) }, admin);
    expect(bob.previous).toMatchObject({ state: "retiring", retiresAt: at(1_000) });
  });

  test("without an active key it needs scopes, and replaces nothing", async () => {
    await expect(refresh()).rejects.toMatchObject({ reason: "INVALID_ARGUMENT", violations: [{ field: "scopes" }] });
    const { record, previous, previousKeyRevoked } = await refresh({ scopes, requestId });
    expect([previous, previousKeyRevoked, record.expiresAt]).toEqual([undefined, false, undefined]);
    expect(record.request).not.toHaveProperty("previousId");
    expect(store.changes[0]!.update).toEqual([]);
  });

  test("a key that has run out is written down as expired, not as revoked", async () => {
    held("old", { expiresAt: at(0) });
    const { previous, previousKeyRevoked } = await refresh();
    expect([previous?.state, previousKeyRevoked]).toEqual(["expired", false]);
  });

  test("the lifetime that it inherits is bounded by the longest allowed", async () => {
    held("old", { expiresAt: at(5 * HOUR) });
    keys = build({ policy: policyOf(HOUR) });
    expect((await refresh()).record.expiresAt).toEqual(at(HOUR));
  });

  test("another's key is an admin's, and a grace period is checked", async () => {
    await expect(refresh({ userId: "bob" })).rejects.toMatchObject({ reason: "ADMIN_REQUIRED" });
    await expect(refresh({ gracePeriod: span(25 * HOUR) })).rejects.toMatchObject({
      violations: [{ field: "grace_period" }],
    });
  });
});

describe("Revoke", () => {
  test("ends the active key and the retiring one, with the reason", async () => {
    held("a");
    held("r", { state: "retiring", retiresAt: at(HOUR) });
    const { active, retiring } = await keys.revoke(admin, "alice", "leaked", DEADLINE);
    const ended = { state: "revoked", revokedAt: at(0), revocationReason: "leaked" };
    expect([active, retiring]).toMatchObject([
      { id: "a", ...ended },
      { id: "r", ...ended },
    ]);
    expect(store.lastAudit()).toMatchObject({ action: "Revoke", userId: "alice", actor: "root", keyIds: ["a", "r"] });
  });

  test("what has run out is left alone, and NO_KEY when nothing is left", async () => {
    held("a", { expiresAt: at(0) });
    held("r", { state: "retiring", retiresAt: at(1) });
    const { active, retiring } = await keys.revoke(alice, undefined, "", DEADLINE);
    expect([active, retiring?.revocationReason]).toEqual([undefined, undefined]);
    expect(store.lastAudit()?.keyIds).toEqual(["r"]);
    await expect(keys.revoke(alice, undefined, "", DEADLINE)).rejects.toMatchObject({ reason: "NO_KEY" });
  });

  test("the owner and the reason are checked", async () => {
    await expect(keys.revoke(alice, "bob", "", DEADLINE)).rejects.toMatchObject({ reason: "ADMIN_REQUIRED" });
    await expect(keys.revoke(alice, "", "superseded", DEADLINE)).rejects.toMatchObject({
      violations: [{ field: "user_id" }, { field: "reason" }],
    });
  });
});
