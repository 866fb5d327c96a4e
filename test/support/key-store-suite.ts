import { randomUUID } from "node:crypto";
import { beforeEach, expect, test } from "@jest/globals";
import { KeyError } from "../../src/keys/errors.ts";
import type { Change, KeyStore } from "../../src/keys/ports.ts";
import type { KeyRecord } from "../../src/keys/record.ts";

/** What `KeyStore` promises to whoever manages keys: every store passes it, and so does what stands for one in unit tests. */
export function keyStoreSuite(storeOf: () => KeyStore): void {
  let store: KeyStore;
  let user: string;
  beforeEach(() => {
    store = storeOf();
    user = randomUUID();
  });
  const inMs = (ms: number) => performance.now() + ms;
  const newId = () => randomUUID().replaceAll("-", "").slice(0, 16);
  const recordOf = (fields: Partial<KeyRecord> = {}): KeyRecord => ({
    ...{ id: newId(), userId: user, prefix: "lk", scopes: ["read"], state: "active", createdAt: new Date(), rev: 1 },
    ...{ secretHash: "$argon2id$", fingerprint: { pepper: "p1", mac: Uint8Array.from(Buffer.alloc(32, 1)) } },
    ...fields,
  });
  const change = <T>(made: Partial<Change<T>>) =>
    store.change(user, inMs(1_500), () => ({ update: [], answer: undefined as T, ...made }));
  const add = async (fields?: Partial<KeyRecord>) => {
    const insert = recordOf(fields);
    await change({ insert });
    return insert;
  };
  const current = () => store.findCurrent(user, inMs(10_000));

  test("the store keeps what it is given, absent fields absent, and of each user the user's own", async () => {
    expect(await current()).toEqual({ active: undefined, retiring: undefined });
    const written = await add({ name: "laptop", expiresAt: new Date(Date.now() + 60_000) });
    expect(await current()).toEqual({ active: written, retiring: undefined });
    user = randomUUID();
    expect(await current()).toEqual({ active: undefined, retiring: undefined });
  });

  test("a change sees the keys that there are, is answered by what it decided, and counts what it altered", async () => {
    const first = await add();
    const next = recordOf();
    const retired = { ...first, state: "retiring" as const, retiresAt: new Date(Date.now() + 60_000) };
    const answer = await store.change(user, inMs(10_000), ({ active, retiring, requested }) => {
      expect({ active, retiring, requested }).toEqual({ active: first, retiring: undefined, requested: undefined });
      return { update: [retired], insert: next, answer: "done" };
    });
    expect(answer).toBe("done");
    expect(await current()).toEqual({ active: next, retiring: { ...retired, rev: first.rev + 1 } });
  });

  test("a change that would leave two active keys is refused, and nothing of it is kept", async () => {
    const first = await add();
    await expect(change({ insert: recordOf() })).rejects.toThrow();
    await expect(change({ update: [{ ...first, revocationReason: "half" }], insert: recordOf() })).rejects.toThrow();
    expect(await current()).toEqual({ active: first, retiring: undefined });
  });

  test("a change that would leave two keys of one request is refused; the key of a request is found, with the one before it", async () => {
    const before = await add({ state: "revoked" });
    const request = { id: "r".repeat(43), arguments: "a".repeat(43), ringId: "r1", previousId: before.id };
    const made = await add({ request });
    await expect(change({ insert: recordOf({ request, state: "revoked" }) })).rejects.toThrow();
    expect(await store.findRequested(user, request.id, inMs(10_000))).toEqual({ record: made, previous: before });
    await store.change(
      user,
      inMs(10_000),
      ({ requested }) => {
        expect(requested).toEqual(made);
        return { update: [], answer: undefined };
      },
      request.id,
    );
    expect(await store.findRequested(randomUUID(), request.id, inMs(10_000))).toBeUndefined();
  });

  test("a change sees the ended keys of its user that an admin suspended, and a refusal for them stands", async () => {
    const suspended = { at: new Date(), byAdmin: true };
    const held = await add({ state: "revoked", suspended });
    await add({ state: "revoked", suspended: { ...suspended, byAdmin: false } });
    await add({ suspended });
    const seen = await store.change(user, inMs(10_000), ({ held = [] }) => ({ update: [], answer: held }));
    expect(seen).toEqual([held]);
    const refused = store.change(user, inMs(10_000), ({ held = [] }) => {
      if (held.length > 0) throw new KeyError("KEY_SUSPENDED", "held");
      return { update: [], answer: undefined };
    });
    await expect(refused).rejects.toMatchObject({ reason: "KEY_SUSPENDED" });
    user = randomUUID();
    expect(await store.change(user, inMs(10_000), ({ held = [] }) => ({ update: [], answer: held }))).toEqual([]);
  });

  test("a refusal that the change decides on is passed on, and nothing is kept", async () => {
    const first = await add();
    const refusal = new KeyError("KEY_EXISTS", "there is one");
    const refused = store.change(user, inMs(10_000), () => {
      throw refusal;
    });
    await expect(refused).rejects.toBe(refusal);
    expect(await current()).toEqual({ active: first, retiring: undefined });
  });
}
