import { expect, test } from "@jest/globals";
import type { Operation } from "../faults/operation.ts";
import { brokenPromises } from "../faults/promises.ts";

const BOUNDS = [{ maxStalenessMs: 1_000, outageGraceMs: 0 }];
const MS = 1_000;

/** A call that began at `atMs` on both clocks and took 10 ms. */
function did(call: Operation["call"], atMs: number, answer: Partial<Operation>): Operation {
  const times = { beganUs: atMs * MS, endedUs: (atMs + 10) * MS, beganWallMs: atMs, endedWallMs: atMs + 10 };
  return { user: "alice", client: 0, replica: 0, call, outcome: "OK", ...times, ...answer };
}
const created = did("create", 0, { made: "k1" });
const rotated = (fields: Partial<Operation> = {}) => did("refresh", 100, { made: "k2", previous: "k1", ...fields });
const asked = (atMs: number, outcome: string, fields: Partial<Operation> = {}) =>
  did("verify", atMs, { key: "k1", outcome, strong: false, asOfMs: atMs, ...fields });
const found = (...history: Operation[]) => brokenPromises(history, BOUNDS).map((text) => text.split(":")[0]);

test("a history that keeps every promise has nothing broken in it", () => {
  const history = [
    created,
    asked(20, "VALID"),
    asked(105, "VALID"),
    rotated(),
    asked(120, "VALID", { asOfMs: 100 }),
    asked(130, "REVOKED"),
  ];
  expect(found(...history)).toEqual([]);
});

test("a strong acceptance after the acknowledged end is told", () => {
  expect(found(created, rotated(), asked(111, "VALID", { strong: true, asOfMs: 111 }))).toContain("accepted too late");
});

test("a default acceptance is told once the bound is over, and not before", () => {
  expect(found(created, rotated(), asked(1_109, "VALID", { asOfMs: 109 }))).toEqual([]);
  expect(found(created, rotated(), asked(1_111, "VALID", { asOfMs: 110 }))).toContain("accepted too late");
});

test("an acceptance that claims to know of the end is told, however soon after it", () => {
  expect(found(created, rotated(), asked(112, "VALID", { asOfMs: 111 }))).toEqual([
    "accepted as of a time after the key's end",
  ]);
});

test("an answer older than the bound is told, whatever it says", () => {
  expect(found(created, asked(2_000, "VALID", { asOfMs: 900 }))).toEqual(["an answer older than the bound"]);
});

test("a key that was given out and is unknown to an answer of a later time is told", () => {
  expect(found(created, asked(20, "NOT_FOUND", { asOfMs: 5 }))).toEqual([]);
  expect(found(created, asked(20, "NOT_FOUND"))).toEqual(["a key that was given out is lost"]);
});

test("revoked is told of a key that nobody tried to end, and not where someone may have", () => {
  expect(found(created, asked(20, "REVOKED"))).toEqual(["a good key was called revoked"]);
  const lost = did("revoke", 15, { outcome: "DB_UNAVAILABLE" });
  expect(found(created, lost, asked(20, "REVOKED"))).toEqual([]);
});

test("with a grace the old key stays good until the next change that succeeds", () => {
  const next = did("refresh", 200, { made: "k3", previous: "k2", grace: true });
  expect(found(created, rotated({ grace: true }), asked(150, "VALID", { strong: true, asOfMs: 150 }))).toEqual([]);
  const late = asked(220, "VALID", { strong: true, asOfMs: 220 });
  expect(found(created, rotated({ grace: true }), next, late)).toContain("accepted too late");
});

test("NO_KEY is an end as good as a Revoke that succeeded", () => {
  const gone = did("revoke", 100, { outcome: "NO_KEY" });
  const lost = did("revoke", 50, { outcome: "DeadlineExceeded" });
  expect(found(created, lost, gone, asked(120, "VALID", { strong: true, asOfMs: 120 }))).toContain("accepted too late");
});

test("an answer that the contract does not name for a database in trouble is told", () => {
  expect(found(did("get", 0, { outcome: "DB_ERROR" }))).toEqual(["an answer that nothing explains"]);
});

const suspended = did("suspend", 100, { made: "k1" });
const narrowed = did("update", 100, { made: "k1", wide: false });

test("a key that was suspended is told when it is accepted, for as long as nobody tried to resume it", () => {
  expect(found(created, suspended, asked(105, "VALID"), asked(120, "SUSPENDED"))).toEqual([]);
  for (const outcome of ["VALID", "INSUFFICIENT_SCOPE"]) {
    expect(found(created, suspended, asked(1_109, outcome, { asOfMs: 109 }))).toEqual([]);
    expect(found(created, suspended, asked(1_111, outcome, { asOfMs: 110 }))).toEqual(["accepted though suspended"]);
    expect(found(created, suspended, asked(112, outcome, { asOfMs: 111 }))).toEqual(["accepted though suspended"]);
  }
  const resumed = did("resume", 150, { made: "k1", outcome: "DB_UNAVAILABLE" });
  expect(found(created, suspended, resumed, asked(1_200, "VALID", { asOfMs: 1_200 }))).toEqual([]);
  expect(found(created, suspended, resumed, asked(112, "VALID", { asOfMs: 111 }))).toEqual([
    "accepted though suspended",
  ]);
});

test("a scope that was taken away is told when it is accepted, for as long as nobody tried to give it back", () => {
  expect(found(created, narrowed, asked(112, "INSUFFICIENT_SCOPE", { asOfMs: 111 }))).toEqual([]);
  expect(found(created, narrowed, asked(112, "VALID", { asOfMs: 111 }))).toEqual([
    "a scope that was taken away was accepted",
  ]);
  const widened = did("update", 105, { made: "k1", wide: true, outcome: "DB_UNAVAILABLE" });
  expect(found(created, narrowed, widened, asked(1_200, "VALID", { asOfMs: 1_200 }))).toEqual([]);
  const refused = { ...widened, outcome: "ETAG_MISMATCH" };
  expect(found(created, narrowed, refused, asked(1_200, "VALID", { asOfMs: 1_200 }))).toEqual([
    "a scope that was taken away was accepted",
  ]);
});
