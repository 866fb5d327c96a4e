import { createHash, timingSafeEqual } from "node:crypto";
import { createRemoteJWKSet, errors, importSPKI, type JWTPayload, type JWTVerifyGetKey, jwtVerify } from "jose";
import type { TokenKey } from "../config.ts";
import { KeyError } from "../keys/errors.ts";
import { parseAnyKey } from "../keys/format.ts";
import type { Caller } from "../keys/manage.ts";
import { isUserId } from "../keys/policy.ts";

export interface TokenRules {
  key: TokenKey;
  issuer?: string | undefined;
  audience?: string | undefined;
  adminClaim: { name: string; value: string };
  clock: () => Date;
}

export type VerifyAuth =
  | { kind: "none" }
  | { kind: "token"; tokens: readonly { name: string; sha256: Uint8Array }[] }
  | { kind: "jwt"; audience: string };

export interface Authenticator {
  /** The user behind a management call. Throws UNAUTHENTICATED or API_KEY_NOT_ALLOWED. */
  user(authorization: string | null): Promise<Caller>;
  /** Admits a caller of Verify, or throws UNAUTHENTICATED. */
  service(authorization: string | null): Promise<void>;
}

const CLOCK_TOLERANCE_S = 30;
const MAX_TOKEN_LENGTH = 8_192;
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

export async function createAuthenticator(rules: TokenRules, verifyAuth: VerifyAuth): Promise<Authenticator> {
  const { getKey, algorithms } = await openKey(rules.key);

  async function claims(token: string, audience: string | undefined): Promise<JWTPayload> {
    if (token.length > MAX_TOKEN_LENGTH)
      throw unauthenticated(`The token is longer than ${MAX_TOKEN_LENGTH} characters.`);
    try {
      const { payload } = await jwtVerify(token, getKey, {
        algorithms,
        ...(rules.issuer !== undefined && { issuer: rules.issuer }),
        ...(audience !== undefined && { audience }),
        clockTolerance: CLOCK_TOLERANCE_S,
        requiredClaims: ["exp", "sub"],
        currentDate: rules.clock(),
      });
      return payload;
    } catch (error) {
      throw unauthenticated(whyRefused(error), error);
    }
  }

  return {
    async user(authorization) {
      const token = bearer(authorization);
      // Told by shape and checksum alone: no look-up, so nothing is learned about which keys exist.
      if (parseAnyKey(token) !== undefined) {
        throw new KeyError("API_KEY_NOT_ALLOWED", "API keys can't manage API keys. Send a user token.");
      }
      const payload = await claims(token, rules.audience);
      if (typeof payload.sub !== "string" || !isUserId(payload.sub))
        throw unauthenticated("The token's sub must have 1 to 256 characters.");
      return { userId: payload.sub, admin: holds(payload[rules.adminClaim.name], rules.adminClaim.value) };
    },
    async service(authorization) {
      if (verifyAuth.kind === "none") return;
      const token = bearer(authorization);
      if (verifyAuth.kind === "jwt") {
        await claims(token, verifyAuth.audience);
        return;
      }
      // Digests have one length, and each is compared: neither time nor an early end tells how much of a token was right.
      const digest = createHash("sha256").update(token).digest();
      let known = false;
      for (const { sha256 } of verifyAuth.tokens) known = timingSafeEqual(digest, sha256) || known;
      if (!known) throw unauthenticated("The service token is not known here.");
    },
  };
}

async function openKey(key: TokenKey): Promise<{ getKey: JWTVerifyGetKey; algorithms: string[] }> {
  if (key.kind === "secret") {
    const bytes = new TextEncoder().encode(key.secret);
    return { getKey: async () => bytes, algorithms: ["HS256"] };
  }
  if (key.kind === "jwks")
    return { getKey: createRemoteJWKSet(new URL(key.url), { timeoutDuration: 3_000 }), algorithms: ASYMMETRIC };
  const imported = new Map<string, ReturnType<typeof importSPKI>>();
  const getKey: JWTVerifyGetKey = ({ alg }) => {
    const algorithm = alg ?? "";
    const known = imported.get(algorithm) ?? importSPKI(key.pem, algorithm);
    imported.set(algorithm, known);
    return known;
  };
  return { getKey, algorithms: ASYMMETRIC };
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
  if (error instanceof errors.JWKSTimeout) return "The key set could not be fetched in time. Try again.";
  return "The token is not valid here.";
}

function unauthenticated(message: string, cause?: unknown): KeyError {
  return new KeyError("UNAUTHENTICATED", message, { cause });
}
