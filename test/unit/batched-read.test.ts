import { stat } from "node:fs";
import { setImmediate as turn } from "node:timers/promises";
import { afterEach, beforeEach, expect, jest, test } from "@jest/globals";
import type { KeyRecord } from "../../src/keys/record.ts";
import { type BatchedRead, createBatchedRead } from "../../src/keys/verify/batched-read.ts";
import { createView, type View } from "../../src/keys/verify/view.ts";
import { deferred, recordOf, stillClock } from "../support/records.ts";

interface Read {
  ids: readonly string[];
  signal: AbortSignal;
  answer: (...records: KeyRecord[]) => void;
  fail: (error: unknown) => void;
}

let view: View;
let reads: Read[];
let clock: ReturnType<typeof stillClock>;
/** What is not faked is what reads and promises wait for. */
const fakeTime = () => void jest.useFakeTimers({ doNotFake: ["setImmediate", "nextTick", "queueMicrotask"] });
afterEach(() => void jest.useRealTimers());
beforeEach(() => {
  view = createView({ maxKeys: 100_000 });
  view.restart();
  reads = [];
  clock = stillClock(1_000);
});

function batched(timeoutMs = 60_000, lateMs = timeoutMs): BatchedRead {
  return createBatchedRead({
    ...{ view, timeoutMs, lateMs, wallMs: clock.nowMs },
    read: (ids, signal) => {
      const { promise, resolve, reject } = deferred<KeyRecord[]>();
      reads.push({ ids, signal, answer: (...records) => resolve(records), fail: reject });
      return promise;
    },
  });
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await turn();
}
/** All that can run has run. */
async function settled(): Promise<void> {
  for (let turns = 0; turns < 5; turns += 1) await turn();
}

test("calls that come together are one read, each id asked for once, and each call gets its own answer", async () => {
  const read = batched();
  const calls = [read("a"), read("b"), read("a"), read("unknown")];
  await until(() => reads.length === 1);
  expect(reads[0]!.ids).toEqual(["a", "b", "unknown"]);
  reads[0]!.answer(recordOf("b"), recordOf("a"));
  const answers = await Promise.all(calls);
  expect(answers.map(({ entry }) => entry?.id)).toEqual(["a", "b", "a", undefined]);
  expect([view.get("a")?.id, view.isUnknown("unknown"), reads.length]).toEqual(["a", true, 1]);
});

test("a call is never answered by a read that began before it, and says when its own began", async () => {
  const read = batched();
  const first = read("a");
  await until(() => reads.length === 1);
  clock.pass(5);
  const second = read("a");
  let answered = false;
  void second.then(() => {
    answered = true;
  });
  reads[0]!.answer(recordOf("a", 1));
  expect(await first).toMatchObject({ beganMs: 1_000, entry: { rev: 1 } });
  await until(() => reads.length === 2);
  expect(answered).toBe(false);
  reads[1]!.answer(recordOf("a", 2));
  expect(await second).toMatchObject({ beganMs: 1_005, entry: { rev: 2 } });
});

test("at most two reads are on their way; what comes meanwhile is collected into the next", async () => {
  const read = batched();
  const calls: Promise<unknown>[] = [];
  for (const id of ["a", "b", "c", "d", "e"]) {
    calls.push(read(id));
    await settled();
  }
  expect(reads.map(({ ids }) => ids)).toEqual([["a"], ["b"]]);
  reads[1]!.answer();
  await until(() => reads.length === 3);
  expect(reads[2]!.ids).toEqual(["c", "d", "e"]);
  reads[0]!.answer();
  reads[2]!.answer();
  await Promise.all(calls);
});

test("a read is of no more than 256 ids", async () => {
  const read = batched();
  const calls = Array.from({ length: 300 }, (_, n) => read(`id ${n}`));
  await until(() => reads.length === 2);
  expect(reads.map(({ ids }) => ids.length)).toEqual([256, 44]);
  for (const { answer } of reads) answer();
  await Promise.all(calls);
});

test("a read overtaken by an event is made again, and the newer record answered", async () => {
  const read = batched();
  const call = read("a");
  const fresh = read("b");
  await until(() => reads.length === 1);
  view.changed("a", 2);
  view.changed("b", 1);
  reads[0]!.answer(recordOf("a", 1));
  await until(() => reads.length === 2);
  expect(reads[1]!.ids).toEqual(["a", "b"]);
  reads[1]!.answer(recordOf("a", 2), recordOf("b", 1));
  expect((await call).entry?.rev).toBe(2);
  expect((await fresh).entry?.rev).toBe(1);
});

