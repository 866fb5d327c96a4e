import { hash, randomBytes } from "node:crypto";
import { checked } from "../errors.ts";
import { checkRequiredScopes } from "../policy.ts";
import type { KeyStore } from "../ports.ts";
import type { Fingerprint } from "../record.ts";
import type { Proof, SecretKeeper } from "../secret.ts";
import { ID_FROM_END, ID_LENGTH, type ParsedKey, parseKey } from "../text.ts";
import type { Found, KeyLookup } from "./lookup.ts";
import { type Entry, stateAt } from "./view.ts";

export type Outcome = "valid" | "malformed" | "not_found" | "revoked" | "expired" | "suspended" | "insufficient_scope";

export interface Verification {
  outcome: Outcome;
  /** Only when the secret was proven. */
  entry: Entry | undefined;
  missingScopes: readonly string[];
  /** The answer reflects every write acknowledged up to this time; Unix milliseconds. */
  asOfMs: number;
  /** When the state was judged; Unix milliseconds. */
  nowMs: number;
}

export interface VerifyInput {
  key: string;
  requiredScopes: readonly string[];
  /** Reflect every write acknowledged before the call, or fail. */
  strong: boolean;
  /** The caller's time limit in milliseconds. */
  timeoutMs: number;
}

interface KeyVerifierParts {
  lookup: KeyLookup;
  store: Pick<KeyStore, "setFingerprint">;
  secrets: SecretKeeper;
  /** The prefixes that are keys of this service. */
  prefixes: readonly string[];
  /** Unix milliseconds. */
  wallMs: () => number;
  /** Called at each valid answer. */
  onUsed: (entry: Entry, nowMs: number) => void;
  /** Called when a proven key's fingerprint could not be renewed; the answer does not depend on it. */
  onRenewalFailed: (error: unknown) => void;
}

/** Answers at once, without a promise, when all that is needed is in memory. */
export type VerifyKey = (input: VerifyInput) => Verification | Promise<Verification>;

/** Fingerprints that may be renewed at once. */
const MAX_RENEWALS = 64;
const RENEWAL_MS = 2_000;
const NONE: readonly string[] = [];

/** Shape and checksum → record → secret → state and expiry → scopes. */
export function createKeyVerifier(parts: KeyVerifierParts): VerifyKey {
  const { lookup, store, secrets, prefixes, wallMs, onUsed, onRenewalFailed } = parts;
  // Keys that were proven are remembered by their digest under a prefix of this process: its memory holds no secret, and
  // no digest that could be compared with one from elsewhere.
  const salt = randomBytes(16).toString("hex");
  const digestOf = (key: string) => hash("sha256", salt + key, "binary");

  let renewing = 0;
  /** Of a list that stays the same from call to call, as a gateway's does, it is not asked again whether it is good. */
  let lastGood: readonly string[] = NONE;

  const judge = (entry: Entry, requiredScopes: readonly string[], asOfMs: number): Verification => {
    const nowMs = wallMs();
    const state = stateAt(entry, nowMs);
    if (state === "revoked" || state === "expired" || state === "suspended")
      return { outcome: state, entry, missingScopes: NONE, asOfMs, nowMs };
    for (const scope of requiredScopes) {
      if (entry.scopes.includes(scope)) continue;
      const missingScopes = requiredScopes.filter((one) => !entry.scopes.includes(one));
      return { outcome: "insufficient_scope", entry, missingScopes, asOfMs, nowMs };
    }
    onUsed(entry, nowMs);
    return { outcome: "valid", entry, missingScopes: NONE, asOfMs, nowMs };
  };

  const answer = (
    input: VerifyInput,
    { entry, asOfMs }: Found,
    parsedBefore?: ParsedKey,
  ): Verification | Promise<Verification> => {
    const { key, requiredScopes, timeoutMs } = input;
    // Whoever presents the key that was proven before needs no other proof. Any other well-formed key with this id is
    // wrong: an id has one secret.
    const digest = digestOf(key);
    if (entry !== undefined && entry.provenDigest === digest) return judge(entry, requiredScopes, asOfMs);
    const parsed = parsedBefore ?? parseKey(key, prefixes);
    if (parsed === undefined) return refusal("malformed", wallMs());
    const { id, secret, prefix } = parsed;
    const isOpen = entry !== undefined && entry.provenDigest === undefined && entry.prefix === prefix;
    const digests = isOpen ? entry.digests : undefined;
    const deadlineMs = performance.now() + timeoutMs;
    const proof = secrets.prove(id, secret, digests, deadlineMs);
    if (!("then" in proof)) return conclude(input, { entry, asOfMs }, proof, digest);
    return proof.then(async (late) => {
      // An argon2 may have waited long: what was true before it is not judged by.
      const found = input.strong ? { entry, asOfMs } : await lookup.find(id, deadlineMs);
      return conclude(input, found, late, digest);
    });
  };

  const conclude = (
    { requiredScopes }: VerifyInput,
    { entry, asOfMs }: Found,
    proof: Proof,
    digest: string,
  ): Verification => {
    if (entry === undefined || !proof.proven) return refusal("not_found", asOfMs);
    if (proof.newFingerprint === undefined || renew(entry, proof.newFingerprint)) {
      entry.provenDigest = digest;
      entry.digests = undefined;
    }
    return judge(entry, requiredScopes, asOfMs);
  };

  // Not waited for: it must not hold up an answer. False when too many are under way; a later use of the key tries again.
  const renew = (entry: Entry, fingerprint: Fingerprint): boolean => {
    if (renewing >= MAX_RENEWALS) return false;
    renewing += 1;
    void store
      .setFingerprint(entry, fingerprint, performance.now() + RENEWAL_MS)
      .catch(onRenewalFailed)
      .finally(() => {
        renewing -= 1;
      });
    return true;
  };

  return (input) => {
    const { key, requiredScopes, strong } = input;
    if (requiredScopes.length > 0 && requiredScopes !== lastGood) {
      checked((violations) => checkRequiredScopes(requiredScopes, violations));
      lastGood = requiredScopes;
    }
    if (!strong) {
      const known = lookup.peek(key.slice(-ID_FROM_END, ID_LENGTH - ID_FROM_END));
      if (known !== undefined) return answer(input, known);
    }
    // Before anything is looked up: garbage costs no read.
    const parsed = parseKey(key, prefixes);
    if (parsed === undefined) return refusal("malformed", wallMs());
    const deadlineMs = performance.now() + input.timeoutMs;
    const finding = strong ? lookup.findStrong(parsed.id, deadlineMs) : lookup.find(parsed.id, deadlineMs);
    return finding.then((found) => answer(input, found, parsed));
  };
}

function refusal(outcome: Outcome, asOfMs: number): Verification {
  return { outcome, entry: undefined, missingScopes: NONE, asOfMs, nowMs: asOfMs };
}
