import { createHmac, randomBytes } from "node:crypto";
import { beforeEach, expect, test } from "@jest/globals";
import { verify as argon2Verify } from "argon2";
import { createHashGate, type HashGate } from "../../src/keys/hash-gate.ts";
import type { Fingerprint } from "../../src/keys/record.ts";
import { createSecretKeeper } from "../../src/keys/secret.ts";
import { deferred } from "../support/records.ts";

const DEADLINE = Number.POSITIVE_INFINITY;
const ID = "i".repeat(16);
const [RIGHT, WRONG, OTHER] = ["r", "w", "o"].map((letter) => letter.repeat(43)) as [string, string, string];
const pepper = (id: string) => ({ id, secret: Buffer.alloc(32, id) });
const [newest, older, gone] = [pepper("p3"), pepper("p2"), pepper("p1")];
const real = createHashGate({ concurrency: 2, queue: 8 });
const macOf = ({ secret }: { secret: Uint8Array }, text: string) => createHmac("sha256", secret).update(text).digest();
const minted = createSecretKeeper([gone], real).digest(ID, RIGHT, DEADLINE);

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
const recordWith = async (fingerprint?: Fingerprint) => ({ ...(await minted), fingerprint });

test("a secret's digests are argon2id at OWASP's minimum, and a MAC of id and secret under the newest pepper", async () => {
  const { secretHash, fingerprint } = await keeper().digest(ID, RIGHT, DEADLINE);
  // To the letter: readers in Go scan for "m=%d,t=%d,p=%d", libargon2 for the like, and both for base64 without padding.
  expect(secretHash).toMatch(/^\$argon2id\$v=19\$m=19456,t=2,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/);
  expect(await argon2Verify(secretHash, RIGHT)).toBe(true);
  expect(fingerprint).toEqual({ pepper: "p3", mac: macOf(newest, `${ID}_${RIGHT}`) });
});

test("under a known pepper the MAC alone decides, at once; under an older one it is renewed if right", async () => {
  const current = await recordWith({ pepper: "p3", mac: macOf(newest, `${ID}_${RIGHT}`) });
  expect(keeper().prove(ID, RIGHT, current, DEADLINE)).toEqual({ proven: true });
  expect(keeper().prove(ID, WRONG, current, DEADLINE)).toEqual({ proven: false });
  const old = await recordWith({ pepper: "p2", mac: macOf(older, `${ID}_${RIGHT}`) });
  const renewed = { proven: true, newFingerprint: { pepper: "p3", mac: macOf(newest, `${ID}_${RIGHT}`) } };
  expect(keeper().prove(ID, RIGHT, old, DEADLINE)).toEqual(renewed);
  expect(keeper().prove(ID, WRONG, old, DEADLINE)).toEqual({ proven: false });
  const cut = await recordWith({ pepper: "p3", mac: macOf(newest, `${ID}_${RIGHT}`).subarray(1) });
  expect(keeper().prove(ID, RIGHT, cut, DEADLINE)).toEqual({ proven: false });
  expect(runs).toBe(0);
});

test("without a fingerprint, or under a pepper that is gone, argon2 decides, and a right secret gets a fingerprint", async () => {
  for (const record of [await recordWith(), await recordWith((await minted).fingerprint)]) {
    expect(await keeper().prove(ID, RIGHT, record, DEADLINE)).toEqual({
      ...{ proven: true, newFingerprint: { pepper: "p3", mac: macOf(newest, `${ID}_${RIGHT}`) } },
    });
    expect(await keeper().prove(ID, WRONG, record, DEADLINE)).toEqual({ proven: false });
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
  const calls = [RIGHT, RIGHT, WRONG, WRONG, OTHER].map((secret) => prove(ID, secret, record, DEADLINE));
  calls.push(prove("j".repeat(16), RIGHT, record, DEADLINE));
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
  const refused = expect(prove(ID, WRONG, record, DEADLINE)).rejects.toThrow("full");
  const next = prove(ID, RIGHT, record, DEADLINE);
  refuse.reject(new Error("full"));
  await refused;
  expect(await next).toMatchObject({ proven: true });
  expect(await prove(ID, WRONG, record, DEADLINE)).toEqual({ proven: false });
});

test("without digests no secret is the right one, and no argon2 runs", async () => {
  expect(keeper().prove(ID, RIGHT, undefined, DEADLINE)).toEqual({ proven: false });
  expect(runs).toBe(0);
});

test.each([32, 63, 64, 65, 200])(
  "the fingerprint under a pepper of %i bytes is HMAC-SHA-256 of <id>_<secret>",
  async (size) => {
    const secret = randomBytes(size);
    const keeper = createSecretKeeper([{ id: "p", secret }], gate);
    for (const text of [RIGHT, WRONG, RIGHT]) {
      const { fingerprint } = await keeper.digest(ID, text, DEADLINE);
      expect(fingerprint.pepper).toBe("p");
      expect(Buffer.from(fingerprint.mac)).toEqual(createHmac("sha256", secret).update(`${ID}_${text}`).digest());
    }
  },
);