test("a record that changes at every read is CONFLICT in the end, to be tried again", async () => {
  const read = batched();
  const call = read("a");
  const refused = expect(call).rejects.toMatchObject({
    reason: "CONFLICT",
    retryAfterMs: 100,
    message: expect.stringContaining("kept changing"),
  });
  for (let rev = 1; rev <= 5; rev += 1) {
    await until(() => reads.length === rev);
    view.changed("a", rev + 1);
    reads[rev - 1]!.answer(recordOf("a", rev));
  }
  await refused;
  expect(reads).toHaveLength(5);
});

test("a read that fails, fails its own calls, and the next is made", async () => {
  const read = batched();
  const call = read("a");
  const refused = expect(call).rejects.toThrow("connection lost");
  await until(() => reads.length === 1);
  reads[0]!.fail(new Error("connection lost"));
  await refused;
  const next = read("a");
  await until(() => reads.length === 2);
  reads[1]!.answer(recordOf("a"));
  expect((await next).entry?.id).toBe("a");
});

test("without an answer in time, calls fail, the read is told to give up, and its place is given back even if it does not", async () => {
  const read = batched(20);
  // Three batches: two never answer, one waits for their place until its own time is up.
  const calls: Promise<unknown>[] = [];
  for (const id of ["a", "b", "c"]) {
    calls.push(expect(read(id)).rejects.toMatchObject({ name: "ReadTimeout", message: "no answer within 20 ms" }));
    await settled();
  }
  await Promise.all(calls);
  expect(reads.slice(0, 2).map(({ signal }) => signal.aborted)).toEqual([true, true]);
  const begun = reads.length;
  const next = read("d");
  await until(() => reads.length > begun);
  reads.at(-1)!.answer(recordOf("d"));
  expect((await next).entry?.id).toBe("d");
  // An answer after all is nobody's, and not kept.
  reads[0]!.answer(recordOf("a"));
  await settled();
  expect(view.get("a")).toBeUndefined();
});

test("beyond 10,000 waiting calls the rest are OVERLOADED at once; as soon as some were answered, others may come", async () => {
  const read = batched();
  const calls = Array.from({ length: 10_000 }, (_, n) => read(`id ${n}`));
  await expect(read("one more")).rejects.toMatchObject({
    reason: "OVERLOADED",
    retryAfterMs: 100,
    message: expect.stringContaining("Too many keys"),
  });
  const all = Promise.all(calls);
  for (let answered = 0; answered < 40; answered += 1) {
    await until(() => reads.length > answered);
    reads[answered]!.answer();
  }
  await all;
  const later = read("one more");
  await until(() => reads.length === 41);
  reads[40]!.answer();
  expect((await later).entry).toBeUndefined();
});

test("an answer that came in time is not lost because the process was busy when it did", async () => {
  let loads = 0;
  const read = createBatchedRead({
    ...{ view, timeoutMs: 20, wallMs: clock.nowMs },
    read: () =>
      new Promise<KeyRecord[]>((resolve) => {
        loads += 1;
        stat(".", () => resolve([recordOf("a")]));
      }),
  });
  const call = read("a");
  while (loads === 0) await turn();
  const untilMs = performance.now() + 100;
  while (performance.now() < untilMs);
  expect((await call).entry?.id).toBe("a");
});

test("after ids that nobody has, the next read waits a tenth of a millisecond for each; after others it does not", async () => {
  fakeTime();
  const read = batched();
  const vain = Array.from({ length: 100 }, (_, n) => read(`nobody ${n}`));
  await until(() => reads.length === 1);
  reads[0]!.answer();
  await Promise.all(vain);
  const next = read("a");
  await settled();
  jest.advanceTimersByTime(9);
  await settled();
  expect(reads.length).toBe(1);
  jest.advanceTimersByTime(1);
  await until(() => reads.length === 2);
  reads[1]!.answer(recordOf("a"));
  expect((await next).entry).toBeDefined();
  void read("b");
  await settled();
  expect(reads.length).toBe(3);
});

