import { randomBytes } from "node:crypto";
import { expect, test } from "@jest/globals";
import { createHashGate, type HashGate } from "../../src/keys/hash-gate.ts";
import { createSecretKeeper } from "../../src/keys/secret.ts";

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

const pepper = (id: string) => ({ id, secret: randomBytes(32) });

function counted(): { gate: HashGate; runs: () => number } {
  const gate = createHashGate({ concurrency: 2, queue: 64 });
  let runs = 0;
  return {
    gate: {
      ...gate,
      run: (work, deadlineMs) => {
        runs += 1;
        return gate.run(work, deadlineMs);
      },
    },
    runs: () => runs,
  };
}

test("a secret with a fingerprint under a known pepper is proved or refuted without argon2", async () => {
  const { gate, runs } = counted();
  const keeper = createSecretKeeper([pepper("p1")], gate);
  const record = { id: "i", ...(await keeper.digest("i", "right", forEver)) };
  expect(runs()).toBe(1);
  expect(await keeper.prove(record, "right", forEver)).toEqual({ proven: true });
  expect(await keeper.prove(record, "wrong", forEver)).toEqual({ proven: false });
  expect(runs()).toBe(1);
});

test("after the peppers were lost, argon2 proves the secret and a new fingerprint is given", async () => {
  const lost = createSecretKeeper([pepper("p1")], counted().gate);
  const record = { id: "i", ...(await lost.digest("i", "right", forEver)) };
  const { gate, runs } = counted();
  const keeper = createSecretKeeper([pepper("p2")], gate);
  expect(await keeper.prove(record, "wrong", forEver)).toEqual({ proven: false });
  const { proven, newFingerprint } = await keeper.prove(record, "right", forEver);
  expect({ proven, pepper: newFingerprint?.pepper, runs: runs() }).toEqual({ proven: true, pepper: "p2", runs: 2 });
  expect(await keeper.prove({ ...record, fingerprint: newFingerprint }, "right", forEver)).toEqual({ proven: true });
  expect(runs()).toBe(2);
});

test("a fingerprint under an older pepper of the ring is taken, and renewed under the newest", async () => {
  const [newest, older] = [pepper("p2"), pepper("p1")];
  const record = { id: "i", ...(await createSecretKeeper([older], counted().gate).digest("i", "right", forEver)) };
  const { gate, runs } = counted();
  const { proven, newFingerprint } = await createSecretKeeper([newest, older], gate).prove(record, "right", forEver);
  expect({ proven, pepper: newFingerprint?.pepper, runs: runs() }).toEqual({ proven: true, pepper: "p2", runs: 0 });
});

test("callers with the same secret of one key share one argon2 run", async () => {
  const { gate, runs } = counted();
  const keeper = createSecretKeeper([pepper("p1")], gate);
  const { secretHash } = await keeper.digest("i", "right", forEver);
  const proofs = await Promise.all(
    Array.from({ length: 8 }, () => keeper.prove({ id: "i", secretHash }, "right", forEver)),
  );
  expect({ proven: proofs.every(({ proven }) => proven), runs: runs() }).toEqual({ proven: true, runs: 2 });
});

test("callers with other secrets of one key wait their turn: one argon2 run a key at a time", async () => {
  let [running, most] = [0, 0];
  const gate: HashGate = {
    ...{ running: 0, waiting: 0, runs: 0 },
    run: async (work) => {
      running += 1;
      most = Math.max(most, running);
      return work().finally(() => {
        running -= 1;
      });
    },
  };
  const keeper = createSecretKeeper([pepper("p1")], gate);
  const { secretHash } = await keeper.digest("i", "right", forEver);
  const secrets = ["wrong", "right", "other", "right", "wrong"];
  const proofs = await Promise.all(secrets.map((secret) => keeper.prove({ id: "i", secretHash }, secret, forEver)));
  expect(proofs.map(({ proven }) => proven)).toEqual([false, true, false, true, false]);
  expect(most).toBe(1);
  await Promise.all(["j", "k"].map((id) => keeper.prove({ id, secretHash }, "right", forEver)));
  expect(most).toBe(2);
});

test("the fingerprint is HMAC-SHA-256 of <id>_<secret>", async () => {
  const keeper = createSecretKeeper([{ id: "p", secret: Buffer.alloc(32, 1) }], counted().gate);
  const { fingerprint } = await keeper.digest("id", "secret", forEver);
  const { createHmac } = await import("node:crypto");
  expect(Buffer.from(fingerprint.mac)).toEqual(createHmac("sha256", Buffer.alloc(32, 1)).update("id_secret").digest());
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
