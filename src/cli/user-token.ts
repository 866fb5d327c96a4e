import { createPrivateKey, createPublicKey, type KeyObject } from "node:crypto";
import { readFileSync } from "node:fs";
import { isUserId } from "../keys/policy.ts";
import { StartupError } from "../observe/startup-error.ts";
import type { Config } from "../service/config.ts";

/** The key of a user token: a secret (HS256), or a private key and its id in a key set, if it has one. */
export type TokenSigner = { secret: string } | { privateKey: KeyObject; keyId: string | undefined };

interface UserClaims {
  user: string;
  admin: boolean;
  ttlS: number;
  now: Date;
}

type TokenRules = Pick<Config, "tokenIssuer" | "tokenAudience" | "adminClaim">;

/** A user token with all that a service of this configuration asks of one. */
export async function mintUserToken(
  { tokenIssuer, tokenAudience, adminClaim }: TokenRules,
  signer: TokenSigner,
  { user, admin, ttlS, now }: UserClaims,
): Promise<string> {
  if (!isUserId(user)) throw new StartupError("A user's id must have 1 to 256 characters.");
  const issuedAt = Math.floor(now.getTime() / 1_000);
  const claims = {
    ...(admin && { [adminClaim.name]: adminClaim.value }),
    ...{ sub: user, iat: issuedAt, exp: issuedAt + ttlS },
    ...(tokenIssuer !== undefined && { iss: tokenIssuer }),
    ...(tokenAudience !== undefined && { aud: tokenAudience }),
  };
  // It may be one of the claims that every token has.
  if (admin && (claims as Record<string, unknown>)[adminClaim.name] !== adminClaim.value)
    throw new StartupError(
      `LATCHKEY_ADMIN_CLAIM is ${adminClaim.name}=${adminClaim.value}: no token for ${user} has that.`,
    );
  // Loaded when it is needed: most commands sign nothing.
  const { SignJWT } = await import("jose");
  const token = new SignJWT(claims);
  if ("secret" in signer)
    return token.setProtectedHeader({ alg: "HS256", typ: "JWT" }).sign(new TextEncoder().encode(signer.secret));
  const { privateKey, keyId } = signer;
  const header = { alg: algorithmOf(privateKey), typ: "JWT", ...(keyId !== undefined && { kid: keyId }) };
  return token.setProtectedHeader(header).sign(privateKey);
}

/** Reads a private key, PEM or JWK. `publicKey`: what tokens will be checked with, where that is known. */
export function readSigner(file: string, publicKey: string | undefined): TokenSigner {
  const { privateKey, keyId } = readPrivateKey(file);
  algorithmOf(privateKey);
  const isOther = publicKey !== undefined && !createPublicKey(privateKey).equals(createPublicKey(publicKey));
  if (isOther) throw new StartupError(`The key in ${file} is not the private one of LATCHKEY_JWT_PUBLIC_KEY.`);
  return { privateKey, keyId };
}

function readPrivateKey(file: string): { privateKey: KeyObject; keyId: string | undefined } {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new StartupError(`The key file ${file} can't be read (${(error as NodeJS.ErrnoException).code}).`);
  }
  try {
    if (!text.trimStart().startsWith("{")) return { privateKey: createPrivateKey(text), keyId: undefined };
    const { kid, ...key } = JSON.parse(text);
    return { privateKey: createPrivateKey({ key, format: "jwk" }), keyId: typeof kid === "string" ? kid : undefined };
  } catch {
    // The error may quote the key.
    throw new StartupError(`${file} holds no private key: it must be PEM without a passphrase, or a JWK.`);
  }
}

const CURVES: Record<string, string> = { prime256v1: "ES256", secp384r1: "ES384", secp521r1: "ES512" };

function algorithmOf({ asymmetricKeyType: type, asymmetricKeyDetails: details }: KeyObject): string {
  const algorithm =
    type === "rsa" ? "RS256" : type === "ed25519" ? "EdDSA" : CURVES[type === "ec" ? (details?.namedCurve ?? "") : ""];
  if (algorithm !== undefined) return algorithm;
  throw new StartupError(
    `A key of the type ${details?.namedCurve ?? type} signs no user token: RSA, P-256, P-384, P-521 or Ed25519 do.`,
  );
}
