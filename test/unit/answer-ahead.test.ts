import { setImmediate as tick } from "node:timers/promises";
import { expect, test } from "@jest/globals";
import { answerAhead } from "../../src/edge/doors/answer-ahead.ts";
import { deferred } from "../support/records.ts";

/** Items 0, 1, 2 …, and how many were read. */
function counted(count = Number.POSITIVE_INFINITY) {
  const source = { read: 0, closed: false };
  async function* items() {
    try {
      while (source.read < count) yield source.read++;
    } finally {
      source.closed = true;
    }
  }
  return { source, items: items() };
}

async function allOf<T>(answers: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const answer of answers) all.push(answer);
  return all;
}

/** Lets all go on that waits for nothing but its turn. */
async function settled(): Promise<void> {
  for (let turn = 0; turn < 50; turn += 1) await tick();
}

test("items are answered at once, and their answers given in order whichever is ready first", async () => {
  const pending = Array.from({ length: 3 }, () => deferred<string>());
  const answers = answerAhead(counted(3).items, 8, (item) => pending[item]!.promise);
  const all = allOf(answers);
  for (const index of [2, 0, 1]) {
    pending[index]!.resolve(`answer ${index}`);
    await settled();
  }
  expect(await all).toEqual(["answer 0", "answer 1", "answer 2"]);
});

test("an answer is given while the next item is waited for", async () => {
  async function* items() {
    yield "only";
    await new Promise(() => {});
  }
  const answers = answerAhead(items(), 8, (item) => item);
  expect(await answers.next()).toEqual({ done: false, value: "only" });
});

test("no more items are read ahead than the limit says, however many there are", async () => {
  const { source, items } = counted();
  const answers = answerAhead(items, 4, (item) => item);
  for (const taken of [1, 2, 3]) {
    expect(await answers.next()).toEqual({ done: false, value: taken - 1 });
    await settled();
    expect(source.read).toBe(taken + 3);
  }
});

test("a failure to read or to answer comes after the answers before it", async () => {
  async function* items() {
    yield "good";
    throw new Error("broken");
  }
  const answers = answerAhead(items(), 8, async (item) => {
    await settled();
    return item;
  });
  expect(await answers.next()).toEqual({ done: false, value: "good" });
  await expect(answers.next()).rejects.toThrow("broken");

  const refused = answerAhead(counted(3).items, 8, (item) => {
    if (item === 1) throw new Error("refused");
    return item;
  });
  expect(await refused.next()).toEqual({ done: false, value: 0 });
  await expect(refused.next()).rejects.toThrow("refused");
  expect(await refused.next()).toEqual({ done: true, value: undefined });
});

test("who stops taking answers closes the source", async () => {
  const { source, items } = counted();
  for await (const _ of answerAhead(items, 4, (item) => item)) break;
  await settled();
  expect(source.closed).toBe(true);
});
