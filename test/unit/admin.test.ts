import { beforeEach, expect, test } from "@jest/globals";
import { createKeyAdmin, type KeyAdmin } from "../../src/keys/admin.ts";
import type { AuditEntry } from "../../src/keys/audit/entry.ts";
import type { Caller } from "../../src/keys/caller.ts";
import { KeyError } from "../../src/keys/errors.ts";
import type { AuditFilter, AuditStore, KeyStore, StoredAuditEntry } from "../../src/keys/ports.ts";
import type { KeyRecord } from "../../src/keys/record.ts";
import type { SecretKeeper } from "../../src/keys/secret.ts";
import { formatKey } from "../../src/keys/text.ts";
import { recordOf } from "../support/records.ts";

const NOW = new Date(Date.UTC(2026, 10, 25));
/** A change happens later than the call came. */
const AT = new Date(NOW.getTime() + 250);
const DEADLINE_MS = 5_000;
const root: Caller = { userId: "root", admin: true, origin: { peer: "127.0.0.1", userAgent: "test", requestId: "x" } };
const [ACTIVE, RETIRING, OTHER, NOBODY] = ["active", "retiring", "other", "nobody"].map((id) => id.padEnd(16, "0")) as [
  ...[string, string, string, string],
];
const SECRET = "s".repeat(43);

let records: Map<string, KeyRecord>;
let trail: AuditEntry[];
/** Calls of the stores: method and arguments. */
let asks: unknown[][];
let admin: KeyAdmin;

beforeEach(() => {
  [records, trail, asks] = [new Map(), [], []];
  for (const [id, fields] of [
    [ACTIVE, { state: "active", userId: "alice" }],
    [RETIRING, { state: "retiring", userId: "alice", retiresAt: new Date(AT.getTime() + 1) }],
    [OTHER, { state: "active", userId: "bob" }],
  ] as const)
    store(id, fields);
  admin = createKeyAdmin({
    ...{ store: fakeStore(), audit: fakeAudit(), secrets: fakeSecrets() },
    prefixes: ["lk", "old"],
    clock: () => NOW,
  });
});

function store(id: string, fields: Partial<KeyRecord>): void {
  records.set(id, Object.freeze({ ...(records.get(id) ?? recordOf(id, 5)), ...fields }));
}

function fakeStore(): KeyStore {
  return {
    findById: async (id, deadlineMs) => {
      asks.push(["findById", id, deadlineMs]);
      return records.get(id);
    },
    list: async (...asked) => {
      asks.push(["list", ...asked]);
      const [, after = "", limit] = asked;
      const sorted = [...records.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
      return sorted.filter(({ id }) => id > after).slice(0, limit);
    },
    change: async (userId, deadlineMs, decide) => {
      asks.push(["change", userId, deadlineMs]);
      const of = (state: string) => [...records.values()].find((one) => one.userId === userId && one.state === state);
      const { update, answer, audit } = decide({ active: of("active"), retiring: of("retiring") }, AT);
      for (const record of update) {
        expect(record.rev).toBe(records.get(record.id)!.rev);
        store(record.id, { ...record, rev: record.rev + 1 });
      }
      if (audit) trail.push(audit);
      return answer;
    },
  } as Partial<KeyStore> as KeyStore;
}

function fakeAudit(): AuditStore {
  const entries = ["3", "2", "1"].map((id): StoredAuditEntry => {
    return { id, at: NOW, action: "Create", result: "changed", keyIds: [] };
  });
  return {
    write: async () => expect("write").toBe("unused"),
    list: async (...asked) => {
      asks.push(["listAudit", ...asked]);
      const [, before = "9", limit] = asked;
      return entries.filter(({ id }) => id < before).slice(0, limit);
    },
  };
}

function fakeSecrets(): SecretKeeper {
  const prove: SecretKeeper["prove"] = (id, secret, _digests, deadlineMs) => {
    asks.push(["prove", id, deadlineMs]);
    return { proven: secret === SECRET };
  };
  return { prove } as Partial<SecretKeeper> as SecretKeeper;
}

async function refusalOf(call: Promise<unknown>): Promise<string> {
  const error = await call.then(
    (answer) => expect(answer).toBe("refused"),
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof KeyError)) throw error;
  return `${error.reason} ${error.message}`;
}

const page = (size = 0, token = "") => ({ size, token });
const keyOf = (id: string, prefix = "lk", secret = SECRET) => formatKey({ prefix, id, secret });
const idsOf = (items: { id: string }[]) => items.map(({ id }) => id);
const ended = (id: string, reason?: string) => ({
  ...{ id, state: "revoked", revokedAt: AT, revocationReason: reason },
});
const entry = (action: string, userId: string, ...keyIds: string[]) => ({
  ...{ at: AT, action, result: "changed", actor: "root", actorIsAdmin: true, userId, keyIds, origin: root.origin },
  statedReason: undefined as string | undefined,
});
const LONG = "x".repeat(513);
const TOO_LONG = "INVALID_ARGUMENT reason: must have at most 512 characters, and has 513";
const NO_SUCH_ID = "KEY_NOT_FOUND There is no key with this id.";

