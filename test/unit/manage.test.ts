import { createHash } from "node:crypto";
import { beforeEach, expect, test } from "@jest/globals";
import type { AuditEntry } from "../../src/keys/audit/entry.ts";
import type { Caller } from "../../src/keys/caller.ts";
import { KeyError } from "../../src/keys/errors.ts";
import type { KeyInput } from "../../src/keys/input.ts";
import { createKeyManager, type KeyManager } from "../../src/keys/manage.ts";
import { type Lifetime, type Policy, parseScopePatterns } from "../../src/keys/policy.ts";
import type { KeyStore } from "../../src/keys/ports.ts";
import type { KeyRecord } from "../../src/keys/record.ts";
import { createRequestSecrets, REQUEST_REMEMBERED_MS, type RequestKey } from "../../src/keys/request-id.ts";
import type { SecretKeeper } from "../../src/keys/secret.ts";
import { parseKey } from "../../src/keys/text.ts";
import { etagOf } from "../../src/keys/update.ts";
import { createFakeStore } from "../support/fake-store.ts";
import { deferred, recordOf } from "../support/records.ts";

const START_MS = Date.UTC(2026, 10, 25);
/** A change happens that much later than the call came. */
const LATER_MS = 250;
const DEADLINE_MS = 5_000;
const MINUTE_MS = 60_000;
const HOUR_MS = 3_600_000;
const ID = "r".repeat(22);
const origin = { peer: "127.0.0.1", userAgent: "test", requestId: "x" };
const alice: Caller = { userId: "alice", admin: false, origin };
const bob: Caller = { userId: "bob", admin: false };
const root: Caller = { userId: "root", admin: true };
const ring: RequestKey[] = [
  { id: "r2", secret: Buffer.alloc(32, 2) },
  { id: "r1", secret: Buffer.alloc(32, 1) },
];
const policy: Policy = {
  scopes: parseScopePatterns(["!nowhere"])!,
  memberScopes: parseScopePatterns(["!admin", "!admin:*"])!,
  memberMetadata: parseScopePatterns(["label-*"])!,
  maxGraceMs: HOUR_MS,
};

let nowMs: number;
let records: Map<string, KeyRecord>;
let trail: AuditEntry[];
/** Calls of the store, by method. */
let asks: string[];
let hashes: number;
/** Run once, before the store's next call of that name. */
let meanwhile: Map<string, () => unknown>;
let keys: KeyManager;

beforeEach(() => {
  [nowMs, records, trail, asks, hashes, meanwhile] = [START_MS, new Map(), [], [], 0, new Map()];
  keys = managerOf();
});

interface Differing extends Partial<Policy> {
  requestKeys?: RequestKey[] | undefined;
}

function managerOf({ requestKeys = ring, ...rules }: Differing = {}): KeyManager {
  let byte = 0;
  return createKeyManager({
    ...{ store: fakeStore(), secrets: fakeSecrets() },
    requests: requestKeys.length > 0 ? createRequestSecrets(requestKeys) : undefined,
    policy: { ...policy, ...rules },
    prefix: "acme",
    clock: () => new Date(nowMs),
    randomBytes: (size) => {
      byte += 1;
      return Buffer.alloc(size, byte + records.size);
    },
  });
}

const sha256 = (text: string) => createHash("sha256").update(text).digest();

function fakeSecrets(): SecretKeeper {
  return {
    digest: async (id, secret) => {
      hashes += 1;
      return { secretHash: "$argon2id$", fingerprint: { pepper: "p", mac: sha256(id + secret) } };
    },
    // No secret at all is a defect to the real one too.
    prove: (id, secret, digests) => ({
      proven: secret.length === 43 && sha256(id + secret).equals(digests!.fingerprint!.mac),
    }),
  };
}

function fakeStore(): KeyStore {
  const asked = async (name: string) => {
    asks.push(name);
    const other = meanwhile.get(name);
    meanwhile.delete(name);
    await other?.();
  };
  return createFakeStore({ records, trail, asked, nowMs: () => nowMs, laterMs: LATER_MS });
}

/** A key of alice's that is stored; its id says which. */
function stored(id: string, fields: Partial<KeyRecord> = {}): KeyRecord {
  const record = recordOf(id, 5, { userId: "alice", createdAt: new Date(START_MS - MINUTE_MS), ...fields });
  records.set(id, Object.freeze(record));
  return record;
}

const at = (ms: number) => new Date(START_MS + ms);
const ttl = (seconds: number): Lifetime => ({ case: "ttl", value: { seconds: BigInt(seconds), nanos: 0 } });
const until = (ms: number): Lifetime => ({
  case: "expiresAt",
  value: { seconds: BigInt(Math.floor((START_MS + ms) / 1_000)), nanos: (ms % 1_000) * 1_000_000 },
});
const grace = (seconds: number) => ({ seconds: BigInt(seconds), nanos: 0 });
const create = (input: Partial<KeyInput> = {}, caller = alice, manager = keys) =>
  manager.create(caller, { scopes: ["read"], ...input }, DEADLINE_MS);
const refresh = (input: Partial<KeyInput> = {}, caller = alice, manager = keys) =>
  manager.refresh(caller, { scopes: [], ...input }, DEADLINE_MS);
const calls = { create, refresh };
const states = () => Object.fromEntries([...records.values()].map(({ id, state }) => [id, state]));

async function refusalOf(call: Promise<unknown>): Promise<Partial<KeyError> & { fields?: string[] }> {
  const error = await call.then(
    (answer) => expect(answer).toBe("refused"),
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof KeyError)) throw error;
  const { reason, message, metadata, violations, retryAfterMs } = error;
  return { reason, message, metadata, retryAfterMs, fields: violations.map(({ field }) => field) };
}

const KEY_EXISTS = {
  reason: "KEY_EXISTS",
  message: "An active API key already exists. Revoke it first or use refresh.",
};
const NO_KEY = { reason: "NO_KEY", message: "There is no active API key." };

