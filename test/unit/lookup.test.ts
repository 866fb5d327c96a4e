import { setImmediate as turn } from "node:timers/promises";
import { afterEach, beforeEach, expect, jest, test } from "@jest/globals";
import { KeyError } from "../../src/keys/errors.ts";
import type { RecordSource } from "../../src/keys/ports.ts";
import type { KeyRecord } from "../../src/keys/record.ts";
import { createFreshness, type Freshness } from "../../src/keys/verify/freshness.ts";
import { createLookup, type KeyLookup } from "../../src/keys/verify/lookup.ts";
import { createView, type View } from "../../src/keys/verify/view.ts";
import { deferred, recordOf, stillClock } from "../support/records.ts";

type Kind = keyof RecordSource;

let view: View;
let freshness: Freshness;
let clock: ReturnType<typeof stillClock>;
/** What the database holds, and where it does not answer. */
let records: Map<string, KeyRecord>;
let down: Set<Kind>;
let asked: Kind[];
/** What a primary waits for before it answers. */
let hinder: () => Promise<void>;
let lookup: KeyLookup;

/** The wall clock is a million ahead of the monotonic one. */
const wall = (monotonicMs: number) => 1_000_000 + monotonicMs;
const prove = (monotonicMs: number) => freshness.prove({ wallMs: wall(monotonicMs), monotonicMs });

/** What is not faked is what reads and promises wait for. */
const fakeTime = () => void jest.useFakeTimers({ doNotFake: ["setImmediate", "nextTick", "queueMicrotask"] });
afterEach(() => void jest.useRealTimers());
beforeEach(() => build());

function build({ outageGraceMs = 30_000, readTimeoutMs = 60_000 } = {}): void {
  hinder = async () => {};
  clock = stillClock(1_000);
  view = createView({ maxKeys: 100 });
  view.restart();
  freshness = createFreshness({ maxStalenessMs: 1_000, outageGraceMs, clockMs: clock.nowMs });
  records = new Map();
  down = new Set();
  const reads: Kind[] = [];
  asked = reads;
  const read = (kind: Kind) => async (ids: readonly string[]) => {
    reads.push(kind);
    if (kind !== "readFromSecondary") await hinder();
    if (down.has(kind)) throw new Error(`${kind} is down`);
    return ids.flatMap((id) => records.get(id) ?? []);
  };
  lookup = createLookup({
    ...{ view, freshness, readTimeoutMs, clockMs: clock.nowMs, wallMs: () => wall(clock.nowMs()) },
    source: {
      readRecent: read("readRecent"),
      readProven: read("readProven"),
      readFromSecondary: read("readFromSecondary"),
    },
  });
}

/** Over a database that does as it is told. */
const lookupOver = (source: RecordSource, readTimeoutMs = 60_000) =>
  createLookup({ ...{ view, freshness, readTimeoutMs, clockMs: clock.nowMs, wallMs: Date.now }, source });
const store = (record: KeyRecord) => records.set(record.id, record);
const hold = (record: KeyRecord) => {
  store(record);
  const window = view.open();
  window.keep(record);
  window.close();
};
const allDown = () => {
  down = new Set<Kind>(["readRecent", "readProven", "readFromSecondary"]);
};
const unavailable = {
  name: "KeyError",
  reason: "DB_UNAVAILABLE",
  retryAfterMs: 1_000,
  message: expect.stringContaining("can't be reached"),
};
const found = (rev: number, asOfMs: number) => ({ entry: { rev }, asOfMs });
async function settled(): Promise<void> {
  for (let turns = 0; turns < 10; turns += 1) await turn();
}

test("a fresh view answers by itself, as of its last proof: records and unknown ids alike", async () => {
  hold(recordOf("a", 3));
  prove(900);
  expect(lookup.peek("a")).toMatchObject(found(3, wall(900)));
  expect(await lookup.find("a")).toMatchObject(found(3, wall(900)));
  await lookup.find("nobody");
  expect(await lookup.find("nobody")).toEqual({ entry: undefined, asOfMs: wall(900) });
  expect(asked).toEqual(["readRecent"]);
});

