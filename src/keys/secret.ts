import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { hash as argon2Hash, argon2id, verify as argon2Verify } from "argon2";
import type { HashGate } from "./hash-gate.ts";
import type { Fingerprint, KeyRecord } from "./key.ts";

export interface Pepper {
  id: string;
  /** At least 32 bytes. */
  secret: Uint8Array;
}

export interface Proof {
  proven: boolean;
  /** Set when the secret was proven and the record has no fingerprint under the current pepper. */
  newFingerprint?: Fingerprint;
}

export interface SecretKeeper {
  /** The two digests of a new secret. Costs one argon2. */
  digest(
    id: string,
    secret: string,
    deadlineMs: number,
  ): Promise<Pick<KeyRecord, "secretHash"> & { fingerprint: Fingerprint }>;
  /**
   * Whether `secret` belongs to `record`. At once by the fingerprint; only where there is none under a known pepper, it
   * costs an argon2.
   */
  prove(
    record: Pick<KeyRecord, "id" | "secretHash" | "fingerprint">,
    secret: string,
    deadlineMs: number,
  ): Proof | Promise<Proof>;
}

/** The OWASP minimum for argon2id. The secret has 256 random bits: more would only cost more. */
const ARGON2 = { type: argon2id, memoryCost: 19 * 1024, timeCost: 2, parallelism: 1 } as const;

/** `peppers`: newest first, at least one. New fingerprints are made under the first. */
export function createSecretKeeper(peppers: readonly Pepper[], gate: HashGate): SecretKeeper {
  const current = peppers[0]!;
  const byId = new Map(peppers.map((pepper) => [pepper.id, pepper]));
  /** The argon2 run under way for a key id. */
  const underWay = new Map<string, { secretDigest: string; result: Promise<boolean> }>();

  const fingerprint = (pepper: Pepper, id: string, secret: string): Fingerprint => ({
    pepper: pepper.id,
    mac: createHmac("sha256", pepper.secret).update(`${id}_${secret}`, "ascii").digest(),
  });

  // One run a key at a time: callers with the same secret share it, others wait their turn, so that a flood on one
  // key can't fill the gate.
  async function slowProof(
    record: Pick<KeyRecord, "id" | "secretHash">,
    secret: string,
    deadlineMs: number,
  ): Promise<boolean> {
    const secretDigest = createHash("sha256").update(secret).digest("base64");
    for (let other = underWay.get(record.id); other !== undefined; other = underWay.get(record.id)) {
      if (other.secretDigest === secretDigest) return other.result;
      await other.result.catch(() => undefined);
    }
    const result = gate.run(() => argon2Verify(record.secretHash, secret), deadlineMs);
    underWay.set(record.id, { secretDigest, result });
    try {
      return await result;
    } finally {
      underWay.delete(record.id);
    }
  }

  return {
    async digest(id, secret, deadlineMs) {
      const secretHash = await gate.run(() => argon2Hash(secret, ARGON2), deadlineMs);
      return { secretHash, fingerprint: fingerprint(current, id, secret) };
    },
    prove(record, secret, deadlineMs) {
      const known = record.fingerprint && byId.get(record.fingerprint.pepper);
      if (record.fingerprint === undefined || known === undefined) {
        return slowProof(record, secret, deadlineMs).then((proven) => renewed(record.id, secret, proven));
      }
      const { mac } = fingerprint(known, record.id, secret);
      const proven = mac.length === record.fingerprint.mac.length && timingSafeEqual(mac, record.fingerprint.mac);
      return known === current ? { proven } : renewed(record.id, secret, proven);
    },
  };

  function renewed(id: string, secret: string, proven: boolean): Proof {
    return proven ? { proven, newFingerprint: fingerprint(current, id, secret) } : { proven };
  }
}
