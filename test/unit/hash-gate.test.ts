import { createHmac, randomBytes } from "node:crypto";
import { expect, test } from "@jest/globals";
import { createHashGate, type HashGate } from "../../src/keys/hash-gate.ts";
import { createSecretKeeper } from "../../src/keys/secret.ts";

const forEver = Number.POSITIVE_INFINITY;
const ID = "i".repeat(16);
const [RIGHT, WRONG, OTHER] = ["r", "w", "o"].map((letter) => letter.repeat(43)) as [string, string, string];
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
    retryAfterMs: expect.any(Number),
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
  const digests = await keeper.digest(ID, RIGHT, forEver);
  expect(runs()).toBe(1);
  expect(await keeper.prove(ID, RIGHT, digests, forEver)).toEqual({ proven: true });
  expect(await keeper.prove(ID, WRONG, digests, forEver)).toEqual({ proven: false });
  expect(runs()).toBe(1);
});

test("after the peppers were lost, argon2 proves the secret and a new fingerprint is given", async () => {
  const lost = createSecretKeeper([pepper("p1")], counted().gate);
  const digests = await lost.digest(ID, RIGHT, forEver);
  const { gate, runs } = counted();
  const keeper = createSecretKeeper([pepper("p2")], gate);
  expect(await keeper.prove(ID, WRONG, digests, forEver)).toEqual({ proven: false });
  const { proven, newFingerprint } = await keeper.prove(ID, RIGHT, digests, forEver);
  expect({ proven, pepper: newFingerprint?.pepper, runs: runs() }).toEqual({ proven: true, pepper: "p2", runs: 2 });
  expect(await keeper.prove(ID, RIGHT, { ...digests, fingerprint: newFingerprint }, forEver)).toEqual({ proven: true });
  expect(runs()).toBe(2);
});

test("a fingerprint under an older pepper of the ring is taken, and renewed under the newest", async () => {
  const [newest, older] = [pepper("p2"), pepper("p1")];
  const digests = await createSecretKeeper([older], counted().gate).digest(ID, RIGHT, forEver);
  const { gate, runs } = counted();
  const { proven, newFingerprint } = await createSecretKeeper([newest, older], gate).prove(ID, RIGHT, digests, forEver);
  expect({ proven, pepper: newFingerprint?.pepper, runs: runs() }).toEqual({ proven: true, pepper: "p2", runs: 0 });
});

test("callers with the same secret of one key share one argon2 run", async () => {
  const { gate, runs } = counted();
  const keeper = createSecretKeeper([pepper("p1")], gate);
  const { secretHash } = await keeper.digest(ID, RIGHT, forEver);
  const proofs = await Promise.all(Array.from({ length: 8 }, () => keeper.prove(ID, RIGHT, { secretHash }, forEver)));
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
  const { secretHash } = await keeper.digest(ID, RIGHT, forEver);
  const secrets = [WRONG, RIGHT, OTHER, RIGHT, WRONG];
  const proofs = await Promise.all(secrets.map((secret) => keeper.prove(ID, secret, { secretHash }, forEver)));
  expect(proofs.map(({ proven }) => proven)).toEqual([false, true, false, true, false]);
  expect(most).toBe(1);
  await Promise.all(["j", "k"].map((id) => keeper.prove(id.repeat(16), RIGHT, { secretHash }, forEver)));
  expect(most).toBe(2);
});

test("without digests no secret is the right one, and no argon2 runs", async () => {
  const { gate, runs } = counted();
  const keeper = createSecretKeeper([pepper("p1")], gate);
  expect(keeper.prove(ID, RIGHT, undefined, forEver)).toEqual({ proven: false });
  expect(runs()).toBe(0);
});

test.each([32, 63, 64, 65, 200])(
  "the fingerprint under a pepper of %i bytes is HMAC-SHA-256 of <id>_<secret>",
  async (size) => {
    const secret = randomBytes(size);
    const keeper = createSecretKeeper([{ id: "p", secret }], counted().gate);
    for (const text of [RIGHT, WRONG, RIGHT]) {
      const { fingerprint } = await keeper.digest(ID, text, forEver);
      expect(fingerprint.pepper).toBe("p");
      expect(Buffer.from(fingerprint.mac)).toEqual(createHmac("sha256", secret).update(`${ID}_${text}`).digest());
    }
  },
);