test("Create makes the key that was asked for, writes down who did so, and keeps nothing of the secret", async () => {
  const { record, key, ...rest } = await create({ name: " laptop ", scopes: ["write", "read", "write"] });
  const { id, secret } = parseKey(key!, ["acme"])!;
  expect(rest).toEqual({});
  expect(record).toStrictEqual({
    ...{ id, userId: "alice", prefix: "acme", name: "laptop", scopes: ["read", "write"], state: "active", rev: 1 },
    ...{ secretHash: "$argon2id$", fingerprint: { pepper: "p", mac: sha256(id + secret) }, metadata: undefined },
    ...{ createdAt: at(LATER_MS), expiresAt: undefined },
  });
  expect(records.get(id)).toEqual(record);
  expect(trail).toEqual([
    {
      ...{ at: at(LATER_MS), action: "Create", result: "changed", actor: "alice", actorIsAdmin: false, origin },
      ...{ userId: "alice", keyIds: [id] },
    },
  ]);
});

const everywhere = { name: " ", scopes: ["A"], lifetime: ttl(0), gracePeriod: grace(-1), requestId: "short" };
const fields = ["request_id", "name", "scopes[0]", "ttl", "grace_period"];
const ofAnother = { reason: "ADMIN_REQUIRED", message: "Only an admin may manage another user's key." };
const noScope = { reason: "INVALID_ARGUMENT", message: "scopes: must name at least one scope" };
const forbidden = {
  reason: "SCOPE_FORBIDDEN",
  message: "You may not grant these scopes: admin, admin:all. Ask an admin to.",
  metadata: { scopes: "admin,admin:all" },
};
const unsupported = {
  reason: "REQUEST_ID_UNSUPPORTED",
  message: "This service has no request keys: leave request_id out.",
};
const tooMuch = ["admin:all", "read", "admin"];
interface Refused {
  what: string;
  caller?: Caller;
  input: Partial<KeyInput>;
  expected: object;
  differing?: Differing;
}
const withoutRequestKeys = { requestKeys: [] };
test.each<Refused>([
  { what: "another's key, before all fields", input: { ...everywhere, userId: "bob" }, expected: ofAnother },
  { what: "every bad field at once", input: everywhere, expected: { reason: "INVALID_ARGUMENT", fields } },
  {
    what: "nobody's key, as a bad field",
    ...{ input: { ...everywhere, userId: "" }, expected: { fields: ["user_id", ...fields] } },
  },
  {
    what: "a bad user_id under a good request id",
    ...{ caller: root, input: { userId: "\ud800", requestId: ID }, expected: { fields: ["user_id"] } },
  },
  {
    what: "a scope that does not exist, to an admin too",
    ...{ caller: root, input: { scopes: ["nowhere"] }, expected: { fields: ["scopes[0]"] } },
  },
  {
    what: "bad fields, before forbidden scopes",
    ...{ input: { scopes: ["admin"], name: "" }, expected: { fields: ["name"] } },
  },
  { what: "scopes that are not a member's to grant", input: { scopes: tooMuch }, expected: forbidden },
  {
    what: "forbidden scopes, before an id that can't be used",
    ...{ input: { scopes: tooMuch, requestId: ID }, expected: forbidden, differing: withoutRequestKeys },
  },
  {
    what: "a request id without request keys",
    ...{ input: { scopes: ["read"], requestId: ID }, expected: unsupported, differing: withoutRequestKeys },
  },
])("Create and Refresh refuse $what, and neither read nor hash for it", async (row) => {
  const { caller = alice, input, expected, differing } = row;
  for (const call of [create, refresh]) {
    expect(await refusalOf(call(input, caller, managerOf(differing)))).toMatchObject(expected);
  }
  expect({ asks, hashes }).toEqual({ asks: [], hashes: 0 });
});

test("Create lists bad fields in their order, the lack of scopes among them", async () => {
  expect(await refusalOf(create({ name: " ", scopes: [], lifetime: ttl(0) }))).toMatchObject({
    fields: ["name", "scopes", "ttl"],
    message: expect.stringMatching(/^name: .*; scopes: must name at least one scope; ttl: /),
  });
});

test("Get and Revoke refuse another's key, then nobody's and a bad reason", async () => {
  stored("current");
  for (const call of [keys.get(alice, "bob", 0), keys.revoke(alice, "bob", { reason: "x".repeat(513) }, 0)]) {
    expect(await refusalOf(call)).toMatchObject(ofAnother);
  }
  expect(await refusalOf(keys.get(alice, "", 0))).toMatchObject({ fields: ["user_id"] });
  expect(await refusalOf(keys.revoke(alice, "", { reason: "superseded" }, 0))).toMatchObject({
    fields: ["user_id", "reason"],
  });
  expect(asks).toEqual([]);
});

test("an admin manages another's key and grants any scope, and the trail tells the two apart", async () => {
  const { record } = await create({ userId: "alice", scopes: ["admin:all"] }, root);
  expect(record).toMatchObject({ userId: "alice", scopes: ["admin:all"] });
  expect(await keys.get(root, "alice", 0)).toEqual(record);
  expect(await keys.get(alice, "alice", 0)).toEqual(record);
  await refresh({ userId: "alice" }, root);
  await keys.revoke(root, "alice", { reason: "" }, 0);
  expect(trail.map(({ action, actor, actorIsAdmin, userId }) => [action, actor, actorIsAdmin, userId])).toEqual(
    ["Create", "Refresh", "Revoke"].map((action) => [action, "root", true, "alice"]),
  );
  expect(await refusalOf(keys.get(root, undefined, 0))).toMatchObject(NO_KEY);
});

test("Create without scopes, and Refresh without scopes and key, ask for at least one", async () => {
  expect(await refusalOf(create({ scopes: [] }))).toMatchObject(noScope);
  expect(await refusalOf(refresh())).toMatchObject(noScope);
  expect(records.size).toBe(0);
});

test.each<["create" | "refresh", number | undefined, Lifetime | undefined, number | undefined, number | undefined]>([
  ["create", undefined, undefined, undefined, undefined],
  ["create", undefined, ttl(60), undefined, LATER_MS + MINUTE_MS],
  ["create", undefined, until(90_001), undefined, 90_001],
  ["create", undefined, undefined, HOUR_MS, LATER_MS + HOUR_MS],
  ["create", undefined, ttl(60), HOUR_MS, LATER_MS + MINUTE_MS],
  ["create", undefined, until(HOUR_MS), HOUR_MS, HOUR_MS],
  ["refresh", undefined, undefined, undefined, undefined],
  ["refresh", 2 * HOUR_MS, undefined, undefined, LATER_MS + 2 * HOUR_MS],
  ["refresh", 2 * HOUR_MS, ttl(60), undefined, LATER_MS + MINUTE_MS],
  ["refresh", 2 * HOUR_MS, until(90_001), undefined, 90_001],
  ["refresh", 2 * HOUR_MS, undefined, HOUR_MS, LATER_MS + HOUR_MS],
  ["refresh", undefined, undefined, HOUR_MS, LATER_MS + HOUR_MS],
])(
  "%s, over a lifetime of %s ms, asked for %o, at most %s ms: the key ends after %s ms",
  async (method, inheritedMs, lifetime, maxTtlMs, endsMs) => {
    const createdAt = at(-MINUTE_MS);
    const expiresAt = inheritedMs === undefined ? undefined : new Date(createdAt.getTime() + inheritedMs);
    if (method === "refresh") stored("current", { createdAt, expiresAt });
    const { record } = await calls[method]({ lifetime }, alice, managerOf({ maxTtlMs }));
    expect(record.expiresAt).toEqual(endsMs === undefined ? undefined : at(endsMs));
  },
);

