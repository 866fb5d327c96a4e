import { createHash, hash, randomBytes, timingSafeEqual } from "node:crypto";
import {
  decodeProtectedHeader,
  errors,
  importSPKI,
  type JWTPayload,
  type JWTVerifyGetKey,
  type JWTVerifyOptions,
  jwtVerify,
} from "jose";
import { LRUCache } from "lru-cache";
import type { Peer } from "../fastpath/fast-method.ts";
import type { Caller } from "../keys/caller.ts";
import { KeyError } from "../keys/errors.ts";
import { isUserId } from "../keys/policy.ts";
import { parseAnyKey } from "../keys/text.ts";
import { createKeySet, type KeySet, type KeySetOptions, mayNeedAnotherKey } from "./key-set.ts";

/** User tokens are checked against exactly one of these; undefined: a development secret of the embedded mode. */
export type TokenKey =
  | { kind: "secret"; secret: string }
  | { kind: "publicKey"; pem: string }
  | { kind: "jwks"; url: string };

/** A service token is kept as its SHA-256: neither the configuration nor the process holds the token itself. */
export interface ServiceToken {
  name: string;
  sha256: Uint8Array;
}

export interface TokenRules {
  key: TokenKey;
  issuer?: string | undefined;
  audience?: string | undefined;
  adminClaim: { name: string; value: string };
  clock: () => Date;
  /** Needed where the key is a set: how long it is good, and who hears of it. */
  keySet?: Omit<KeySetOptions, "url" | "onChanged">;
}

export type VerifyAuth =
  | { kind: "none" }
  | { kind: "token"; tokens: readonly ServiceToken[] }
  | { kind: "jwt"; audience: string }
  /** `clients`: names, one of which a certificate must have; empty: any that the CA signed. */
  | { kind: "mtls"; clients: readonly string[] };

export interface Authenticator {
  /** The user behind a management call. Throws UNAUTHENTICATED, API_KEY_NOT_ALLOWED or KEY_SET_UNAVAILABLE. */
  user(authorization: string | null): Promise<Caller>;
  /** Admits a caller of Verify, or throws or rejects as `user` does. No promise: admitted at once. */
  service(authorization: string | null | undefined, peer: Peer | undefined): Promise<void> | undefined;
  /** How old the key set is that tokens are checked with; Infinity: there is none yet; undefined: there is to be none. */
  readonly keySetAgeMs: number | undefined;
  /** Fetches nothing more. */
  stop(): void;
}

const CLOCK_TOLERANCE_S = 30;
const MAX_TOKEN_LENGTH = 8_192;
const MAX_ADMITTED = 1_000;
const ADMITTED_MS = 60_000;
// Pinned by the kind of key, so that no token chooses how it is checked (alg: none; HS256 keyed with a public key).
const ASYMMETRIC = [
  "RS256",
  "RS384",
  "RS512",
  "PS256",
  "PS384",
  "PS512",
  "ES256",
  "ES384",
  "ES512",
  "EdDSA",
  "Ed25519",
];

export function createAuthenticator(rules: TokenRules, verifyAuth: VerifyAuth): Authenticator {
  // Verify's callers send the same header with every call. Admitted ones are remembered by a digest under a prefix of this
  // process, so that its memory holds no token.
  const salt = randomBytes(16).toString("hex");
  const admittedUntilMs = new LRUCache<string, number>({ max: MAX_ADMITTED });
  let forgotten = 0;
  const key = openKey(rules, () => {
    // Whoever proved themselves by a key that is no longer in the set must do so again.
    forgotten += 1;
    admittedUntilMs.clear();
  });
  const remember = (digest: string, untilMs: number) => {
    const goodMs = key.keySet === undefined ? ADMITTED_MS : rules.keySet!.maxAgeMs - key.keySet.ageMs;
    admittedUntilMs.set(digest, Math.min(untilMs, rules.clock().getTime() + Math.min(ADMITTED_MS, goodMs)));
  };

  async function claims(token: string, audience: string | undefined): Promise<JWTPayload> {
    if (token.length > MAX_TOKEN_LENGTH) throw tooLong();
    try {
      return await verified(token, key, {
        algorithms: key.algorithms,
        ...(rules.issuer !== undefined && { issuer: rules.issuer }),
        ...(audience !== undefined && { audience }),
        clockTolerance: CLOCK_TOLERANCE_S,
        requiredClaims: ["exp", "sub"],
        currentDate: rules.clock(),
      });
    } catch (error) {
      if (error instanceof KeyError) throw error;
      throw unauthenticated(whyRefused(error), error);
    }
  }

  return {
    async user(authorization) {
      const token = bearer(authorization);
      // Judged by shape and checksum alone: no look-up, so nothing is learned about which keys exist.
      if (parseAnyKey(token) !== undefined) {
        throw new KeyError("API_KEY_NOT_ALLOWED", "API keys can't manage API keys. Send a user token.");
      }
      const payload = await claims(token, rules.audience);
      // Where no audience is asked of users, a service's token from the same issuer would manage keys in the service's name.
      if (rules.audience === undefined && verifyAuth.kind === "jwt" && holds(payload.aud, verifyAuth.audience))
        throw unauthenticated("The token is for callers of Verify, and no user's.");
      if (typeof payload.sub !== "string" || !isUserId(payload.sub))
        throw unauthenticated(
          "The token's sub must have 1 to 256 characters, no control character among them, and not be blank.",
        );
      return { userId: payload.sub, admin: holds(payload[rules.adminClaim.name], rules.adminClaim.value) };
    },
    service(authorization, peer) {
      if (verifyAuth.kind === "none") return undefined;
      if (verifyAuth.kind === "mtls") return admitPeer(peer, verifyAuth.clients, rules.clock().getTime());
      const header = authorization ?? "";
      if (header.length > MAX_TOKEN_LENGTH) throw tooLong();
      const digest = hash("sha256", salt + header, "binary");
      if ((admittedUntilMs.get(digest) ?? 0) > rules.clock().getTime()) return undefined;
      const token = bearer(header);
      if (verifyAuth.kind === "token") {
        admitServiceToken(token, verifyAuth.tokens);
        remember(digest, Number.POSITIVE_INFINITY);
        return undefined;
      }
      const before = forgotten;
      return claims(token, verifyAuth.audience).then(({ exp = 0 }) => {
        if (forgotten === before) remember(digest, exp * 1_000);
      });
    },
    get keySetAgeMs() {
      return key.keySet?.ageMs;
    },
    stop: () => key.keySet?.stop(),
  };
}

