import { readDevSecrets } from "../embedded/dev-secrets.ts";
import { StartupError } from "../observe/startup-error.ts";
import { isLoopback, readClientConfig, readConfig } from "../service/config.ts";
import { type ClientTls, loadClientTls } from "./client-tls.ts";
import { mintUserToken } from "./user-token.ts";

/** Options of every command that calls a service. */
export interface CallOptions {
  url?: string;
  token?: string;
  json?: boolean;
}

interface Endpoint {
  baseUrl: string;
  /** As it was given, if it was. */
  token: string | undefined;
  tls: ClientTls | undefined;
}

/** Where to call, and with what. */
export function endpointOf({ url, token }: CallOptions): Endpoint {
  if (url !== undefined && !(URL.canParse(url) && /^https?:/.test(url)))
    throw new StartupError("--url must be an http(s) URL, such as http://127.0.0.1:8080");
  const config = readClientConfig();
  const baseUrl = url ?? config.url;
  const tls = baseUrl.startsWith("https:") ? loadClientTls(config.tls) : undefined;
  return { baseUrl, token: token ?? config.token, tls };
}

/** A development token for a minute, for a service on this machine whose embedded database is at hand. */
export function developmentToken(baseUrl: string, user: string, admin: boolean): Promise<string> {
  const { hostname } = new URL(baseUrl);
  if (!isLoopback(hostname.replace(/^\[|\]$/g, "")))
    throw new StartupError(
      `No token: set LATCHKEY_TOKEN. Development tokens are for a service on this machine, and ${hostname} may be another.`,
    );
  const config = readConfig();
  if (config.tokenKey !== undefined)
    throw new StartupError(
      `No token: set LATCHKEY_TOKEN. A key of user tokens is configured, so that development tokens are refused. Whoever holds it makes one: export LATCHKEY_TOKEN=$(npx latchkey token --user ${admin ? "root --admin" : "alice"})`,
    );
  return mintUserToken(config, { secret: devSecret(config.dataDir) }, { user, admin, ttlS: 60, now: new Date() });
}

export function devSecret(dataDir: string): string {
  const secrets = readDevSecrets(dataDir);
  if (secrets !== undefined) return secrets.jwtSecret;
  throw new StartupError(
    `There are no development secrets in ${dataDir}. Start the service there once, set LATCHKEY_DATA_DIR to where it keeps its data, or set LATCHKEY_TOKEN.`,
  );
}

/** From standard input: what stands on a command line is in every process list. */
export async function readKey(): Promise<string> {
  if (process.stdin.isTTY) process.stderr.write("The key, then Enter and Ctrl-D: ");
  let key = "";
  for await (const chunk of process.stdin) key += chunk;
  return key.trim();
}
