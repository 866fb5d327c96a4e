import { randomBytes } from "node:crypto";
import { beforeEach, expect, jest, test } from "@jest/globals";
import { KeyError } from "../../src/keys/errors.ts";
import { createHashGate, type HashGate } from "../../src/keys/hash-gate.ts";
import type { Fingerprint, KeyRecord } from "../../src/keys/record.ts";
import { createSecretKeeper, type Pepper, type SecretKeeper } from "../../src/keys/secret.ts";
import { formatKey } from "../../src/keys/text.ts";
import { createFreshness } from "../../src/keys/verify/freshness.ts";
import { createLookup } from "../../src/keys/verify/lookup.ts";
import { createKeyVerifier, type VerifyInput, type VerifyKey } from "../../src/keys/verify/verify.ts";
import { createView, type View } from "../../src/keys/verify/view.ts";
import { deferred, recordOf } from "../support/records.ts";

const ID = "AAAAAAAAAAAAAAAA";
const SECRET = "s".repeat(43);
const KEY = formatKey({ prefix: "lk", id: ID, secret: SECRET });
const WRONG = formatKey({ prefix: "lk", id: ID, secret: "w".repeat(43) });
const [newest, older]: [Pepper, Pepper] = [
  { id: "p2", secret: randomBytes(32) },
  { id: "p1", secret: randomBytes(32) },
];
const forEver = Number.POSITIVE_INFINITY;

let digests: { secretHash: string; fingerprint: Fingerprint };
let argon2Runs: number;
let gate: HashGate;
let view: View;
let nowMs: number;
let fresh: boolean;
let record: KeyRecord;
let reads: string[];
let used: string[];
let renewed: Fingerprint[];
/** What each renewal waits for. */
let storing: Promise<void> | undefined;
let proofs: number;
/** Secrets that were refuted without a record to compare them with. */
let decoys: number;
let verify: VerifyKey;

const minted = createSecretKeeper([newest], createHashGate({ concurrency: 1, queue: 1 })).digest(ID, SECRET, forEver);

beforeEach(async () => {
  digests = await minted;
  build([newest, older]);
});

function build(peppers: Pepper[], change?: (keeper: SecretKeeper) => SecretKeeper): void {
  argon2Runs = 0;
  const real = createHashGate({ concurrency: 2, queue: 8 });
  gate = {
    ...real,
    run: (work, deadlineMs) => {
      argon2Runs += 1;
      return real.run(work, deadlineMs);
    },
  };
  view = createView({ maxKeys: 100 });
  view.restart();
  nowMs = 1_000_000;
  fresh = true;
  record = recordOf(ID, 1, { ...digests });
  [reads, used, renewed, proofs, decoys, storing] = [[], [], [], 0, 0, undefined];
  const read = (kind: string) => async (ids: readonly string[]) => {
    reads.push(kind);
    return ids.includes(ID) ? [record] : [];
  };
  const keeper = createSecretKeeper(peppers, gate);
  const secrets: SecretKeeper = {
    ...keeper,
    prove: (...args) => {
      if (args[2] === undefined) decoys += 1;
      else proofs += 1;
      return keeper.prove(...args);
    },
  };
  const freshness = createFreshness({ maxStalenessMs: 0, outageGraceMs: 0, clockMs: () => (fresh ? 0 : 1) });
  freshness.prove({ wallMs: 999_000, monotonicMs: 0 });
  verify = createKeyVerifier({
    lookup: createLookup({
      ...{ view, freshness, readTimeoutMs: 60_000, wallMs: () => nowMs },
      source: {
        readRecent: read("recent"),
        readProven: read("proven"),
        readFromSecondary: read("secondary"),
      },
    }),
    store: {
      setFingerprint: async (_, fingerprint, deadlineMs) => {
        expect(deadlineMs).toBeGreaterThan(performance.now());
        renewed.push(fingerprint);
        await storing;
      },
    },
    secrets: change?.(secrets) ?? secrets,
    prefixes: ["lk", "old"],
    wallMs: () => nowMs,
    onUsed: (entry) => used.push(entry.id),
    onRenewalFailed: () => {},
  });
}

