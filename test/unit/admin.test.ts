import { beforeEach, expect, test } from "@jest/globals";
import { createKeyAdmin, type KeyAdmin } from "../../src/keys/admin.ts";
import type { StoredAuditEntry } from "../../src/keys/audit.ts";
import { formatKey } from "../../src/keys/format.ts";
import type { KeyRecord } from "../../src/keys/key.ts";
import { type MemoryStore, memoryStore, plainSecrets } from "../support/memory-store.ts";
import { recordOf } from "../support/records.ts";

const DEADLINE = 7;
const now = new Date(1_000_000);
const root = { userId: "root", admin: true };
const ID = "A".repeat(16);
const SECRET = "s".repeat(43);
const KEY = formatKey({ prefix: "lk", id: ID, secret: SECRET });
const notFound = { reason: "KEY_NOT_FOUND", message: expect.stringMatching(/key/) };

let store: MemoryStore;
let admin: KeyAdmin;
/** What the lists were asked. */
let asked: unknown[];
let listed: { id: string }[];

beforeEach(() => {
  store = memoryStore(() => now);
  [asked, listed] = [[], []];
  store.list = async (...args) => {
    asked = args;
    return listed as KeyRecord[];
  };
  admin = createKeyAdmin({
    ...{ store, secrets: plainSecrets(), prefixes: ["lk", "old"], clock: () => now },
    audit: {
      write: async () => {},
      list: async (...args) => {
        asked = args;
        return listed as StoredAuditEntry[];
      },
    },
  });
});

const held = (id: string, fields: Partial<KeyRecord> = {}) => {
  const record = recordOf(id, 1, { userId: "alice", secretHash: `plain ${SECRET}`, ...fields });
  store.put(record);
  return record;
};
const items = (count: number) => Array.from({ length: count }, (_, n) => ({ id: `id${n}` }));

test("keys and the audit trail are listed by page, one more than it holds being looked for", async () => {
  const lists = {
    keys: (filter: object, token: string) => admin.list(filter, { size: 2, token }, DEADLINE),
    audit: (filter: object, token: string) => admin.listAudit(filter, { size: 2, token }, DEADLINE),
  };
  for (const [kind, list] of Object.entries(lists)) {
    listed = items(3);
    const { items: found, nextToken } = await list({ userId: "alice" }, "");
    expect(found).toEqual(items(2));
    await list({ userId: "alice" }, nextToken!);
    expect(asked).toEqual([{ userId: "alice" }, "id1", 3, ...(kind === "keys" ? [now] : []), DEADLINE]);
    await expect(list({ userId: "bob" }, nextToken!)).rejects.toMatchObject({ violations: [{ field: "page_token" }] });
    listed = items(2);
    expect((await list({}, "")).nextToken).toBeUndefined();
  }
});

test("a filter that nothing can match is refused, all of it at once", async () => {
  const tooLong = "x".repeat(129);
  const bad = { userId: "", prefix: tooLong, name: tooLong };
  await expect(admin.list(bad, { size: -1, token: "x" }, DEADLINE)).rejects.toMatchObject({
    violations: [
      { field: "user_id" },
      { field: "prefix", description: "must have at most 128 characters" },
      { field: "name", description: "must have at most 128 characters" },
      { field: "page_size" },
      { field: "page_token" },
    ],
  });
  const good = { prefix: tooLong.slice(1), name: tooLong.slice(1) };
  expect(await admin.list(good, { size: 0, token: "" }, DEADLINE)).toMatchObject({ items: [] });
  await expect(admin.listAudit({}, { size: -1, token: "x" }, DEADLINE)).rejects.toMatchObject({
    violations: [{ field: "page_size" }, { field: "page_token" }],
  });
});

test("a key is got by its id, in whatever state", async () => {
  const record = held(ID, { state: "revoked" });
  expect(await admin.get(ID, DEADLINE)).toBe(record);
  await expect(admin.get("nobody", DEADLINE)).rejects.toMatchObject(notFound);
});

test("a key is ended by its id, with the reason, and once", async () => {
  held("other");
  held(ID, { state: "retiring", retiresAt: new Date(2_000_000) });
  const ended = { id: ID, state: "revoked", revokedAt: now, revocationReason: "leaked" };
  expect(await admin.revoke(root, ID, "leaked", DEADLINE)).toMatchObject({ record: ended, wasLive: true });
  expect(store.lastAudit()).toMatchObject({ action: "RevokeKey", actor: "root", userId: "alice", keyIds: [ID] });
  expect(store.records.get("other")).toMatchObject({ state: "active" });
  expect(await admin.revoke(root, ID, "again", DEADLINE)).toMatchObject({ record: ended, wasLive: false });
  expect(store.changes).toHaveLength(1);
});

test("a key that has run out is not ended again", async () => {
  held(ID, { expiresAt: now });
  expect(await admin.revoke(root, ID, "", DEADLINE)).toMatchObject({ record: { rev: 1 }, wasLive: false });
  expect(store.changes).toEqual([]);
});

test("a presented key is ended if it is one of the service's: prefix, id and secret", async () => {
  const revoke = (key: string) => admin.revokePresented(root, key, "pasted", DEADLINE);
  held(ID);
  await expect(revoke(`${KEY}x`)).rejects.toMatchObject({ ...notFound, message: expect.stringContaining("checksum") });
  for (const stranger of [
    { prefix: "old", id: ID, secret: SECRET },
    { prefix: "lk", id: ID, secret: "w".repeat(43) },
    { prefix: "lk", id: "B".repeat(16), secret: SECRET },
  ]) {
    const refused = { ...notFound, message: "No such key was made here." };
    await expect(revoke(formatKey(stranger))).rejects.toMatchObject(refused);
  }
  expect(store.changes).toEqual([]);
  expect(await revoke(KEY)).toMatchObject({ record: { id: ID, state: "revoked" }, wasLive: true });
  expect(store.lastAudit()).toMatchObject({ action: "RevokeByPresentedKey", keyIds: [ID] });
});

test("all of a user's live keys are ended; none is no error, and nothing is written", async () => {
  held("a", { expiresAt: now });
  held("r", { state: "retiring", retiresAt: new Date(2_000_000) });
  const ended = await admin.revokeUser(root, "alice", "left", DEADLINE);
  expect(ended).toMatchObject([{ id: "r", state: "revoked", revocationReason: "left" }]);
  expect(store.lastAudit()).toMatchObject({ action: "RevokeUser", userId: "alice", keyIds: ["r"] });
  expect(await admin.revokeUser(root, "alice", "left", DEADLINE)).toEqual([]);
  expect(store.changes).toHaveLength(1);
});

test("the reason of an end is checked, and the user", async () => {
  const refused = { violations: [{ field: "reason" }] };
  held(ID);
  await expect(admin.revoke(root, ID, "superseded", DEADLINE)).rejects.toMatchObject(refused);
  await expect(admin.revokePresented(root, KEY, "superseded", DEADLINE)).rejects.toMatchObject(refused);
  await expect(admin.revokeUser(root, "", "superseded", DEADLINE)).rejects.toMatchObject({
    violations: [{ field: "user_id" }, { field: "reason" }],
  });
});
