import { afterEach, beforeEach, expect, jest, test } from "@jest/globals";
import { createUsage, type Usage } from "../../src/keys/verify/usage.ts";
import { createView, type Entry } from "../../src/keys/verify/view.ts";
import { deferred, recordOf } from "../support/records.ts";

const MINUTE = 60_000;
let writes: Map<string, number>[];
let failures: unknown[];
let answer: () => Promise<void>;
let usage: Usage;

beforeEach(() => {
  [writes, failures, answer] = [[], [], async () => {}];
  usage = createUsage({
    write: (used) => {
      writes.push(new Map(used));
      return answer();
    },
    onFailed: (error) => failures.push(error),
  });
});
afterEach(() => usage.stop());

const view = createView({ maxKeys: 1 });

function entryOf(id: string, lastUsedAt?: Date): Entry {
  const window = view.open();
  const entry = window.keep(recordOf(id, 1, { lastUsedAt }))!;
  window.close();
  return entry;
}
const writtenOf = (id: string) => writes.flatMap((used) => used.get(id) ?? []);

test("a key's use is written at most once a minute, however often it is used", async () => {
  const entry = entryOf("a");
  for (let ms = 0; ms < 3 * MINUTE; ms += 1_000) {
    usage.note(entry, 10 * MINUTE + ms);
    await usage.flush();
  }
  expect(writtenOf("a")).toEqual([10 * MINUTE, 11 * MINUTE, 12 * MINUTE]);
});

test("a use that was written less than a minute ago, by whatever process, is not written again", async () => {
  const entry = entryOf("a", new Date(10 * MINUTE));
  usage.note(entry, 11 * MINUTE - 1);
  await usage.flush();
  expect(writes).toEqual([]);
  usage.note(entry, 11 * MINUTE);
  await usage.flush();
  expect(writtenOf("a")).toEqual([11 * MINUTE]);
});

test("uses are written together, and none is left behind by a stop", async () => {
  for (const id of ["a", "b", "c"]) usage.note(entryOf(id), MINUTE);
  expect(writes).toEqual([]);
  const slow = deferred<void>();
  answer = () => slow.promise;
  const flushing = usage.flush();
  usage.note(entryOf("d"), MINUTE);
  const stopped = usage.stop();
  slow.resolve();
  await Promise.all([flushing, stopped]);
  expect(writes.map((used) => [...used.keys()])).toEqual([["a", "b", "c"], ["d"]]);
});

test("a lost write is reported and costs nothing else: a minute later the use is written", async () => {
  const entry = entryOf("a");
  answer = () => Promise.reject(new Error("away"));
  usage.note(entry, MINUTE);
  await usage.flush();
  expect(failures).toEqual([expect.objectContaining({ message: "away" })]);
  answer = async () => {};
  usage.note(entry, 2 * MINUTE);
  await usage.flush();
  expect(writtenOf("a")).toEqual([MINUTE, 2 * MINUTE]);
});

test("while the database does not answer, no more than 5,000 uses wait; those beyond are noted once it does", async () => {
  const slow = deferred<void>();
  answer = () => slow.promise;
  usage.note(entryOf("first"), MINUTE);
  const flushing = usage.flush();
  const entries = Array.from({ length: 6_000 }, (_, n) => entryOf(`id ${n}`));
  for (const entry of entries) usage.note(entry, MINUTE);
  slow.resolve();
  await flushing;
  await usage.flush();
  expect(writes.map((used) => used.size)).toEqual([1, 5_000]);
  for (const entry of entries) usage.note(entry, MINUTE + 1);
  await usage.flush();
  expect(writes.map((used) => used.size)).toEqual([1, 5_000, 1_000]);
});

test("many uses are written as soon as there are 5,000 of them, without waiting for the next round", () => {
  for (let n = 0; n < 5_000; n += 1) usage.note(entryOf(`id ${n}`), MINUTE);
  expect(writes.map((used) => used.size)).toEqual([5_000]);
});

test("every five seconds what was noted is written, until the stop", async () => {
  jest.useFakeTimers();
  try {
    const timed = createUsage({ write: async (used) => void writes.push(new Map(used)), onFailed: () => {} });
    timed.note(entryOf("a"), MINUTE);
    jest.advanceTimersByTime(4_999);
    expect(writes).toEqual([]);
    jest.advanceTimersByTime(1);
    expect(writtenOf("a")).toEqual([MINUTE]);
    await timed.stop();
    expect(jest.getTimerCount()).toBe(0);
  } finally {
    jest.useRealTimers();
  }
});