const ask = (key: string, options: Partial<VerifyInput> = {}) =>
  verify({ key, requiredScopes: [], strong: false, timeoutMs: 10_000, ...options });
const outcomeOf = async (key: string, options: Partial<VerifyInput> = {}) => (await ask(key, options)).outcome;
const stored = (fields: Partial<KeyRecord>) => {
  record = { ...record, ...fields, rev: record.rev + 1 };
  view.changed(ID, record.rev);
};

test("a key is read once; from then on it is answered from memory, at once, without a promise and without another proof", async () => {
  expect(await ask(KEY)).toMatchObject({ outcome: "valid", asOfMs: 999_000, entry: { id: ID } });
  const again = ask(KEY);
  expect(again).not.toBeInstanceOf(Promise);
  expect(again).toMatchObject({ outcome: "valid", asOfMs: 999_000, missingScopes: [] });
  expect({ reads, proofs, argon2Runs, used, renewed }).toEqual({
    ...{ reads: ["recent"], proofs: 1, argon2Runs: 0, used: [ID, ID], renewed: [] },
  });
});

test("the wrong secret of a key with a fingerprint never reaches argon2, before the right one was presented and after", async () => {
  expect(await outcomeOf(WRONG)).toBe("not_found");
  expect(await outcomeOf(KEY)).toBe("valid");
  expect(await outcomeOf(WRONG)).toBe("not_found");
  expect(argon2Runs).toBe(0);
});

test("once a key was proven, a wrong secret of it is not compared with the record's", async () => {
  await ask(KEY);
  const before = proofs;
  for (let n = 0; n < 5; n += 1) {
    const wrong = formatKey({ prefix: "lk", id: ID, secret: String(n).repeat(43) });
    expect(await ask(wrong)).toMatchObject({ outcome: "not_found", entry: undefined });
  }
  // A write through this process brings the digests back with the new record.
  const window = view.open();
  window.keep({ ...record, rev: 2 });
  window.close();
  expect(await outcomeOf(WRONG)).toBe("not_found");
  expect({ proofs: proofs - before, reads }).toEqual({ proofs: 0, reads: ["recent"] });
});

test("every refusal of a well-formed key costs one proof, whether there is such an id or not", async () => {
  const unknown = formatKey({ prefix: "lk", id: "U".repeat(16), secret: SECRET });
  const otherPrefix = formatKey({ prefix: "old", id: ID, secret: SECRET });
  const cost = async (key: string) => {
    const before = [proofs, decoys];
    expect(await outcomeOf(key)).toBe("not_found");
    return [proofs - before[0]!, decoys - before[1]!];
  };
  expect(await cost(unknown)).toEqual([0, 1]);
  expect(await cost(unknown)).toEqual([0, 1]);
  expect(await cost(WRONG)).toEqual([1, 0]);
  expect(await cost(otherPrefix)).toEqual([0, 1]);
  await ask(KEY);
  expect(await cost(WRONG)).toEqual([0, 1]);
  expect(argon2Runs).toBe(0);
});

test("neither the key nor its secret is kept in memory", async () => {
  await ask(KEY);
  const entry = view.get(ID)!;
  expect(entry.digests).toBeUndefined();
  expect(entry.provenDigest).toHaveLength(32);
  expect(JSON.stringify(entry)).not.toContain(SECRET);
  build([newest]);
  const first = entry.provenDigest;
  await ask(KEY);
  expect(view.get(ID)!.provenDigest).not.toBe(first);
});

test("garbage, wrong checksums and foreign prefixes are malformed, as of now, and cost no read, strong or not", async () => {
  const garbage = [
    "",
    "x",
    `${KEY.slice(0, -1)}${KEY.endsWith("0") ? "1" : "0"}`,
    ` ${KEY}`,
    `${KEY}\n`,
    formatKey({ prefix: "foreign", id: ID, secret: SECRET }),
    "é".repeat(71),
  ];
  for (const key of garbage) {
    expect(await ask(key)).toMatchObject({ outcome: "malformed", asOfMs: nowMs, entry: undefined });
    expect(await outcomeOf(key, { strong: true })).toBe("malformed");
  }
  expect(reads).toEqual([]);
  await ask(KEY);
  for (const key of garbage) expect(await outcomeOf(key)).toBe("malformed");
});

