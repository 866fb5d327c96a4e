import { expect, test } from "@jest/globals";
import { displayPrefix, isLive, type Lifecycle, revoked, type StoredState, statusAt } from "../../src/keys/record.ts";
import { recordOf } from "../support/records.ts";

const END_MS = 1_000;
const EARLIER_MS = 300;
const LATER_MS = 2_000;
const active = { state: "active" };
const retiring = { state: "retiring" };
const expired = { state: "expired" };
const stopped = { state: "suspended" };
const suspended = { at: new Date(EARLIER_MS), byAdmin: false };
const superseded = {
  ...{ state: "revoked", revokedAt: END_MS, revocationReason: "superseded", revocationCause: "superseded" },
};
const leaked = {
  state: "revoked",
  revokedAt: EARLIER_MS,
  revocationReason: "leaked",
  revocationCause: "leaked",
} as const;

/** What is stored, what holds before END_MS, and what from then on. */
const LIVES: [stored: Lifecycle<number>, before: object, from: object][] = [
  [{ state: "active" }, active, active],
  [{ state: "active", expiresAt: END_MS }, active, expired],
  // Only a retiring key has a grace period that ends.
  [{ state: "active", retiresAt: END_MS }, active, active],
  [{ state: "retiring" }, retiring, retiring],
  [{ state: "retiring", retiresAt: END_MS }, retiring, superseded],
  [{ state: "retiring", retiresAt: LATER_MS, expiresAt: END_MS }, retiring, expired],
  [{ state: "retiring", retiresAt: END_MS, expiresAt: END_MS }, retiring, expired],
  [{ state: "retiring", retiresAt: END_MS, expiresAt: LATER_MS }, retiring, superseded],
  [{ state: "active", suspended }, stopped, stopped],
  [{ state: "active", suspended, expiresAt: END_MS }, stopped, expired],
  [{ state: "active", suspended, retiresAt: END_MS }, stopped, stopped],
  [{ state: "retiring", suspended, retiresAt: END_MS, expiresAt: LATER_MS }, stopped, superseded],
  [{ state: "expired", suspended }, expired, expired],
  [{ ...leaked, state: "revoked", suspended }, leaked, leaked],
  [{ state: "expired" }, expired, expired],
  [{ state: "expired", expiresAt: LATER_MS }, expired, expired],
  [{ state: "expired", retiresAt: END_MS }, expired, expired],
  [{ ...leaked, state: "revoked", expiresAt: END_MS, retiresAt: END_MS }, leaked, leaked],
];

test("a key ends at the very millisecond it was told to, a revocation outranks expiry, and expiry the end of a grace period", () => {
  for (const [stored, before, from] of LIVES) {
    expect([stored, statusAt(stored, END_MS - 1)]).toEqual([stored, before]);
    expect([stored, statusAt(stored, END_MS)]).toEqual([stored, from]);
    expect([stored, statusAt(stored, new Date(END_MS + 1))]).toEqual([stored, from]);
  }
});

test("a key that was found suspended ends when its time comes, as one that is read as it is stored", () => {
  const found = { state: "suspended" as const, suspended, retiresAt: END_MS };
  expect([statusAt(found, END_MS - 1), statusAt(found, END_MS)]).toEqual([stopped, superseded]);
});

test("a key has not ended while it is active, retiring or suspended by the clock, whatever is stored", () => {
  for (const [{ state, expiresAt, retiresAt, suspended }, ...statuses] of LIVES) {
    const dateOf = (ms: number | undefined) => (ms === undefined ? undefined : new Date(ms));
    const record = recordOf("k", 1, {
      state: state as StoredState,
      suspended,
      expiresAt: dateOf(expiresAt),
      retiresAt: dateOf(retiresAt),
    });
    const live = [END_MS - 1, END_MS].map((ms) => isLive(record, new Date(ms)));
    expect([record, live]).toEqual([
      record,
      statuses.map((status) => [active, retiring, stopped].includes(status as typeof active)),
    ]);
  }
});

test("a key that is revoked keeps all else that is known of it, and an empty reason is none", () => {
  const record = Object.freeze(recordOf("k", 3, { state: "retiring", retiresAt: new Date(END_MS), name: "laptop" }));
  const now = new Date(EARLIER_MS);
  const ended = { ...record, state: "revoked", revokedAt: now };
  expect(revoked(record, { reason: "found", cause: "leaked" }, now)).toStrictEqual({
    ...{ ...ended, revocationReason: "found", revocationCause: "leaked" },
  });
  expect(revoked(record, { reason: "" }, now)).toStrictEqual({
    ...{ ...ended, revocationReason: undefined, revocationCause: undefined },
  });
});

test("what people are shown of a key is its prefix and the first half of its id", () => {
  expect(displayPrefix({ prefix: "acme_live", id: "0123456789abcdef" })).toBe("acme_live_01234567");
});
