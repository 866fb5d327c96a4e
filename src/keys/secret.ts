import { createHash, hash, timingSafeEqual } from "node:crypto";
import type { HashGate } from "./hash-gate.ts";
import { hashSecret, isHashOf } from "./hashes.ts";
import type { Fingerprint, KeyRecord } from "./record.ts";
import { ID_LENGTH, SECRET_LENGTH } from "./text.ts";

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

export type Digests = Pick<KeyRecord, "secretHash" | "fingerprint">;

export interface SecretKeeper {
  /** The two digests of a new secret. Costs one argon2. */
  digest(
    id: string,
    secret: string,
    deadlineMs: number,
  ): Promise<Pick<KeyRecord, "secretHash"> & { fingerprint: Fingerprint }>;
  /**
   * Whether `secret` is that of the key with this id. At once by the fingerprint; only where there is none under a known
   * pepper, it costs an argon2. Without digests it is not, and takes as long as to refute one by its fingerprint: the clock
   * must not tell which ids exist.
   */
  prove(id: string, secret: string, digests: Digests | undefined, deadlineMs: number): Proof | Promise<Proof>;
}

/** `peppers`: newest first, at least one. New fingerprints are made under the first. */
export function createSecretKeeper(peppers: readonly Pepper[], gate: HashGate): SecretKeeper {
  const macs = new Map(peppers.map((pepper) => [pepper.id, createMac(pepper.secret, ID_LENGTH + 1 + SECRET_LENGTH)]));
  const current = peppers[0]!.id;
  const decoy: Digests = { secretHash: "", fingerprint: { pepper: current, mac: Buffer.alloc(MAC_BYTES) } };
  /** The argon2 run under way for a key id. */
  const underWay = new Map<string, { secretDigest: string; result: Promise<boolean> }>();

  const fingerprint = (id: string, secret: string): Fingerprint => {
    const mac = Buffer.alloc(MAC_BYTES);
    macs.get(current)!(`${id}_${secret}`, mac);
    return { pepper: current, mac };
  };

  const computed = Buffer.alloc(MAC_BYTES);
  const isMac = (mac: Mac, id: string, secret: string, expected: Uint8Array): boolean => {
    mac(`${id}_${secret}`, computed);
    return expected.length === MAC_BYTES && timingSafeEqual(computed, expected);
  };

  // One run a key at a time: callers with the same secret share it, others wait their turn, so that a flood on one
  // key can't fill the gate.
  async function slowProof(id: string, secret: string, secretHash: string, deadlineMs: number): Promise<boolean> {
    const secretDigest = createHash("sha256").update(secret).digest("base64");
    for (let other = underWay.get(id); other !== undefined; other = underWay.get(id)) {
      if (other.secretDigest === secretDigest) return other.result;
      await other.result.catch(() => undefined);
    }
    const result = gate.run(() => isHashOf(secretHash, secret), deadlineMs);
    underWay.set(id, { secretDigest, result });
    try {
      return await result;
    } finally {
      underWay.delete(id);
    }
  }

  return {
    async digest(id, secret, deadlineMs) {
      const secretHash = await gate.run(() => hashSecret(secret), deadlineMs);
      return { secretHash, fingerprint: fingerprint(id, secret) };
    },
    prove(id, secret, digests, deadlineMs) {
      const { secretHash, fingerprint: known } = digests ?? decoy;
      const mac = known && macs.get(known.pepper);
      if (known === undefined || mac === undefined) {
        return slowProof(id, secret, secretHash, deadlineMs).then((proven) => renewed(id, secret, proven));
      }
      const proven = isMac(mac, id, secret, known.mac) && digests !== undefined;
      return known.pepper === current ? { proven } : renewed(id, secret, proven);
    },
  };

  function renewed(id: string, secret: string, proven: boolean): Proof {
    return proven ? { proven, newFingerprint: fingerprint(id, secret) } : { proven };
  }
}

const MAC_BYTES = 32;
const BLOCK_BYTES = 64;

/** Writes the HMAC of an ASCII text into `target`. */
type Mac = (text: string, target: Buffer) => void;

/**
 * HMAC-SHA-256 (RFC 2104) of texts of `length` characters. Node's own takes three times as long, most of it for an object a
 * call, and shows by that which secrets it was asked to refute.
 */
function createMac(key: Uint8Array, length: number): Mac {
  const block = Buffer.alloc(BLOCK_BYTES);
  block.set(key.length > BLOCK_BYTES ? createHash("sha256").update(key).digest() : key);
  const inner = Buffer.alloc(BLOCK_BYTES + length);
  const outer = Buffer.alloc(BLOCK_BYTES + MAC_BYTES);
  for (const [index, byte] of block.entries()) {
    inner[index] = byte ^ 0x36;
    outer[index] = byte ^ 0x5c;
  }
  return (text, target) => {
    if (text.length !== length) throw new Error(`a text of ${text.length} characters, not ${length}`);
    inner.write(text, BLOCK_BYTES, "latin1");
    outer.write(hash("sha256", inner, "binary"), BLOCK_BYTES, "latin1");
    // No secret is kept beyond the call.
    inner.fill(0, BLOCK_BYTES);
    target.write(hash("sha256", outer, "binary"), "latin1");
  };
}
