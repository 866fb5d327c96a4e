import { createHash, randomBytes } from "node:crypto";
import { StartupError } from "../observe/startup-error.ts";
import { type Config, readConfig } from "../service/config.ts";
import { SERVICE_NAME } from "../service/setting-types.ts";
import { print } from "./output.ts";
import { devSecret } from "./session.ts";
import { mintUserToken, readSigner, type TokenSigner } from "./user-token.ts";

interface TokenOptions {
  user?: string;
  admin?: boolean;
  /** In milliseconds. */
  ttl?: number;
  /** A file with a private key. */
  key?: string;
  service?: string;
  json?: boolean;
}

const DEVELOPMENT_TTL_MS = 86_400_000;
/** Of tokens that a real service takes. */
const TTL_MS = 900_000;
const MAX_TTL_MS = 3_600_000;

export async function token(options: TokenOptions): Promise<void> {
  const { user, service, json } = options;
  if (service !== undefined) return serviceToken(service, json);
  if (!user) throw new StartupError("Say for whom: latchkey token --user alice");
  const made = await userToken(user, options);
  print(json ? JSON.stringify({ token: made }) : made);
}

function serviceToken(service: string, json: boolean | undefined): void {
  if (!SERVICE_NAME.test(service))
    throw new StartupError("A service's name must have 1 to 64 of the characters 0-9 A-Z a-z . _ -");
  const made = randomBytes(32).toString("base64url");
  const entry = `${service}:sha256:${createHash("sha256").update(made).digest("hex")}`;
  print(
    json
      ? JSON.stringify({ token: made, entry })
      : `token, for the caller:              ${made}\nentry, for LATCHKEY_SERVICE_TOKENS: ${entry}`,
  );
}

async function userToken(user: string, { admin = false, ttl, key }: TokenOptions): Promise<string> {
  const config = readConfig();
  const { signer, isDevelopment } = signerOf(config, key);
  if (ttl !== undefined && ttl < 1_000) throw new StartupError("--ttl must be at least 1s.");
  if (!isDevelopment && ttl !== undefined && ttl > MAX_TTL_MS)
    throw new StartupError(
      "--ttl must be at most 1h: a token can't be taken back. Make another one when it has ended.",
    );
  const ttlMs = ttl ?? (isDevelopment ? DEVELOPMENT_TTL_MS : TTL_MS);
  return mintUserToken(config, signer, { user, admin, ttlS: Math.floor(ttlMs / 1_000), now: new Date() });
}

function signerOf(
  { tokenKey, dataDir }: Config,
  keyFile: string | undefined,
): { signer: TokenSigner; isDevelopment: boolean } {
  if (keyFile !== undefined) {
    if (tokenKey?.kind === "secret")
      throw new StartupError("LATCHKEY_JWT_SECRET is set, so that no private key signs user tokens: leave --key out.");
    const publicKey = tokenKey?.kind === "publicKey" ? tokenKey.pem : undefined;
    return { signer: readSigner(keyFile, publicKey), isDevelopment: false };
  }
  if (tokenKey === undefined) return { signer: { secret: devSecret(dataDir) }, isDevelopment: true };
  if (tokenKey.kind === "secret") return { signer: { secret: tokenKey.secret }, isDevelopment: false };
  const name = tokenKey.kind === "jwks" ? "LATCHKEY_JWKS_URL" : "LATCHKEY_JWT_PUBLIC_KEY";
  throw new StartupError(
    `${name} is set: say --key FILE with the private key, or send a token of who holds it. The README says what it must carry.`,
  );
}