test("what a fresh view lacks is read, and answered as of the proof before the read", async () => {
  store(recordOf("a", 3));
  prove(900);
  expect(lookup.peek("a")).toBeUndefined();
  const call = lookup.find("a");
  clock.pass(50);
  prove(1_040);
  expect(await call).toMatchObject(found(3, wall(900)));
  expect(lookup.peek("a")).toMatchObject(found(3, wall(1_040)));
  expect(asked).toEqual(["readRecent"]);
});

test("a view that is no longer fresh is not believed: every call reads with proof, as of when that read began", async () => {
  hold(recordOf("a", 1));
  prove(0);
  clock.pass(1);
  store(recordOf("a", 2, { state: "revoked" }));
  expect(lookup.peek("a")).toBeUndefined();
  expect(await lookup.find("a")).toMatchObject(found(2, wall(1_001)));
  clock.pass(10);
  expect(await lookup.find("a")).toMatchObject(found(2, wall(1_011)));
  expect(asked).toEqual(["readProven", "readProven"]);
});

test("a strong call reads with proof though the view is fresh, and the view learns what it found", async () => {
  hold(recordOf("a", 1));
  prove(1_000);
  store(recordOf("a", 2));
  clock.pass(5);
  expect(await lookup.findStrong("a")).toMatchObject(found(2, wall(1_005)));
  expect(asked).toEqual(["readProven"]);
  expect(lookup.peek("a")).toMatchObject(found(2, wall(1_000)));
});

test("while the database does not answer, records in memory are good until the grace is over, as of the last proof", async () => {
  hold(recordOf("a", 1));
  prove(0);
  clock.pass(1);
  allDown();
  expect(await lookup.find("a")).toMatchObject(found(1, wall(0)));
  expect(lookup.outage).toBe(true);
  clock.pass(28_999);
  expect(await lookup.find("a")).toMatchObject(found(1, wall(0)));
  clock.pass(1);
  await expect(lookup.find("a")).rejects.toMatchObject(unavailable);
});

test("a grace of 0: no record is good without the database once the view is not fresh", async () => {
  build({ outageGraceMs: 0 });
  hold(recordOf("a", 1));
  prove(999);
  allDown();
  expect(await lookup.find("a")).toMatchObject(found(1, wall(999)));
  await expect(lookup.find("b")).rejects.toMatchObject(unavailable);
  clock.pass(1_000);
  await expect(lookup.find("a")).rejects.toMatchObject(unavailable);
});

test("in an outage what is not in memory is read from a secondary, as of the last proof; past the grace it is not", async () => {
  store(recordOf("a", 1));
  prove(0);
  clock.pass(1);
  allDown();
  down.delete("readFromSecondary");
  expect(await lookup.find("a")).toMatchObject(found(1, wall(0)));
  expect(asked).toEqual(["readProven", "readFromSecondary"]);
  await settled();
  asked.length = 0;
  clock.pass(29_000);
  store(recordOf("b", 1));
  await expect(lookup.find("b")).rejects.toMatchObject(unavailable);
  expect(asked).not.toContain("readFromSecondary");
});

test("in an outage no key is called unknown: it may have been made since the last proof", async () => {
  prove(1_000);
  await lookup.find("asked for too early");
  clock.pass(1_001);
  allDown();
  down.delete("readFromSecondary");
  for (const id of ["never seen", "never seen", "asked for too early"]) {
    await expect(lookup.find(id)).rejects.toMatchObject({ ...unavailable, cause: { message: "readProven is down" } });
  }
});

test("where no secondary answers either, the call is UNAVAILABLE, with the cause for the log", async () => {
  prove(0);
  allDown();
  const error = await lookup.find("a").catch((thrown: unknown) => thrown);
  expect(error).toMatchObject({ ...unavailable, cause: { message: "readRecent is down" } });
});