test("no end goes beyond what an answer can hold, however long a lifetime is inherited or a grace period", async () => {
  const last = Date.UTC(9999, 11, 31, 23, 59, 59, 999);
  stored("current", { createdAt: at(-MINUTE_MS), expiresAt: new Date(last) });
  const { record } = await refresh({});
  expect(record.expiresAt).toEqual(new Date(last));
  const forever = managerOf({ maxTtlMs: last, maxGraceMs: last });
  const renewed = await refresh({ gracePeriod: grace(253_402_300_798) }, alice, forever);
  expect(renewed.record.expiresAt).toEqual(new Date(last));
  expect(renewed.previous?.retiresAt).toEqual(new Date(last));
});

test("an explicit end beyond the longest lifetime, or a longer grace period than allowed, is refused", async () => {
  const manager = managerOf({ maxTtlMs: MINUTE_MS });
  expect(await refusalOf(create({ lifetime: ttl(61) }, alice, manager))).toMatchObject({ fields: ["ttl"] });
  expect(await refusalOf(refresh({ gracePeriod: grace(3_601) }))).toMatchObject({ fields: ["grace_period"] });
});

const overdue = { expiresAt: at(0) };
const retiring = { state: "retiring", retiresAt: at(HOUR_MS) } as const;
const runOut = { state: "retiring", retiresAt: at(-1) } as const;

test("an active key refuses Create before the hash, and one that came meanwhile refuses it after", async () => {
  stored("current");
  expect(await refusalOf(create())).toMatchObject(KEY_EXISTS);
  expect([hashes, asks]).toEqual([0, ["findCurrent"]]);
  records.clear();
  meanwhile.set("change", () => stored("current"));
  expect(await refusalOf(create())).toMatchObject(KEY_EXISTS);
  expect([hashes, states(), trail]).toEqual([1, { current: "active" }, []]);
});

test("a key that has expired, or retires, does not count: Get finds none, and Create marks it expired or leaves it", async () => {
  expect(await refusalOf(keys.get(alice, undefined, 0))).toMatchObject(NO_KEY);
  stored("overdue", overdue);
  const retires = stored("retires", retiring);
  expect(await refusalOf(keys.get(alice, undefined, 0))).toMatchObject(NO_KEY);
  const { record } = await create();
  expect(states()).toEqual({ overdue: "expired", retires: "retiring", [record.id]: "active" });
  // Written as it is: a Suspend at the same time writes it too.
  expect(records.get("retires")).toEqual({ ...retires, rev: 6 });
  expect(trail[0]!.keyIds).toEqual([record.id, "overdue"]);
  expect(await keys.get(alice, undefined, 0)).toEqual(record);
});

const ended = {
  state: "revoked",
  revokedAt: at(LATER_MS),
  revocationReason: "superseded",
  revocationCause: "superseded",
};
test.each<[string, Partial<KeyRecord>, number, object, boolean]>([
  ["at once, without a grace period", {}, 0, ended, true],
  ["at once, though it had an end", { expiresAt: at(HOUR_MS) }, 0, ended, true],
  ["after its grace period", {}, 60, { state: "retiring", retiresAt: at(LATER_MS + MINUTE_MS) }, false],
  [
    ...(["after its grace period, where its end is later", { expiresAt: at(HOUR_MS) }, 60] as const),
    ...([{ state: "retiring", retiresAt: at(LATER_MS + MINUTE_MS), expiresAt: at(HOUR_MS) }, false] as const),
  ],
  [
    ...(["at its own end, where the grace period is longer", { expiresAt: at(30_000) }, 60] as const),
    ...([{ state: "retiring", retiresAt: at(30_000), expiresAt: at(30_000) }, false] as const),
  ],
  ["at the end that it has passed", overdue, 60, { state: "expired", ...overdue }, false],
])("Refresh ends the key it replaces %s", async (_, before, graceS, after, previousKeyRevoked) => {
  const current = stored("current", { name: "n", scopes: ["old:scope", "admin"], ...before });
  const answer = await refresh({ gracePeriod: grace(graceS) });
  expect(answer).toMatchObject({ previousKeyRevoked, record: { name: "n", scopes: ["old:scope", "admin"] } });
  expect(answer.previous).toEqual({ ...current, ...after });
  expect(records.get("current")).toEqual({ ...current, ...after, rev: 6 });
  expect(records.get(answer.record.id)).toEqual(answer.record);
  expect(answer.key).toContain(`acme_${answer.record.id}_`);
  expect(trail.map(({ action, keyIds }) => [action, keyIds])).toEqual([["Refresh", [answer.record.id, "current"]]]);
});

test.each<[string, Partial<KeyRecord>, object]>([
  ["that lives is revoked at once", retiring, ended],
  ["that has run out is written down as it ended", runOut, { ...ended, revokedAt: runOut.retiresAt }],
])("Refresh leaves one retiring key: an earlier one %s", async (_, before, after) => {
  stored("earlier", before);
  stored("current");
  const { record } = await refresh({ gracePeriod: grace(60) });
  expect(records.get("earlier")).toMatchObject(after);
  expect(records.get("current")).toMatchObject({ state: "retiring" });
  expect(trail[0]!.keyIds).toEqual([record.id, "earlier", "current"]);
});

