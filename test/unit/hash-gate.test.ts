import { expect, test } from "@jest/globals";
import { createHashGate } from "../../src/keys/hash-gate.ts";

const forEver = Number.POSITIVE_INFINITY;
const held = () => {
  let release = () => {};
  const work = new Promise<void>((resolve) => {
    release = resolve;
  });
  return { work: () => work, release };
};

test("no more than `concurrency` hashes run at once, and the queue is first come, first served", async () => {
  const gate = createHashGate({ concurrency: 1, queue: 2 });
  const order: number[] = [];
  const first = held();
  const runs = [
    gate.run(first.work, forEver),
    gate.run(async () => order.push(2), forEver),
    gate.run(async () => order.push(3), forEver),
  ];
  expect([gate.running, gate.waiting]).toEqual([1, 2]);
  first.release();
  await Promise.all(runs);
  expect({ order, running: gate.running, waiting: gate.waiting }).toEqual({ order: [2, 3], running: 0, waiting: 0 });
});

test("a full queue refuses with OVERLOADED and a time to come back", async () => {
  const gate = createHashGate({ concurrency: 1, queue: 1 });
  const first = held();
  const runs = [gate.run(first.work, forEver), gate.run(async () => {}, forEver)];
  await expect(gate.run(async () => {}, forEver)).rejects.toMatchObject({
    reason: "OVERLOADED",
    message: expect.stringContaining("Too many keys are being hashed"),
    // Of the two before it and its own, at the first guess of 30 ms each; never below 100 ms.
    retryAfterMs: 100,
  });
  first.release();
  await Promise.all(runs);
});

test("a call that could not be served by its deadline is refused at once, and its work never starts", async () => {
  const gate = createHashGate({ concurrency: 1, queue: 10, clockMs: () => 1_000 });
  let started = false;
  const work = async () => {
    started = true;
  };
  await expect(gate.run(work, 1_001)).rejects.toMatchObject({ reason: "OVERLOADED" });
  expect(started).toBe(false);
  await gate.run(work, 2_000);
  expect(started).toBe(true);
});

test("work that fails gives its place back", async () => {
  const gate = createHashGate({ concurrency: 1, queue: 1 });
  await expect(gate.run(() => Promise.reject(new Error("no")), forEver)).rejects.toThrow("no");
  expect(gate.running).toBe(0);
});

test("what a run takes is learned from those before: the time to come back grows with it, and the pace with the places", async () => {
  let nowMs = 0;
  const gate = createHashGate({ concurrency: 2, queue: 1, clockMs: () => nowMs });
  const passing = (ms: number) => async () => {
    nowMs += ms;
  };
  // 30 + (830 - 30) / 8 = 130 ms on average.
  await gate.run(passing(830), forEver);
  expect(gate.runs).toBe(1);
  await expect(gate.run(passing(0), nowMs + 129)).rejects.toMatchObject({ retryAfterMs: 130 });
  await gate.run(passing(130), nowMs + 130);
  const [first, second, third] = [held(), held(), held()];
  const runs = [first, second, third].map(({ work }) => gate.run(work, forEver));
  expect([gate.running, gate.waiting]).toEqual([2, 1]);
  // Two rounds: of the two that run, and of the one that waits and this one.
  await expect(gate.run(passing(0), forEver)).rejects.toMatchObject({ retryAfterMs: 260 });
  for (const { release } of [first, second, third]) release();
  await Promise.all(runs);
  expect([gate.running, gate.waiting, gate.runs]).toEqual([0, 0, 5]);
});
