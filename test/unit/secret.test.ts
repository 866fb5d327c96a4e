import { createHmac } from "node:crypto";
import { beforeEach, expect, test } from "@jest/globals";
import { verify as argon2Verify } from "argon2";
import { createHashGate, type HashGate } from "../../src/keys/hash-gate.ts";
import type { Fingerprint } from "../../src/keys/key.ts";
import { createSecretKeeper } from "../../src/keys/secret.ts";
import { deferred } from "../support/records.ts";

const DEADLINE = Number.POSITIVE_INFINITY;
const pepper = (id: string) => ({ id, secret: Buffer.alloc(32, id) });
const [newest, older, gone] = [pepper("p3"), pepper("p2"), pepper("p1")];
const real = createHashGate({ concurrency: 2, queue: 8 });
const macOf = ({ secret }: { secret: Uint8Array }, text: string) => createHmac("sha256", secret).update(text).digest();
const minted = createSecretKeeper([gone], real).digest("id", "right", DEADLINE);

let runs: number;
let gate: HashGate;
beforeEach(() => {
  runs = 0;
  gate = {
    ...real,
    run: (work, deadlineMs) => {
      runs += 1;
      return real.run(work, deadlineMs);
    },
  };
});
const keeper = () => createSecretKeeper([newest, older], gate);
const recordWith = async (fingerprint?: Fingerprint) => ({ ...(await minted), id: "id", fingerprint });

test("a secret's digests are argon2id at OWASP's minimum, and a MAC of id and secret under the newest pepper", async () => {
  const { secretHash, fingerprint } = await keeper().digest("id", "right", DEADLINE);
  expect(secretHash).toMatch(/^\$argon2id\$v=19\$m=19456,t=2,p=1\$/);
  expect(await argon2Verify(secretHash, "right")).toBe(true);
  expect(fingerprint).toEqual({ pepper: "p3", mac: macOf(newest, "id_right") });
});

test("under a known pepper the MAC alone decides, at once; under an older one it is renewed if right", async () => {
  const current = await recordWith({ pepper: "p3", mac: macOf(newest, "id_right") });
  expect(keeper().prove(current, "right", DEADLINE)).toEqual({ proven: true });
  expect(keeper().prove(current, "wrong", DEADLINE)).toEqual({ proven: false });
  const old = await recordWith({ pepper: "p2", mac: macOf(older, "id_right") });
  const renewed = { proven: true, newFingerprint: { pepper: "p3", mac: macOf(newest, "id_right") } };
  expect(keeper().prove(old, "right", DEADLINE)).toEqual(renewed);
  expect(keeper().prove(old, "wrong", DEADLINE)).toEqual({ proven: false });
  const cut = await recordWith({ pepper: "p3", mac: macOf(newest, "id_right").subarray(1) });
  expect(keeper().prove(cut, "right", DEADLINE)).toEqual({ proven: false });
  expect(runs).toBe(0);
});

test("without a fingerprint, or under a pepper that is gone, argon2 decides, and a right secret gets a fingerprint", async () => {
  for (const record of [await recordWith(), await recordWith((await minted).fingerprint)]) {
    expect(await keeper().prove(record, "right", DEADLINE)).toEqual({
      ...{ proven: true, newFingerprint: { pepper: "p3", mac: macOf(newest, "id_right") } },
    });
    expect(await keeper().prove(record, "wrong", DEADLINE)).toEqual({ proven: false });
  }
  expect(runs).toBe(4);
});

test("callers with one secret share a run; others of that key wait their turn, and those of another key don't", async () => {
  const [record, held] = [await recordWith(), deferred<void>()];
  gate = {
    ...real,
    run: async (work) => {
      runs += 1;
      await held.promise;
      return work();
    },
  };
  const { prove } = keeper();
  const calls = ["right", "right", "wrong", "wrong", "other"].map((secret) => prove(record, secret, DEADLINE));
  calls.push(prove({ ...record, id: "id2" }, "right", DEADLINE));
  expect(runs).toBe(2);
  held.resolve();
  const proofs = await Promise.all(calls);
  expect(proofs.map(({ proven }) => proven)).toEqual([true, true, false, false, false, true]);
  expect(runs).toBe(4);
});

test("a run that was refused holds nobody up, nor is it kept", async () => {
  const record = await recordWith();
  const refuse = deferred<never>();
  gate = {
    ...real,
    run: (work, deadlineMs) => {
      runs += 1;
      return runs === 1 ? refuse.promise : real.run(work, deadlineMs);
    },
  };
  const { prove } = keeper();
  const refused = expect(prove(record, "wrong", DEADLINE)).rejects.toThrow("full");
  const next = prove(record, "right", DEADLINE);
  refuse.reject(new Error("full"));
  await refused;
  expect(await next).toMatchObject({ proven: true });
  expect(await prove(record, "wrong", DEADLINE)).toEqual({ proven: false });
});