test("an unknown id is not found, and remembered", async () => {
  const unknown = formatKey({ prefix: "lk", id: "B".repeat(16), secret: SECRET });
  expect([await outcomeOf(unknown), await outcomeOf(unknown)]).toEqual(["not_found", "not_found"]);
  expect(reads).toEqual(["recent"]);
});

test("a key under another of the service's prefixes than its own is not found", async () => {
  const other = formatKey({ prefix: "old", id: ID, secret: SECRET });
  expect(await outcomeOf(other)).toBe("not_found");
  await ask(KEY);
  expect(await outcomeOf(other)).toBe("not_found");
});

test("an expiry and the end of a grace period are crossed in memory, at the millisecond", async () => {
  record = { ...record, expiresAt: new Date(nowMs + 10) };
  expect(await outcomeOf(KEY)).toBe("valid");
  nowMs += 9;
  expect(await outcomeOf(KEY)).toBe("valid");
  nowMs += 1;
  expect(await outcomeOf(KEY)).toBe("expired");
  stored({ expiresAt: undefined, state: "retiring", retiresAt: new Date(nowMs + 10) });
  expect(await outcomeOf(KEY)).toBe("valid");
  nowMs += 10;
  expect(await outcomeOf(KEY)).toBe("revoked");
  expect(reads).toEqual(["recent", "recent"]);
});

test("revoked and expired are told only to whoever proved the secret", async () => {
  stored({ state: "revoked", revokedAt: new Date(0) });
  expect(await ask(WRONG)).toMatchObject({ outcome: "not_found", entry: undefined });
  expect(await ask(KEY)).toMatchObject({ outcome: "revoked", entry: { id: ID } });
  expect(await ask(WRONG)).toMatchObject({ outcome: "not_found", entry: undefined });
  expect(used).toEqual([]);
});

test("missing scopes are named, and are no use of the key; senseless ones are refused before anything is looked up", async () => {
  const scopes = ["read", "write", "delete"];
  expect(await ask(KEY, { requiredScopes: scopes })).toMatchObject({
    ...{ outcome: "insufficient_scope", missingScopes: ["write", "delete"] },
  });
  expect(used).toEqual([]);
  expect(await outcomeOf(KEY, { requiredScopes: ["read"] })).toBe("valid");
  reads.length = 0;
  expect(() => ask(KEY, { requiredScopes: ["NO"] })).toThrow(KeyError);
  expect(reads).toEqual([]);
});

test("a strong call reads although the record is in memory, and is answered by what it read", async () => {
  await ask(KEY);
  record = { ...record, state: "revoked", revokedAt: new Date(0), rev: 2 };
  nowMs += 5;
  expect(await ask(KEY, { strong: true })).toMatchObject({ outcome: "revoked", asOfMs: nowMs });
  expect(await outcomeOf(KEY)).toBe("revoked");
  expect(reads).toEqual(["recent", "proven"]);
});

test("a proven key whose record changed is judged by the new record", async () => {
  await ask(KEY);
  stored({ scopes: ["write"] });
  expect(await outcomeOf(KEY, { requiredScopes: ["read"] })).toBe("insufficient_scope");
});

test("a fingerprint under an older pepper is renewed at the first use, once", async () => {
  digests = await createSecretKeeper([older], createHashGate({ concurrency: 1, queue: 1 })).digest(ID, SECRET, forEver);
  build([newest, older]);
  expect(await outcomeOf(WRONG)).toBe("not_found");
  expect(renewed).toEqual([]);
  expect(await outcomeOf(KEY)).toBe("valid");
  expect(await outcomeOf(KEY)).toBe("valid");
  expect(renewed.map(({ pepper }) => pepper)).toEqual(["p2"]);
  expect(argon2Runs).toBe(0);
  const current = createSecretKeeper([newest], gate);
  expect(current.prove(ID, SECRET, { ...digests, fingerprint: renewed[0] }, forEver)).toEqual({ proven: true });
});