test("a search is passed on with the time, and its pages follow one another, each with one item more asked for", async () => {
  const filter = { userId: "alice", state: "active", prefix: "l".repeat(128), name: "n".repeat(128) } as const;
  const first = await admin.list(filter, page(2), DEADLINE_MS);
  expect(idsOf(first.items)).toEqual([ACTIVE, OTHER]);
  const second = await admin.list(filter, page(2, first.nextToken), DEADLINE_MS);
  expect([idsOf(second.items), second.nextToken]).toEqual([[RETIRING], undefined]);
  await admin.list({}, page(), DEADLINE_MS);
  expect(asks).toEqual([
    ["list", filter, undefined, 3, NOW, DEADLINE_MS],
    ["list", filter, OTHER, 3, NOW, DEADLINE_MS],
    ["list", {}, undefined, 51, NOW, DEADLINE_MS],
  ]);
});

test("the trail is read in pages in the same way", async () => {
  const filter: AuditFilter = { userId: "alice", keyId: ACTIVE, since: NOW, until: AT };
  const first = await admin.listAudit(filter, page(2), DEADLINE_MS);
  const second = await admin.listAudit(filter, page(2, first.nextToken), DEADLINE_MS);
  expect([first, second].map(({ items }) => idsOf(items))).toEqual([["3", "2"], ["1"]]);
  expect(second.nextToken).toBeUndefined();
  await admin.listAudit({}, page(), DEADLINE_MS);
  expect(asks).toEqual([
    ["listAudit", filter, undefined, 3, DEADLINE_MS],
    ["listAudit", filter, "2", 3, DEADLINE_MS],
    ["listAudit", {}, undefined, 51, DEADLINE_MS],
  ]);
});

test("a token leads on only in the search that gave it: of the same kind, with the same filter", async () => {
  const { nextToken: ofKeys } = await admin.list({}, page(1), DEADLINE_MS);
  const { nextToken: ofTrail } = await admin.listAudit({}, page(1), DEADLINE_MS);
  asks = [];
  for (const search of [
    admin.list({}, page(1, ofTrail), DEADLINE_MS),
    admin.list({ userId: "bob" }, page(1, ofKeys), DEADLINE_MS),
    admin.listAudit({}, page(1, ofKeys), DEADLINE_MS),
    admin.listAudit({ userId: "bob" }, page(1, ofTrail), DEADLINE_MS),
  ])
    expect(await refusalOf(search)).toMatch(/^INVALID_ARGUMENT page_token: is not a token that this search gave/);
  expect(asks).toEqual([]);
});

test("a search with bad fields says what is wrong with each, and is not made", async () => {
  const user = "user_id: must have 1 to 256 characters, and has 0";
  const size = "page_size: must be 0 to 500; 0 means 50";
  const tooLong = (field: string) => `${field}: must have at most 128 characters`;
  const control = "name: must not contain control characters";
  const never = new Date(Number.NaN);
  const { list, listAudit } = admin;
  const searches: [Promise<unknown>, ...string[]][] = [
    [list({ userId: "" }, page(501), DEADLINE_MS), user, size],
    [list({ prefix: "x".repeat(129) }, page(), DEADLINE_MS), tooLong("prefix")],
    [list({ name: "x".repeat(129) }, page(), DEADLINE_MS), tooLong("name")],
    [list({ name: "a\0b" }, page(), DEADLINE_MS), control],
    [listAudit({ userId: "" }, page(-1), DEADLINE_MS), user, size],
    [listAudit({ keyId: keyOf(ACTIVE) }, page(), DEADLINE_MS), "key_id: is not the id of a key"],
    [listAudit({ since: never }, page(), DEADLINE_MS), "since: is not a valid time"],
    [listAudit({ until: never }, page(), DEADLINE_MS), "until: is not a valid time"],
  ];
  for (const [search, ...said] of searches) expect(await refusalOf(search)).toBe(`INVALID_ARGUMENT ${said.join("; ")}`);
  expect(asks).toEqual([]);
});

test("a key is found by its id, and a whole key in place of an id is not asked of the database", async () => {
  expect(await admin.get(OTHER, DEADLINE_MS)).toBe(records.get(OTHER));
  expect(await refusalOf(admin.get(NOBODY, DEADLINE_MS))).toBe(NO_SUCH_ID);
  expect(await refusalOf(admin.get(keyOf(ACTIVE), DEADLINE_MS))).toBe(NO_SUCH_ID);
  expect(await refusalOf(admin.revoke(root, keyOf(ACTIVE), { reason: "" }, DEADLINE_MS))).toBe(NO_SUCH_ID);
  expect(asks).toEqual([OTHER, NOBODY].map((id) => ["findById", id, DEADLINE_MS]));
});