test("where the database does not answer, a call is UNAVAILABLE before its own deadline, not only when the reads are given up", async () => {
  build({ readTimeoutMs: 20 });
  prove(0);
  clock.pass(1);
  const stuck = deferred<void>();
  hinder = () => stuck.promise;
  down.add("readFromSecondary");
  const patient = lookup.find("a").catch(() => "patient");
  // Of the first call, which finds the outage out, of one in it, and of a strong one.
  const soon = clock.nowMs() + 100;
  await expect(Promise.race([patient, lookup.find("b", soon)])).rejects.toMatchObject(unavailable);
  await expect(Promise.race([patient, lookup.find("c", soon)])).rejects.toMatchObject(unavailable);
  await expect(Promise.race([patient, lookup.findStrong("d", soon)])).rejects.toMatchObject(unavailable);
  stuck.resolve();
  await patient;
});

test("in an outage strong calls are UNAVAILABLE at once, without waiting for a read", async () => {
  hold(recordOf("a", 1));
  prove(1_000);
  allDown();
  await expect(lookup.findStrong("a")).rejects.toMatchObject(unavailable);
  await settled();
  clock.pass(1);
  let probes = 0;
  const hanging = deferred<KeyRecord[]>();
  const stuck = lookupOver({
    readRecent: () => Promise.reject(new Error("down")),
    readProven: () => {
      probes += 1;
      return hanging.promise;
    },
    readFromSecondary: () => Promise.reject(new Error("down")),
  });
  await expect(stuck.find("b")).rejects.toMatchObject(unavailable);
  // The probe hangs; the calls don't.
  await expect(stuck.findStrong("a")).rejects.toMatchObject(unavailable);
  await settled();
  await expect(stuck.findStrong("a")).rejects.toMatchObject(unavailable);
  await settled();
  expect(probes).toBe(1);
  hanging.resolve([]);
});

test("an outage ends by a read that succeeds, and one read at a time finds out", async () => {
  hold(recordOf("a", 1));
  prove(0);
  clock.pass(1);
  allDown();
  await lookup.find("a");
  await settled();
  asked.length = 0;
  await Promise.all([lookup.find("a"), lookup.find("a"), lookup.find("a")]);
  await settled();
  expect(asked).toEqual(["readProven"]);
  down.clear();
  await lookup.find("a");
  await settled();
  expect(lookup.outage).toBe(false);
  store(recordOf("a", 2));
  expect(await lookup.find("a")).toMatchObject(found(2, wall(1_001)));
});

test("an outage ends by a proof that was sent after the failure, not by one sent before", async () => {
  hold(recordOf("a", 1));
  prove(0);
  clock.pass(1);
  allDown();
  await lookup.find("a");
  expect(lookup.outage).toBe(true);
  prove(1_000);
  expect(lookup.outage).toBe(true);
  clock.pass(10);
  prove(1_010);
  expect(lookup.outage).toBe(false);
});

test("a refusal for overload is passed on, and is no outage", async () => {
  prove(1_000);
  const overloaded = new KeyError("OVERLOADED", "no");
  const refusing = lookupOver({
    readRecent: () => Promise.reject(overloaded),
    readProven: () => Promise.reject(overloaded),
    // To ask yet another member would only add to it.
    readFromSecondary: async () => [recordOf("a")],
  });
  clock.pass(1);
  await expect(refusing.find("a")).rejects.toBe(overloaded);
  await expect(refusing.findStrong("a")).rejects.toBe(overloaded);
  expect(refusing.outage).toBe(false);
});

test("a database that is only slow: memory answers in its stead, and what is not in memory waits for it", async () => {
  build({ readTimeoutMs: 20 });
  hold(recordOf("held", 1));
  prove(0);
  clock.pass(1);
  const slow = deferred<void>();
  down.add("readFromSecondary");
  store(recordOf("absent", 7));
  hinder = () => slow.promise;
  const absent = lookup.find("absent");
  expect(await lookup.find("held")).toMatchObject(found(1, wall(0)));
  expect(lookup.outage).toBe(true);
  await settled();
  expect(asked).toEqual(["readProven", "readFromSecondary", "readRecent"]);
  slow.resolve();
  expect((await absent).entry?.rev).toBe(7);
  await settled();
  expect(lookup.outage).toBe(false);
});

