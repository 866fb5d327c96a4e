import { expect, test } from "@jest/globals";
import { displayPrefix, isLive, revoked, type StoredState, statusAt } from "../../src/keys/key.ts";
import { recordOf } from "../support/records.ts";

const now = new Date(1_000);
const [past, later] = [new Date(1_000), new Date(1_001)];
const of = (state: StoredState, ends = {}) => recordOf("a", 1, { state, ...ends });

test.each([
  ["active", {}, "active", true],
  ["active", { expiresAt: later }, "active", true],
  ["active", { expiresAt: past }, "expired", false],
  ["active", { retiresAt: past }, "active", true],
  ["retiring", { retiresAt: later }, "retiring", true],
  ["retiring", { retiresAt: past }, "revoked", false],
  ["retiring", { retiresAt: past, expiresAt: past }, "expired", false],
  ["revoked", { expiresAt: past, revokedAt: past, revocationReason: "leaked" }, "revoked", false],
  ["expired", {}, "expired", false],
] as const)("stored as %s with %j, a key is %s", (state, ends, judged, live) => {
  expect(statusAt(of(state, ends), now).state).toBe(judged);
  expect(isLive(of(state, ends), now)).toBe(live);
});

test("an end tells when and why: as it was said, or superseded when the grace period was over", () => {
  expect(statusAt(of("revoked", { revokedAt: past, revocationReason: "leaked" }), now)).toEqual({
    ...{ state: "revoked", revokedAt: past, revocationReason: "leaked" },
  });
  expect(statusAt(of("retiring", { retiresAt: past }), now)).toEqual({
    ...{ state: "revoked", revokedAt: past, revocationReason: "superseded" },
  });
});

test("a revoked record has its reason, if one was given, and is otherwise as it was", () => {
  const record = of("active", { name: "ci" });
  const ended = { ...record, state: "revoked", revokedAt: now };
  expect(revoked(record, "leaked", now)).toEqual({ ...ended, revocationReason: "leaked" });
  expect(revoked(record, "", now).revocationReason).toBeUndefined();
});

test("what is shown of a key is its prefix and half of its id", () => {
  expect(displayPrefix({ prefix: "lk", id: "0123456789abcdef" })).toBe("lk_01234567");
});