test("a live key is ended by its id or by itself, it alone, and its end is in the trail", async () => {
  expect(await admin.revoke(root, RETIRING, { reason: "leaked" }, DEADLINE_MS)).toMatchObject({
    ...{ record: ended(RETIRING, "leaked"), wasLive: true },
  });
  expect(records.get(ACTIVE)!.state).toBe("active");
  expect(await admin.revokePresented(root, keyOf(ACTIVE), { reason: "" }, DEADLINE_MS)).toMatchObject({
    ...{ record: ended(ACTIVE), wasLive: true },
  });
  expect(records.get(ACTIVE)).toMatchObject({ ...ended(ACTIVE), rev: 6 });
  expect(records.get(RETIRING)).toMatchObject({ ...ended(RETIRING, "leaked"), rev: 6 });
  expect(trail).toEqual([
    { ...entry("RevokeKey", "alice", RETIRING), statedReason: "leaked" },
    entry("RevokeByPresentedKey", "alice", ACTIVE),
  ]);
  expect(asks).toEqual([
    ["findById", RETIRING, DEADLINE_MS],
    ["change", "alice", DEADLINE_MS],
    ["findById", ACTIVE, DEADLINE_MS],
    ["prove", ACTIVE, DEADLINE_MS],
    ["change", "alice", DEADLINE_MS],
  ]);
});

test("a key that had ended, by a call or by the clock, is left as it is, and nothing is written", async () => {
  for (const fields of [
    { state: "revoked", revokedAt: NOW, revocationReason: "before" },
    { state: "active", expiresAt: AT },
  ] as const) {
    store(ACTIVE, fields);
    const before = records.get(ACTIVE);
    const answer = { record: before, wasLive: false };
    expect(await admin.revoke(root, ACTIVE, { reason: "again" }, DEADLINE_MS)).toEqual(answer);
    expect(await admin.revokePresented(root, keyOf(ACTIVE), { reason: "again" }, DEADLINE_MS)).toEqual(answer);
    expect(records.get(ACTIVE)).toBe(before);
  }
  expect(trail).toEqual([]);
});

test("what is no key of this service, or has another secret or prefix than the one made here, ends none", async () => {
  const noKey = "KEY_NOT_FOUND This is not a key of this service: its form or checksum is wrong.";
  const notOurs = "KEY_NOT_FOUND No such key was made here.";
  for (const [key, said] of [
    [ACTIVE, noKey],
    [`${keyOf(ACTIVE).slice(0, -1)}!`, noKey],
    [keyOf(ACTIVE, "else"), noKey],
    [keyOf(ACTIVE, "old"), notOurs],
    [keyOf(NOBODY), notOurs],
    [keyOf(ACTIVE, "lk", "t".repeat(43)), notOurs],
  ] as const)
    expect([key, await refusalOf(admin.revokePresented(root, key, { reason: "" }, DEADLINE_MS))]).toEqual([key, said]);
  expect(asks.map(([method]) => method)).not.toContain("change");
  store(ACTIVE, { prefix: "old" });
  expect(await admin.revokePresented(root, keyOf(ACTIVE, "old"), { reason: "" }, DEADLINE_MS)).toMatchObject({
    wasLive: true,
  });
});

test("a user's live keys are ended at once, with one entry for all, and none where there are none", async () => {
  expect(await admin.revokeUser(root, "alice", { reason: "left" }, DEADLINE_MS)).toMatchObject([
    ...[ended(ACTIVE, "left"), ended(RETIRING, "left")],
  ]);
  expect([...records.values()].map(({ state }) => state)).toEqual(["revoked", "revoked", "active"]);
  store(OTHER, { expiresAt: AT });
  for (const userId of ["alice", "bob", "nobody"])
    expect(await admin.revokeUser(root, userId, { reason: "again" }, DEADLINE_MS)).toEqual([]);
  expect(trail).toEqual([{ ...entry("RevokeUser", "alice", ACTIVE, RETIRING), statedReason: "left" }]);
  expect(records.get(OTHER)!.state).toBe("active");
  expect(asks[0]).toEqual(["change", "alice", DEADLINE_MS]);

  store(OTHER, { expiresAt: undefined });
  expect(idsOf(await admin.revokeUser(root, "bob", { reason: "" }, DEADLINE_MS))).toEqual([OTHER]);
});

test("a bad reason is refused before anything is read", async () => {
  expect(await refusalOf(admin.revoke(root, ACTIVE, { reason: LONG }, DEADLINE_MS))).toBe(TOO_LONG);
  expect(await refusalOf(admin.revokePresented(root, keyOf(ACTIVE), { reason: LONG }, DEADLINE_MS))).toBe(TOO_LONG);
  expect(await refusalOf(admin.revokeUser(root, "", { reason: LONG }, DEADLINE_MS))).toBe(
    TOO_LONG.replace("reason", "user_id: must not be blank; reason"),
  );
  expect(asks).toEqual([]);
});