test("Refresh without a key makes one, ends a retiring one, and takes what it is given before what it would inherit", async () => {
  stored("retires", retiring);
  const first = await refresh({ scopes: ["read"] });
  expect(first).toEqual({ record: first.record, key: first.key, previous: undefined, previousKeyRevoked: false });
  expect(first.record).toMatchObject({ name: undefined, scopes: ["read"], expiresAt: undefined });
  expect(records.get("retires")).toMatchObject(ended);
  const second = await refresh({ scopes: ["write"], name: " n " });
  expect(second.record).toMatchObject({ name: "n", scopes: ["write"] });
});

const revokedNow = { state: "revoked", revokedAt: at(LATER_MS), revocationReason: "lost" };
test.each<[string, Partial<KeyRecord> | undefined, Partial<KeyRecord> | undefined, string[]]>([
  ["the active key", {}, undefined, ["active"]],
  ["the active and the retiring key", {}, retiring, ["active", "retiring"]],
  ["the retiring key, if it is the only one", undefined, retiring, ["retiring"]],
  ["the retiring key, if the active one has expired", overdue, retiring, ["retiring"]],
  ["the active key, if the retiring one has run out", {}, runOut, ["active"]],
  ["nothing, if there is none", undefined, undefined, []],
  ["nothing, if all have ended", overdue, runOut, []],
])("Revoke ends %s, and tells which", async (_, active, retires, expected) => {
  if (active) stored("active", active);
  if (retires) stored("retiring", retires);
  const before = new Map(records);
  const call = keys.revoke(alice, undefined, { reason: "lost" }, 0);
  if (expected.length === 0) {
    expect(await refusalOf(call)).toMatchObject(NO_KEY);
  } else {
    const answer = await call;
    expect(Object.values(answer).flatMap((record) => record ?? [])).toEqual(
      expected.map((id) => ({ ...before.get(id), ...revokedNow })),
    );
    expect([answer.active?.id, answer.retiring?.id]).toEqual(
      ["active", "retiring"].map((id) => (expected.includes(id) ? id : undefined)),
    );
    expect(trail).toMatchObject([{ action: "Revoke", keyIds: expected }]);
  }
  for (const [id, record] of before) {
    expect(records.get(id)).toEqual(expected.includes(id) ? { ...record, ...revokedNow, rev: 6 } : record);
  }
});

test("after Revoke without a reason the key has none, and Create makes another", async () => {
  stored("current");
  expect((await keys.revoke(alice, undefined, { reason: "" }, 0)).active!.revocationReason).toBeUndefined();
  expect((await create()).record.state).toBe("active");
});

test("a repeat has the same key, costs no hash, writes nothing, and does not ask whether its fields are still good", async () => {
  const input = { scopes: ["read"], requestId: ID, lifetime: ttl(600) };
  const first = await create(input);
  expect(first.isRepeat).toBeUndefined();
  expect(first.record.request).toMatchObject({ id: sha256(ID).toString("base64url"), ringId: "r2" });
  expect(JSON.stringify([...records.values()])).not.toContain(ID);
  const before = new Map(records);
  for (const manager of [keys, managerOf({ maxTtlMs: MINUTE_MS }), managerOf({ requestKeys: ring.toReversed() })]) {
    expect(await create(input, alice, manager)).toEqual({ ...first, previousKeyRevoked: false, isRepeat: true });
  }
  expect([records, hashes, trail.length]).toEqual([before, 1, 1]);
  expect((await create({ ...input, userId: "alice" }, root)).key).toBe(first.key);
  expect((await create(input, bob)).key).not.toBe(first.key);
});

test.each([0, 60])("a repeated Refresh with %s s of grace tells of the key that it replaced", async (seconds) => {
  stored("current");
  const input = { requestId: ID, gracePeriod: grace(seconds) };
  const first = await refresh(input);
  expect(first.previousKeyRevoked).toBe(seconds === 0);
  const previous = { ...first.previous!, rev: 6 };
  expect(await refresh(input)).toEqual({ ...first, previous, isRepeat: true });
  expect(records.size).toBe(2);
});

test("an id that was used for something else is REQUEST_ID_REUSED, with the key that it made", async () => {
  const { record } = await create({ requestId: ID });
  for (const call of [create({ requestId: ID, scopes: ["write"] }), refresh({ requestId: ID, scopes: ["read"] })]) {
    expect(await refusalOf(call)).toMatchObject({
      reason: "REQUEST_ID_REUSED",
      message: "This request_id was used within 24 hours for a call that asked for something else.",
      metadata: { key_id: record.id },
    });
  }
  expect(records.size).toBe(1);
});

test("a repeat is without the key once that has ended, or its request key has gone or become another", async () => {
  const { record } = await create({ requestId: ID });
  const [gone, another] = [[ring[1]!], [{ ...ring[0]!, secret: Buffer.alloc(32, 9) }]];
  const told = { record, previous: undefined, previousKeyRevoked: false, isRepeat: true };
  for (const requestKeys of [gone, another]) {
    const repeat = await create({ requestId: ID }, alice, managerOf({ requestKeys }));
    expect(repeat).toEqual({ ...told, withheld: "request_key_gone" });
  }
  const { active } = await keys.revoke(alice, undefined, { reason: "lost" }, 0);
  const repeat = await create({ requestId: ID });
  expect(repeat).toEqual({ ...told, record: { ...active, rev: 2 }, withheld: "ended" });
});

test("an id stands for its key for 24 hours; then it makes another, and the old key carries it no more", async () => {
  const first = await create({ requestId: ID });
  nowMs = START_MS + LATER_MS + REQUEST_REMEMBERED_MS - 1;
  expect((await create({ requestId: ID })).key).toBe(first.key);
  nowMs += 1;
  expect(await refusalOf(create({ requestId: ID }))).toMatchObject(KEY_EXISTS);
  const input = { requestId: ID, gracePeriod: grace(3_600) };
  // The old request is the active key's, then a retiring one's, then that of one that has ended.
  const second = await refresh(input);
  expect(second).toMatchObject({ previous: { id: first.record.id, state: "retiring" }, previousKeyRevoked: false });
  const { request, ...rest } = records.get(second.record.id)!;
  stored(second.record.id, rest);
  stored(first.record.id, { ...records.get(first.record.id)!, request });
  const third = await refresh({ ...input, gracePeriod: grace(60) });
  expect(states()).toEqual({
    [first.record.id]: "revoked",
    [second.record.id]: "retiring",
    [third.record.id]: "active",
  });
  await keys.revoke(alice, undefined, { reason: "" }, 0);
  nowMs += LATER_MS + REQUEST_REMEMBERED_MS;
  const fourth = await create({ requestId: ID });
  expect(trail.at(-1)!.keyIds).toEqual([fourth.record.id, third.record.id]);
  expect([...records.values()].filter((record) => record.request).map(({ id }) => id)).toEqual([fourth.record.id]);
  expect(new Set([first.key, second.key, third.key, fourth.key]).size).toBe(4);
});

