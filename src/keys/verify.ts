import { checked } from "./errors.ts";
import { parseKey } from "./format.ts";
import { type KeyRecord, statusAt } from "./key.ts";
import type { KeyStore } from "./key-store.ts";
import { checkRequiredScopes } from "./policy.ts";
import type { SecretKeeper } from "./secret.ts";

export type Outcome = "valid" | "malformed" | "not_found" | "revoked" | "expired" | "insufficient_scope";

export interface Verification {
  outcome: Outcome;
  /** Only when the secret was proven. */
  record?: KeyRecord;
  missingScopes: string[];
  /** The answer reflects every write acknowledged up to this time. */
  asOf: Date;
}

export interface KeyVerifierParts {
  store: KeyStore;
  secrets: SecretKeeper;
  /** The prefixes that are keys of this service. */
  prefixes: readonly string[];
  clock: () => Date;
  /** Called when a proven key's fingerprint could not be renewed; the answer does not depend on it. */
  onRenewalFailed: (error: unknown) => void;
}

export type VerifyKey = (key: string, requiredScopes: readonly string[], deadlineMs: number) => Promise<Verification>;

/** Shape and checksum → record → secret → state and expiry → scopes. */
export function createKeyVerifier({ store, secrets, prefixes, clock, onRenewalFailed }: KeyVerifierParts): VerifyKey {
  return async (key, requiredScopes, deadlineMs) => {
    checked((violations) => checkRequiredScopes(requiredScopes, violations));

    const asOf = clock();
    const parsed = parseKey(key, prefixes);
    if (parsed === undefined) return { outcome: "malformed", missingScopes: [], asOf };

    const record = await store.findById(parsed.id, deadlineMs);
    if (record === undefined || record.prefix !== parsed.prefix)
      return { outcome: "not_found", missingScopes: [], asOf };

    const { proven, newFingerprint } = await secrets.prove(record, parsed.secret, deadlineMs);
    if (!proven) return { outcome: "not_found", missingScopes: [], asOf };
    if (newFingerprint !== undefined) {
      await store.setFingerprint(record, newFingerprint, deadlineMs).catch(onRenewalFailed);
    }

    const { state } = statusAt(record, clock());
    if (state === "revoked" || state === "expired") return { outcome: state, record, missingScopes: [], asOf };
    const missingScopes = requiredScopes.filter((scope) => !record.scopes.includes(scope));
    return { outcome: missingScopes.length > 0 ? "insufficient_scope" : "valid", record, missingScopes, asOf };
  };
}