test("in an outage nobody waits for the primary: memory answers at once, and for what is not in it a secondary", async () => {
  hold(recordOf("held", 1));
  store(recordOf("absent", 7));
  prove(0);
  clock.pass(1);
  allDown();
  await lookup.find("held");
  await settled();
  down.delete("readFromSecondary");
  const stuck = deferred<void>();
  hinder = () => stuck.promise;
  expect(await lookup.find("held")).toMatchObject(found(1, wall(0)));
  expect(await lookup.find("absent")).toMatchObject(found(7, wall(0)));
  stuck.resolve();
  await settled();
});

test("while the primary can prove nothing and the secondary that is asked is frozen, the primary's own record is good", async () => {
  store(recordOf("a", 7));
  prove(0);
  clock.pass(1);
  const frozen = deferred<KeyRecord[]>();
  const stalled = lookupOver(
    {
      readRecent: async (ids) => ids.flatMap((id) => records.get(id) ?? []),
      readProven: () => frozen.promise,
      readFromSecondary: () => frozen.promise,
    },
    20,
  );
  expect(await stalled.find("a")).toMatchObject(found(7, wall(0)));
  await expect(stalled.findStrong("a")).rejects.toMatchObject(unavailable);
  frozen.resolve([]);
});

test("an answer that took longer than what it rests on may be old is not given", async () => {
  build({ outageGraceMs: 500 });
  store(recordOf("a", 1));
  prove(900);
  hinder = async () => {
    hinder = async () => {};
    clock.pass(2_000);
  };
  // Of the primary, which is asked again for proof.
  expect(await lookup.find("a")).toMatchObject(found(1, wall(3_000)));
  expect(asked).toEqual(["readRecent", "readProven"]);
  // Of a secondary in an outage.
  build({ outageGraceMs: 2_000 });
  store(recordOf("b", 1));
  prove(0);
  clock.pass(1);
  allDown();
  down.delete("readFromSecondary");
  hinder = async () => void clock.pass(2_000);
  await expect(lookup.find("b")).rejects.toMatchObject(unavailable);
});

test("what fails for overload is told so rather than that the database is away, and else the primary's failure is the cause", async () => {
  const overloaded = new KeyError("OVERLOADED", "no");
  const failing = (failures: Record<Kind, Error>) =>
    lookupOver({
      readRecent: () => Promise.reject(failures.readRecent),
      readProven: () => Promise.reject(failures.readProven),
      readFromSecondary: () => Promise.reject(failures.readFromSecondary),
    });
  prove(999);
  const [one, two, three] = [new Error("one"), new Error("two"), new Error("three")];
  const busy = failing({ readRecent: one, readProven: two, readFromSecondary: overloaded });
  await expect(busy.find("a")).rejects.toBe(overloaded);
  const away = failing({ readRecent: one, readProven: two, readFromSecondary: three });
  await expect(away.find("a")).rejects.toMatchObject({ ...unavailable, cause: one });
  await expect(away.find("a")).rejects.toMatchObject({ ...unavailable, cause: two });
});

test.each([
  [20, 2_020],
  [5_000, 10_000],
])(
  "with a read timeout of %i ms a call that nothing can answer waits for %i ms: for the one read, then for others",
  async (readTimeoutMs, waitMs) => {
    fakeTime();
    build({ readTimeoutMs });
    prove(999);
    hinder = () => new Promise(() => {});
    down.add("readFromSecondary");
    let refused: unknown;
    lookup.find("a").catch((error: unknown) => {
      refused = error;
    });
    await settled();
    jest.advanceTimersByTime(readTimeoutMs);
    await settled();
    jest.advanceTimersByTime(waitMs - readTimeoutMs - 1);
    await settled();
    expect([lookup.outage, refused]).toEqual([true, undefined]);
    jest.advanceTimersByTime(1);
    await settled();
    expect(refused).toMatchObject(unavailable);
  },
);