test("of equal calls at once one hashes and the others have its key, while another user's goes on by itself", async () => {
  const held = deferred<void>();
  meanwhile.set("change", () => held.promise);
  const equal = [create({ requestId: ID }), create({ requestId: ID }), create({ requestId: ID })];
  const other = await create({ requestId: ID }, bob);
  expect(other.isRepeat).toBeUndefined();
  expect(hashes).toBe(2);
  held.resolve();
  const [first, ...repeats] = await Promise.all(equal);
  for (const repeat of repeats) expect(repeat).toMatchObject({ key: first!.key, isRepeat: true });
  expect([first!.isRepeat, hashes, records.size]).toEqual([undefined, 2, 2]);
});

test("a call that fails fails alone: an equal one that waited for it makes the key", async () => {
  const lost = new KeyError("DB_UNAVAILABLE", "gone");
  meanwhile.set("change", () => Promise.reject(lost));
  const [failed, made] = await Promise.allSettled([create({ requestId: ID }), create({ requestId: ID })]);
  expect(failed).toEqual({ status: "rejected", reason: lost });
  expect(made).toMatchObject({ status: "fulfilled", value: { record: { userId: "alice" } } });
  expect(hashes).toBe(2);
});

test.each<["create" | "refresh", string]>([
  ["create", "findCurrent"],
  ["create", "change"],
  ["refresh", "change"],
])("%s has the key that the same call made in another process, before its %s", async (method, moment) => {
  const input = { requestId: ID, scopes: ["read"] };
  const elsewhere = managerOf();
  let first: { key?: string | undefined } | undefined;
  meanwhile.set(moment, async () => {
    first = await calls[method](input, alice, elsewhere);
  });
  expect(await calls[method](input)).toMatchObject({ key: first!.key, isRepeat: true });
  expect([records.size, trail.length]).toEqual([1, 1]);
});

test.each(["create", "refresh"] as const)(
  "%s whose key was made by another, and can't be found then, is to be tried again",
  async (method) => {
    const input = { requestId: ID, scopes: ["read"] };
    meanwhile.set("change", async () => {
      await calls[method](input, alice, managerOf());
      meanwhile.set("findRequested", () => records.clear());
    });
    expect(await refusalOf(calls[method](input))).toMatchObject({
      ...{ reason: "CONFLICT", message: "Try again.", retryAfterMs: 100 },
    });
  },
);

test("a failure that says nothing of another key is passed on as it is, whatever it is", async () => {
  for (const error of [new KeyError("DB_UNAVAILABLE", "gone"), new TypeError("a defect")]) {
    meanwhile.set("change", () => Promise.reject(error));
    await expect(create({ requestId: ID })).rejects.toBe(error);
  }
  expect(asks.filter((name) => name === "findRequested")).toHaveLength(2);
});

test("without request keys, keys are made by calls without a request id", async () => {
  expect((await create({}, alice, managerOf(withoutRequestKeys))).key).toMatch(/^acme_/);
});

test("an old id is taken from the ended key that carries it, though another key is marked expired at the same time", async () => {
  const first = await create({ requestId: ID });
  await keys.revoke(alice, undefined, { reason: "" }, 0);
  nowMs += LATER_MS + REQUEST_REMEMBERED_MS;
  stored("overdue", overdue);
  const { record } = await create({ requestId: ID });
  expect(trail.at(-1)!.keyIds).toEqual([record.id, first.record.id, "overdue"]);
});

test("a key whose end passes while it is hashed is refused, not born expired", async () => {
  for (const method of ["create", "refresh"] as const) {
    const seconds = BigInt(nowMs / 1_000 + 2);
    meanwhile.set("change", () => {
      nowMs += 2_000;
    });
    const lifetime = { case: "expiresAt" as const, value: { seconds, nanos: 0 } };
    const refused = await refusalOf(keys[method](alice, { scopes: ["read"], lifetime }, DEADLINE_MS));
    expect(refused).toMatchObject({ reason: "INVALID_ARGUMENT", fields: ["expires_at"] });
    expect(records.size).toBe(0);
  }
});

test("Refresh passes metadata on, and replaces all of them by what an admin gives", async () => {
  stored("a", { metadata: ["plan=pro", "tenant=7"] });
  expect((await refresh()).record.metadata).toEqual(["plan=pro", "tenant=7"]);
  const { record } = await refresh({ userId: "alice", metadata: { plan: "free" } }, root);
  expect(record.metadata).toEqual(["plan=free"]);
});

test("a member sets the metadata that members may set, and no others; what admins set stays", async () => {
  expect(await refusalOf(create({ metadata: { plan: "enterprise", "label-a": "x" } }))).toMatchObject({
    ...{ reason: "ADMIN_REQUIRED", message: "Only an admin may set these metadata: plan." },
  });
  expect(hashes).toBe(0);
  expect((await create({ metadata: { "label-a": "x" } })).record.metadata).toEqual(["label-a=x"]);
  records.clear();
  stored("a", { metadata: ["label-a=old", "label-b=old", "plan=pro"] });
  const { record } = await refresh({ metadata: { "label-a": "new" } });
  expect(record.metadata).toEqual(["label-a=new", "plan=pro"]);
});

test("ADMIN_REQUIRED for metadata comes before what is wrong with other fields; an admin hears of all at once", async () => {
  const wrong = { metadata: { Plan: "x", ok: "a\n" }, scopes: ["A"] };
  expect(await refusalOf(create(wrong))).toMatchObject({ reason: "ADMIN_REQUIRED" });
  expect((await refusalOf(create({ ...wrong, userId: "alice" }, root))).fields).toEqual([
    ...["scopes[0]", "metadata.Plan", "metadata.ok"],
  ]);
});

test("metadata that are too much together with those that stay are refused, and nothing is written", async () => {
  const before = Array.from({ length: 16 }, (_, index) => `n${index + 10}=`);
  stored("a", { metadata: before });
  expect(await refusalOf(refresh({ metadata: { "label-a": "x" } }))).toMatchObject({ fields: ["metadata"] });
  expect(states()).toEqual({ a: "active" });
});