test("after all peppers were lost, one argon2 proves the key and gives it a new fingerprint", async () => {
  build([{ id: "p9", secret: randomBytes(32) }]);
  expect(await Promise.all([outcomeOf(KEY), outcomeOf(KEY)])).toEqual(["valid", "valid"]);
  expect(await outcomeOf(KEY)).toBe("valid");
  expect(argon2Runs).toBe(1);
  expect(renewed[0]!.pepper).toBe("p9");
});

/** Of the right key, when `meanwhile` happens while an argon2 runs for it. */
async function outcomeOfSlow(meanwhile: () => void): Promise<string> {
  const slow = deferred<boolean>();
  const started = jest.fn();
  build([newest], (keeper) => ({
    ...keeper,
    prove: () => {
      started();
      return slow.promise.then((proven) => ({ proven }));
    },
  }));
  const outcome = outcomeOf(KEY);
  while (started.mock.calls.length === 0) await new Promise(setImmediate);
  meanwhile();
  slow.resolve(true);
  return outcome;
}

test("a revocation seen while an argon2 ran decides", async () => {
  const outcome = await outcomeOfSlow(() => stored({ state: "revoked", revokedAt: new Date(0) }));
  expect(outcome).toBe("revoked");
});

test("a key whose record was removed while an argon2 ran is not found", async () => {
  const outcome = await outcomeOfSlow(() => {
    record = { ...record, id: "gone".repeat(4) };
    view.changed(ID, Number.POSITIVE_INFINITY);
  });
  expect(outcome).toBe("not_found");
});

test("64 fingerprints are renewed at once; a key that comes then is answered, and renewed at a later use", async () => {
  const written = deferred<void>();
  build([newest], (keeper) => ({
    ...keeper,
    prove: (_id, _secret, digests) =>
      digests === undefined
        ? { proven: false }
        : { proven: true, newFingerprint: { pepper: "p2", mac: Buffer.alloc(32) } },
  }));
  storing = written.promise;
  const ids = Array.from({ length: 66 }, (_, index) => String(index).padStart(16, "0"));
  const use = (id: string) => outcomeOf(formatKey({ prefix: "lk", id, secret: SECRET }));
  const window = view.open();
  for (const id of ids) window.keep(recordOf(id, 1, { ...digests }));
  window.close();
  for (const id of ids) expect(await use(id)).toBe("valid");
  expect(renewed).toHaveLength(64);
  written.resolve();
  await new Promise(setImmediate);
  for (const id of ids) expect(await use(id)).toBe("valid");
  expect(renewed).toHaveLength(66);
});

test("an outage is an error, never a bad key", async () => {
  fresh = false;
  build([newest]);
  fresh = false;
  const down = createKeyVerifier({
    lookup: {
      peek: () => undefined,
      find: () => Promise.reject(new KeyError("DB_UNAVAILABLE", "away")),
      findStrong: () => Promise.reject(new KeyError("DB_UNAVAILABLE", "away")),
      outage: true,
    },
    store: { setFingerprint: async () => {} },
    secrets: createSecretKeeper([newest], gate),
    ...{ prefixes: ["lk"], wallMs: () => nowMs, onUsed: () => {}, onRenewalFailed: () => {} },
  });
  const input = { key: KEY, requiredScopes: [], timeoutMs: 1_000 };
  await expect(down({ ...input, strong: false })).rejects.toMatchObject({ reason: "DB_UNAVAILABLE" });
  await expect(down({ ...input, strong: true })).rejects.toMatchObject({ reason: "DB_UNAVAILABLE" });
});

test("a view that is not fresh is read through, for a proven key too", async () => {
  await ask(KEY);
  fresh = false;
  record = { ...record, state: "revoked", revokedAt: new Date(0), rev: 2 };
  expect(await outcomeOf(KEY)).toBe("revoked");
  expect(reads).toEqual(["recent", "proven"]);
});
