import { type DescMessage, type MessageShape, toJsonString } from "@bufbuild/protobuf";
import { InvalidArgumentError } from "commander";
import { parseDuration, readClientConfig, readConfig } from "./config.ts";
import { mintDevToken, readDevSecrets } from "./dev-secrets.ts";
import { StartupError } from "./startup-error.ts";

/** What every command that calls a service takes. */
export interface CallOptions {
  url?: string;
  token?: string;
  json?: boolean;
}

/** Where to call, and the bearer token that was given, if any. */
export function endpointOf({ url, token }: CallOptions): { baseUrl: string; token: string | undefined } {
  const config = readClientConfig();
  return { baseUrl: url ?? config.url, token: token ?? config.token };
}

/** A development token for a minute, where an embedded service's data are at hand. */
export function developmentToken(user: string, admin: boolean): Promise<string> {
  return mintDevToken(devSecret(), { user, admin, ttlS: 60, now: new Date() });
}

export function devSecret(): string {
  const { dataDir, tokenKey } = readConfig();
  if (tokenKey !== undefined)
    throw new StartupError(
      "A key of user tokens is configured, so that development tokens are refused. Send a real token.",
    );
  const secrets = readDevSecrets(dataDir);
  if (secrets !== undefined) return secrets.jwtSecret;
  throw new StartupError(
    `There are no development secrets in ${dataDir}. Start the service there once, or send a real token.`,
  );
}

/** From standard input: what stands on a command line is in every process list. */
export async function readKey(): Promise<string> {
  if (process.stdin.isTTY) process.stderr.write("The key, then Enter and Ctrl-D: ");
  let key = "";
  for await (const chunk of process.stdin) key += chunk;
  return key.trim();
}

export function duration(text: string): number {
  const ms = parseDuration(text);
  if (ms === undefined) throw new InvalidArgumentError("It must be a number with a unit: 90s, 15m, 24h or 7d.");
  return ms;
}

/** The answer as JSON where that is asked for, else `text`. */
export function show<Desc extends DescMessage>(
  schema: Desc,
  answer: MessageShape<Desc>,
  { json }: CallOptions,
  text: string,
): void {
  if (json || text !== "") print(json ? toJsonString(schema, answer) : text);
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