test.each(Object.entries(calls))("%s repeated with other metadata is REQUEST_ID_REUSED", async (_name, call) => {
  const metadata = { "label-a": "x" };
  await call({ scopes: ["read"], requestId: ID, metadata });
  expect(await call({ scopes: ["read"], requestId: ID, metadata })).toMatchObject({ isRepeat: true });
  for (const other of [{}, { "label-a": "y" }, { "label-b": "x" }])
    expect(await refusalOf(call({ scopes: ["read"], requestId: ID, metadata: other }))).toMatchObject({
      reason: "REQUEST_ID_REUSED",
    });
});

const suspend = (caller = alice, reason = "", userId?: string) => keys.suspend(caller, userId, reason, DEADLINE_MS);
const resume = (caller = alice, userId?: string) => keys.resume(caller, userId, DEADLINE_MS);
const KEY_SUSPENDED = { reason: "KEY_SUSPENDED" };

test("Suspend stops the active and the retiring key, and Resume makes both good again; each is written down", async () => {
  stored("a");
  stored("r", { state: "retiring", retiresAt: at(HOUR_MS) });
  const { active, retiring, changed } = await suspend(alice, "lost the laptop");
  const suspended = { at: at(LATER_MS), byAdmin: false, reason: "lost the laptop" };
  expect([active?.suspended, retiring?.suspended, changed]).toEqual([suspended, suspended, true]);
  expect(states()).toEqual({ a: "active", r: "retiring" });
  expect((await keys.get(alice, undefined, DEADLINE_MS)).suspended).toEqual(suspended);
  expect(await resume()).toMatchObject({ active: { id: "a" }, retiring: { id: "r" }, changed: true });
  expect([...records.values()].map(({ suspended }) => suspended)).toEqual([undefined, undefined]);
  expect(trail.map(({ action, keyIds, statedReason }) => [action, keyIds, statedReason])).toEqual([
    ["Suspend", ["a", "r"], "lost the laptop"],
    ["Resume", ["a", "r"], undefined],
  ]);
});

test("a key that is suspended stays so as it was; one that is not is none to resume: neither is a change", async () => {
  stored("a");
  expect(await resume()).toMatchObject({ active: { id: "a" }, changed: false });
  await suspend(alice, "first");
  nowMs += MINUTE_MS;
  expect(await suspend(alice, "second")).toMatchObject({ active: { suspended: { reason: "first" } }, changed: false });
  expect(trail).toHaveLength(1);
});

test("with no key that could be used there is nothing to suspend, and nothing to resume", async () => {
  for (const call of [suspend, resume]) expect(await refusalOf(call())).toMatchObject(NO_KEY);
  stored("a", { expiresAt: at(-1) });
  stored("b", { state: "revoked" });
  for (const call of [suspend, resume]) expect(await refusalOf(call())).toMatchObject(NO_KEY);
});

test("a suspended key is not refreshed and no second one is made; it may be revoked, and its end comes", async () => {
  stored("a", { expiresAt: at(HOUR_MS) });
  await suspend();
  expect(await refusalOf(refresh())).toMatchObject(KEY_SUSPENDED);
  expect(await refusalOf(create())).toMatchObject(KEY_EXISTS);
  nowMs += 2 * HOUR_MS;
  expect(await refusalOf(resume())).toMatchObject(NO_KEY);
  expect((await create()).record.suspended).toBeUndefined();
  await suspend();
  await keys.revoke(alice, undefined, { reason: "" }, DEADLINE_MS);
  expect((await refresh({ scopes: ["read"] })).record.suspended).toBeUndefined();
});

test("the admin's suspension is the admin's to end, and keeps the owner from another key until then", async () => {
  stored("a");
  await suspend(alice, "mine");
  expect(await suspend(root, "abuse", "alice")).toMatchObject({
    active: { suspended: { byAdmin: true, reason: "abuse" } },
  });
  expect(await suspend(alice, "mine again")).toMatchObject({
    active: { suspended: { byAdmin: true } },
    changed: false,
  });
  expect(await refusalOf(resume())).toMatchObject({ reason: "ADMIN_REQUIRED" });
  await keys.revoke(alice, undefined, { reason: "" }, DEADLINE_MS);
  for (const call of [create(), refresh({ scopes: ["read"] })])
    expect(await refusalOf(call)).toMatchObject(KEY_SUSPENDED);
  expect(await refusalOf(resume())).toMatchObject({ reason: "ADMIN_REQUIRED" });
  // Revoked once more, by no other way.
  expect(await refusalOf(keys.revoke(alice, undefined, { reason: "" }, DEADLINE_MS))).toMatchObject(NO_KEY);
  expect(await resume(root, "alice")).toEqual({ active: undefined, retiring: undefined, changed: true });
  expect((await create()).record.state).toBe("active");
});

test("an end that comes by itself lifts no admin's suspension either", async () => {
  stored("a", { expiresAt: at(HOUR_MS) });
  await suspend(root, "", "alice");
  nowMs += 2 * HOUR_MS;
  expect(await refusalOf(create())).toMatchObject(KEY_SUSPENDED);
  expect(await refusalOf(resume())).toMatchObject({ reason: "ADMIN_REQUIRED" });
  expect(await resume(root, "alice")).toMatchObject({ active: undefined, changed: true });
  expect((await create()).record.state).toBe("active");
});

test("Suspend and Resume are for the owner and for admins, and check their fields", async () => {
  stored("a");
  expect(await refusalOf(suspend(bob, "", "alice"))).toMatchObject({ reason: "ADMIN_REQUIRED" });
  expect(await refusalOf(resume(bob, "alice"))).toMatchObject({ reason: "ADMIN_REQUIRED" });
  expect(await refusalOf(suspend(root, "superseded", ""))).toMatchObject({ fields: ["user_id", "reason"] });
  expect(records.get("a")!.suspended).toBeUndefined();
});

type UpdateInput = Parameters<KeyManager["update"]>[1];
const update = (input: Partial<UpdateInput>, caller = alice, manager = keys) =>
  manager.update(caller, { paths: [], scopes: [], metadata: {}, ...input }, DEADLINE_MS);
const etag = () => etagOf(records.get("a")!);