function admitPeer(peer: Peer | undefined, clients: readonly string[], nowMs: number): undefined {
  if (peer === undefined)
    throw unauthenticated("A client certificate is needed, and none that is trusted here was sent.");
  if (!(nowMs < peer.validUntilMs))
    throw unauthenticated("The client certificate has expired. Connect with a new one.");
  if (clients.length > 0 && !peer.names.some((name) => clients.includes(name)))
    throw unauthenticated("The client certificate has none of the names that may ask here.");
}

// Digests have one length, and each is compared: neither time nor an early end tells how much of a token was right.
function admitServiceToken(token: string, tokens: readonly Pick<ServiceToken, "sha256">[]): void {
  const digest = createHash("sha256").update(token).digest();
  let known = false;
  for (const { sha256 } of tokens) known = timingSafeEqual(digest, sha256) || known;
  if (!known) throw unauthenticated("The service token is not known here.");
}

/** The keys that tokens are checked with: one, or a set that others change. */
type OpenKey = { algorithms: string[] } & (
  | { getKey: JWTVerifyGetKey; keySet?: undefined }
  | { getKey?: undefined; keySet: KeySet }
);

function openKey({ key, keySet }: TokenRules, onChanged: () => void): OpenKey {
  if (key.kind === "secret") {
    const bytes = new TextEncoder().encode(key.secret);
    return { getKey: async () => bytes, algorithms: ["HS256"] };
  }
  if (key.kind === "jwks")
    return { keySet: createKeySet({ ...keySet!, url: key.url, onChanged }), algorithms: ASYMMETRIC };
  const imported = new Map<string, ReturnType<typeof importSPKI>>();
  const getKey: JWTVerifyGetKey = ({ alg }) => {
    const algorithm = alg ?? "";
    const known = imported.get(algorithm) ?? importSPKI(key.pem, algorithm);
    imported.set(algorithm, known);
    return known;
  };
  return { getKey, algorithms: ASYMMETRIC };
}

/** A token that no key of the set has signed may be signed with a newer one, which is looked for once. */
async function verified(token: string, { getKey, keySet }: OpenKey, options: JWTVerifyOptions): Promise<JWTPayload> {
  if (getKey !== undefined) return (await jwtVerify(token, getKey, options)).payload;
  const set = await keySet.current();
  try {
    return await verifiedByAny(token, set.getKey, options);
  } catch (error) {
    if (!mayNeedAnotherKey(error)) throw error;
    const newer = await keySet.newer(set).catch((failure: unknown) => {
      throw isDecided(token, error, keySet) ? error : failure;
    });
    if (newer === undefined) throw error;
    return verifiedByAny(token, newer.getKey, options);
  }
}

/** Whether the token is bad whatever keys were added: its key is known, or was taken out. */
function isDecided(token: string, error: unknown, keySet: KeySet): boolean {
  const { kid } = decodeProtectedHeader(token);
  return kid !== undefined && (!(error instanceof errors.JWKSNoMatchingKey) || keySet.wasTakenOut(kid));
}

/** By whichever key of a set fits: a token need not say which (RFC 7515, 4.1.4). */
async function verifiedByAny(token: string, getKey: JWTVerifyGetKey, options: JWTVerifyOptions): Promise<JWTPayload> {
  try {
    return (await jwtVerify(token, getKey, options)).payload;
  } catch (error) {
    if (!(error instanceof errors.JWKSMultipleMatchingKeys)) throw error;
    for await (const key of error) {
      const result = await jwtVerify(token, key, options).catch((refusal: unknown) => {
        if (refusal instanceof errors.JWSSignatureVerificationFailed) return undefined;
        throw refusal;
      });
      if (result !== undefined) return result.payload;
    }
    throw new errors.JWSSignatureVerificationFailed();
  }
}

function tooLong(): KeyError {
  return unauthenticated(`The token is longer than ${MAX_TOKEN_LENGTH} characters.`);
}

function bearer(authorization: string | null): string {
  const match = /^bearer +([^\s]+)$/i.exec(authorization ?? "");
  if (match) return match[1]!;
  throw unauthenticated(
    authorization
      ? "The authorization header must be: Bearer <token>."
      : "No token was sent. Send authorization: Bearer <token>.",
  );
}

function holds(claim: unknown, value: string): boolean {
  return claim === value || (Array.isArray(claim) && claim.includes(value));
}

function whyRefused(error: unknown): string {
  if (error instanceof errors.JWTExpired) return "The token has expired.";
  if (error instanceof errors.JWTClaimValidationFailed)
    return `The token's ${error.claim} claim is missing or not accepted here.`;
  if (error instanceof errors.JOSEAlgNotAllowed)
    return "The token is signed with an algorithm that is not accepted here.";
  return "The token is not valid here.";
}

function unauthenticated(message: string, cause?: unknown): KeyError {
  return new KeyError("UNAUTHENTICATED", message, { cause });
}