test("a read is told to be late by its own beginning: what a call waited for its turn does not count", async () => {
  fakeTime();
  const late: string[] = [];
  const read = batched(60_000, 100);
  const ask = (id: string) => void read(id, () => late.push(id)).catch(() => {});
  // Both places are taken, and more that is late holds its place.
  for (let n = 0; n < 18; n += 1) {
    ask(`first ${n}`);
    await settled();
    jest.advanceTimersByTime(100);
    await settled();
  }
  expect(reads.length).toBe(18);
  late.length = 0;
  ask("waits");
  await settled();
  jest.advanceTimersByTime(1_000);
  await settled();
  expect([reads.length, late]).toEqual([18, []]);
  reads[17]!.answer(recordOf("first 17"));
  await until(() => reads.length === 19);
  jest.advanceTimersByTime(100);
  expect(late).toEqual(["waits"]);
});

test("late reads let others begin, sixteen of them at once; as each ends its share is there again", async () => {
  fakeTime();
  const read = batched(10_000, 100);
  // The reads ignore that they are told to give up: the second round finds all places free only if the first gave them back.
  for (const round of ["first", "second"]) {
    const before = reads.length;
    for (let n = 0; n < 18; n += 1) {
      void read(`${round} ${n}`).catch(() => {});
      await settled();
      jest.advanceTimersByTime(100);
      await settled();
      expect(reads.length - before).toBe(n + 1);
    }
    void read(`${round} waits`).catch(() => {});
    await settled();
    jest.advanceTimersByTime(100);
    await settled();
    expect(reads.length - before).toBe(18);
    jest.advanceTimersByTime(10_000);
    await settled();
  }
});

test("of many calls at once, no more than two reads begin", async () => {
  const read = batched();
  const calls = Array.from({ length: 600 }, (_, n) => read(`id ${n}`));
  await settled();
  expect(reads.map(({ ids }) => ids.length)).toEqual([256, 256]);
  reads[0]!.answer();
  await settled();
  // Whatever was looked up in vain is waited for.
  await until(() => reads.length === 3);
  for (const { answer } of reads) answer();
  await Promise.all(calls);
});

test("ids that were found hold up nobody, and those that were not add up over reads", async () => {
  fakeTime();
  const read = batched();
  const ask = async (name: string) => {
    const calls = Array.from({ length: 100 }, (_, n) => read(`${name} ${n}`));
    await settled();
    return Promise.all(calls);
  };
  const found = ask("somebody");
  await until(() => reads.length === 1);
  reads[0]!.answer(...reads[0]!.ids.map((id) => recordOf(id)));
  await found;
  const vain = [ask("nobody"), ask("nobody either")];
  await until(() => reads.length === 2);
  expect(reads[1]!.ids.length).toBe(200);
  void read("a").catch(() => {});
  await until(() => reads.length === 3);
  reads[1]!.answer();
  await Promise.all(vain);
  reads[2]!.answer();
  await settled();
  void read("b").catch(() => {});
  await settled();
  jest.advanceTimersByTime(19);
  await settled();
  expect(reads.length).toBe(3);
  jest.advanceTimersByTime(2);
  await until(() => reads.length === 4);
});

test("a read that is given up takes none along that waits for its place", async () => {
  fakeTime();
  const read = batched(1_000);
  for (const id of ["a", "b"]) {
    void read(id).catch(() => {});
    await settled();
  }
  jest.advanceTimersByTime(500);
  const waits = read("c");
  await settled();
  jest.advanceTimersByTime(500);
  await until(() => reads.length === 3);
  reads[2]!.answer(recordOf("c"));
  expect((await waits).entry?.id).toBe("c");
});

test("what waited for its turn too long is not read any more", async () => {
  fakeTime();
  const read = batched(1_000, 10_000);
  for (const id of ["a", "b"]) {
    void read(id).catch(() => {});
    await settled();
  }
  const waits = expect(read("c")).rejects.toMatchObject({ name: "ReadTimeout" });
  jest.advanceTimersByTime(1_000);
  await waits;
  await settled();
  const next = read("d");
  await settled();
  expect(reads.map(({ ids }) => ids)).toEqual([["a"], ["b"], ["d"]]);
  reads[2]!.answer(recordOf("d"));
  expect((await next).entry?.id).toBe("d");
});

test("a call whose read was answered is not failed when its time is up, and the read is not told to give up", async () => {
  fakeTime();
  const late: string[] = [];
  const read = batched(1_000, 100);
  const call = read("a", () => late.push("a"));
  await until(() => reads.length === 1);
  reads[0]!.answer(recordOf("a"));
  await call;
  jest.advanceTimersByTime(2_000);
  await settled();
  expect([late, reads[0]!.signal.aborted, jest.getTimerCount()]).toEqual([[], false, 0]);
});