test("Update changes what the mask names, and nothing else; what is named and not said is taken away", async () => {
  stored("a", { name: "old", scopes: ["read", "write"], metadata: ["label-a=1", "plan=pro"], expiresAt: at(HOUR_MS) });
  const paths = ["scopes", "metadata.label-a"];
  const given = { name: "ignored", scopes: ["read", "read"], metadata: { "label-a": "2", "label-b": "ignored" } };
  const { record, changed } = await update({ paths, ...given });
  expect([changed, records.get("a")]).toEqual([true, { ...record, rev: record.rev + 1 }]);
  expect(record).toMatchObject({
    name: "old",
    scopes: ["read"],
    metadata: ["label-a=2", "plan=pro"],
    expiresAt: at(HOUR_MS),
  });
  await update({ paths: ["name", "expires_at", "metadata.label-a"] });
  const { name, expiresAt, metadata, secretHash } = records.get("a")!;
  expect([name, expiresAt, metadata, secretHash]).toEqual([undefined, undefined, ["plan=pro"], record.secretHash]);
  expect(hashes).toBe(0);
});

test("an Update is written down field by field, before and after, without what was pasted into it", async () => {
  const pasted = `acme_${"x".repeat(16)}_${"y".repeat(49)}`;
  stored("a", { name: "old", metadata: ["label-a="] });
  const paths = ["name", "scopes", "metadata", "ttl"];
  await update({ paths, name: pasted, scopes: ["read", "list"], metadata: { "label-b": "x" }, lifetime: ttl(60) });
  expect(trail.map(({ action, keyIds, changes }) => ({ action, keyIds, changes }))).toEqual([
    {
      ...{ action: "Update", keyIds: ["a"] },
      changes: [
        { field: "name", old: "old", new: "[secret]" },
        { field: "scopes", old: "read", new: "list read" },
        { field: "metadata.label-a", old: "", new: "" },
        { field: "expires_at", old: "", new: at(LATER_MS + 60_000).toISOString() },
        { field: "metadata.label-b", old: "", new: "x" },
      ],
    },
  ]);
});

test("an Update that changes nothing writes nothing", async () => {
  stored("a", { name: "laptop" });
  expect(await update({ paths: ["name"], name: " laptop " })).toMatchObject({ changed: false, record: { rev: 5 } });
  expect([trail, records.get("a")!.rev]).toEqual([[], 5]);
});

test.each([
  ["nothing", [], {}, "update_mask"],
  ["an unknown field", ["nam"], {}, "update_mask"],
  ["a wildcard", ["*"], {}, "update_mask"],
  ["a part of what has none", ["name.first"], {}, "update_mask"],
  ["what is not to be changed", ["user_id"], {}, "update_mask"],
  ["an entry that can't be", ["metadata.Plan"], {}, "update_mask"],
  ["a field twice", ["name", "name"], { name: "x" }, "update_mask"],
  ["an entry and all of them", ["metadata", "metadata.label-a"], {}, "update_mask"],
  ["two ends", ["ttl", "expires_at"], {}, "update_mask"],
  ["an end in other words than it is said in", ["expires_at"], { lifetime: ttl(60) }, "update_mask"],
  ["scopes, and says none", ["scopes"], {}, "scopes"],
  ["a blank name", ["name"], { name: " " }, "name"],
  ["an end in the past", ["expires_at"], { lifetime: until(-1_000) }, "expires_at"],
  ["a value of two lines", ["metadata.label-a"], { metadata: { "label-a": "a\nb" } }, "metadata.label-a"],
  ["a request_id that is none", ["name"], { name: "x", requestId: "short" }, "request_id"],
])("a mask that names %s is INVALID_ARGUMENT, and nothing is written", async (_what, paths, fields, field) => {
  stored("a");
  const refusal = await refusalOf(update({ paths, ...fields }, root));
  expect(refusal).toMatchObject({ reason: "INVALID_ARGUMENT" });
  expect(refusal.fields).toContain(field);
  expect(trail).toEqual([]);
});

test("an unknown path names itself", async () => {
  expect((await refusalOf(update({ paths: ["colour"] }))).message).toContain(
    '"colour" is not a field that can be changed',
  );
});

test("the rights of Create hold for Update, in its order", async () => {
  stored("a", { metadata: ["label-a=1", "plan=pro"] });
  const wrong = { paths: ["metadata.plan", "name", "scopes"], name: "", scopes: ["admin"] };
  expect(await refusalOf(update({ ...wrong, userId: "alice" }, bob))).toMatchObject({ reason: "ADMIN_REQUIRED" });
  expect(await refusalOf(update(wrong))).toMatchObject({ reason: "ADMIN_REQUIRED" });
  expect(await refusalOf(update({ ...wrong, paths: ["name", "scopes"] }))).toMatchObject({ fields: ["name"] });
  expect(await refusalOf(update({ ...wrong, paths: ["scopes"] }))).toMatchObject({ reason: "SCOPE_FORBIDDEN" });
  // Of a member, all of it means the members' own.
  const { record } = await update({ paths: ["metadata"] });
  expect(record.metadata).toEqual(["plan=pro"]);
  expect((await update({ paths: ["metadata"], userId: "alice" }, root)).record.metadata).toBeUndefined();
});

test("no Update carries a secret beyond the longest lifetime, counted from its making", async () => {
  stored("a", { expiresAt: at(0.5 * HOUR_MS) });
  const capped = managerOf({ maxTtlMs: HOUR_MS });
  const latest = HOUR_MS - MINUTE_MS;
  const extended = (ms: number) => update({ paths: ["expires_at"], lifetime: until(ms) }, alice, capped);
  expect(await refusalOf(extended(latest + 1))).toMatchObject({ fields: ["expires_at"] });
  expect((await extended(latest)).record.expiresAt).toEqual(at(latest));
  expect((await update({ paths: ["ttl"] }, alice, capped)).record.expiresAt).toEqual(at(latest));
  expect(await refusalOf(update({ paths: ["ttl"], lifetime: ttl(3_600) }, alice, capped))).toMatchObject({
    fields: ["expires_at"],
  });
});

test("there must be an active key that is not suspended", async () => {
  const rename = () => update({ paths: ["name"], name: "x" });
  expect(await refusalOf(rename())).toMatchObject(NO_KEY);
  stored("r", { state: "retiring", retiresAt: at(HOUR_MS) });
  expect(await refusalOf(rename())).toMatchObject(NO_KEY);
  stored("a", { expiresAt: at(1) });
  expect(await refusalOf(rename())).toMatchObject(NO_KEY);
  stored("a");
  await suspend();
  expect(await refusalOf(rename())).toMatchObject(KEY_SUSPENDED);
});

