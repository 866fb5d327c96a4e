import { randomBytes } from "node:crypto";
import { hash as argon2Hash, argon2id, verify } from "argon2";
import { HASH_KINDS, type HashKind } from "./record.ts";

/** The OWASP minimum for argon2id. The secret has 256 random bits: more would only cost more. */
const ARGON2 = { type: argon2id, version: 0x13, memoryCost: 19 * 1024, timeCost: 2, parallelism: 1 } as const;
const SALT_BYTES = 16;

/**
 * A PHC string with its parameters in the order m, t, p, which libargon2 and all who read as it does insist on (PHP, Python,
 * Go). The package of ours writes them sorted by name.
 */
export async function hashSecret(secret: string): Promise<string> {
  const salt = randomBytes(SALT_BYTES);
  const digest = await argon2Hash(secret, { ...ARGON2, salt, raw: true });
  const { version, memoryCost, timeCost, parallelism } = ARGON2;
  const [saltText, digestText] = [salt, digest].map((bytes) => bytes.toString("base64").replaceAll("=", ""));
  return `$argon2id$v=${version}$m=${memoryCost},t=${timeCost},p=${parallelism}$${saltText}$${digestText}`;
}

const PROOFS: Readonly<Record<HashKind, (hash: string, secret: string) => Promise<boolean>>> = {
  argon2id: (hash, secret) => verify(hash, secret),
};
const KINDS = Object.entries(HASH_KINDS) as [HashKind, string][];

/** Whether `hash` was made of `secret`. Costs as much as to make it: behind a gate alone. Rejects where it is of no known kind. */
export async function isHashOf(hash: string, secret: string): Promise<boolean> {
  const [kind] = KINDS.find(([, start]) => hash.startsWith(start)) ?? [];
  if (kind === undefined) throw new Error("a stored hash is of no known kind");
  return PROOFS[kind](hash, secret);
}