test("an etag is good until the key changes in what Get shows, and for this key alone", async () => {
  stored("a");
  const first = etag();
  records.set("a", { ...records.get("a")!, lastUsedAt: at(1), rev: 9, fingerprint: undefined });
  expect(etag()).toBe(first);
  expect(await update({ paths: ["name"], name: "one", etag: first })).toMatchObject({ changed: true });
  expect(etag()).not.toBe(first);
  const stale = await refusalOf(update({ paths: ["name"], name: "two", etag: first }));
  expect(stale).toMatchObject({ reason: "ETAG_MISMATCH", retryAfterMs: undefined });
  for (const change of [
    { scopes: ["x"] },
    { metadata: ["a=1"] },
    { expiresAt: at(1) },
    { suspended: { at: at(0), byAdmin: false } },
  ])
    expect(etagOf({ ...records.get("a")!, ...change })).not.toBe(etag());
  expect(await refusalOf(update({ paths: ["name"], name: "two", etag: etagOf(recordOf("b", 5)) }))).toMatchObject({
    reason: "ETAG_MISMATCH",
  });
});

test("an Update with a request_id may be repeated, needs no request keys, and is no other call's", async () => {
  stored("a");
  const manager = managerOf({ requestKeys: [] });
  const asked = { paths: ["name"], name: "one", requestId: ID };
  expect(await update(asked, alice, manager)).toMatchObject({ changed: true, isRepeat: false });
  await update({ paths: ["name"], name: "two" });
  const repeat = await update({ ...asked, etag: undefined }, alice, manager);
  expect(repeat).toMatchObject({ changed: false, isRepeat: true, record: { name: "two" } });
  expect(await refusalOf(update({ ...asked, name: "three" }))).toMatchObject({ reason: "REQUEST_ID_REUSED" });
  expect(JSON.stringify([...records.values()])).not.toContain(ID);
  nowMs += REQUEST_REMEMBERED_MS + 1_000;
  expect(await update({ ...asked, name: "three" })).toMatchObject({ changed: true, isRepeat: false });
  expect(await refusalOf(update({ ...asked, name: "four" }))).toMatchObject({ reason: "REQUEST_ID_REUSED" });
});

test("a key remembers its last eight Updates", async () => {
  stored("a");
  const id = (index: number) => `${index}`.padStart(22, "u");
  for (let index = 0; index < 9; index += 1) await update({ paths: ["name"], name: `n${index}`, requestId: id(index) });
  expect(records.get("a")!.updates).toHaveLength(8);
  expect(await update({ paths: ["name"], name: "n8", requestId: id(8) })).toMatchObject({ isRepeat: true });
  expect(await update({ paths: ["name"], name: "n0", requestId: id(0) })).toMatchObject({ isRepeat: false });
});

test("a request_id is one call's, whichever method it was, and its Update is remembered by the next key", async () => {
  stored("a");
  const asked = { paths: ["scopes"], scopes: ["read", "write"], requestId: ID };
  await update(asked);
  expect(await refusalOf(refresh({ requestId: ID }))).toMatchObject({ reason: "REQUEST_ID_REUSED" });
  await update({ paths: ["scopes"], scopes: ["read"] });
  await refresh();
  // What was narrowed since is not widened by a repeat.
  expect(await update(asked)).toMatchObject({ isRepeat: true, record: { scopes: ["read"] } });
  await keys.revoke(alice, undefined, { reason: "" }, DEADLINE_MS);
  await create({ requestId: ID.replaceAll("r", "s") });
  const other = { paths: ["name"], name: "x", requestId: ID.replaceAll("r", "s") };
  expect(await refusalOf(update(other))).toMatchObject({ reason: "REQUEST_ID_REUSED" });
});

test("a repeat is known before its fields are looked at: they need not be good any more", async () => {
  stored("a");
  const asked = { paths: ["expires_at", "name"], name: "x", lifetime: until(HOUR_MS), requestId: ID };
  await update(asked);
  await update({ paths: ["expires_at"] });
  nowMs += 2 * HOUR_MS;
  expect(await update(asked)).toMatchObject({ isRepeat: true });
  expect(await refusalOf(update({ ...asked, requestId: undefined }))).toMatchObject({ fields: ["expires_at"] });
});

test("a Refresh passes on the lifetime that an Update gave, counted from the Update", async () => {
  stored("a", { createdAt: at(-20 * HOUR_MS) });
  await update({ paths: ["ttl"], lifetime: ttl(3_600) });
  const { record } = await refresh();
  expect(record.expiresAt!.getTime() - record.createdAt.getTime()).toBe(HOUR_MS);
});

test("an Update ends no key: an end that a later maximum puts into the past is refused", async () => {
  stored("a", { createdAt: at(-2 * HOUR_MS) });
  const capped = managerOf({ maxTtlMs: HOUR_MS });
  expect(await refusalOf(update({ paths: ["ttl"] }, alice, capped))).toMatchObject({ fields: ["ttl"] });
  expect(records.get("a")!.expiresAt).toBeUndefined();
});

test("far too many paths or entries are refused by their number, and no error grows with them", async () => {
  stored("a");
  const paths = Array.from({ length: 5_000 }, (_, index) => `x${index}`);
  expect((await refusalOf(update({ paths }))).message).toContain("must have at most 64 paths, and has 5000");
  const unknown = await refusalOf(update({ paths: paths.slice(0, 64) }));
  expect(unknown.message!.length).toBeLessThan(400);
  const metadata = Object.fromEntries(paths.map((name) => [`label-${name}`, "\n"]));
  expect((await refusalOf(create({ metadata }))).message).toContain("more");
});

test("nothing that was pasted as a name comes back", async () => {
  stored("a");
  const pasted = `acme_${"x".repeat(16)}_${"y".repeat(43)}`;
  for (const call of [
    update({ paths: [pasted] }),
    update({ paths: [`metadata.${pasted}`] }),
    create({ metadata: { [pasted]: "" } }),
  ]) {
    const refusal = await refusalOf(call);
    expect(JSON.stringify(refusal)).not.toContain("yyyy");
  }
});

test("the repeat of a call whose key is suspended is not given the key", async () => {
  await create({ requestId: ID });
  await suspend();
  expect(await create({ requestId: ID })).toMatchObject({ isRepeat: true, withheld: "ended" });
});
