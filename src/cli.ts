#!/usr/bin/env node
import { createHash, randomBytes } from "node:crypto";
import { type Client, ConnectError } from "@connectrpc/connect";
import { Command } from "commander";
import { addAdminCommands } from "./admin-commands.ts";
import {
  type ApiKeyService,
  type CreateResponse,
  CreateResponseSchema,
  createLatchkeyClient,
  describeError,
  GetResponseSchema,
  KeyWithheld,
  Outcome,
  type RefreshResponse,
  RefreshResponseSchema,
  RevokeResponseSchema,
  State,
  VerifyResponseSchema,
} from "./client/index.ts";
import {
  type CallOptions,
  developmentToken,
  devSecret,
  duration,
  endpointOf,
  print,
  readKey,
  show,
} from "./command-line.ts";
import { readConfig, SERVICE_NAME } from "./config.ts";
import { mintDevToken } from "./dev-secrets.ts";
import { runDoctor } from "./doctor.ts";
import { serve } from "./main.ts";
import { formatPeppers, reportPeppers } from "./peppers.ts";
import { StartupError } from "./startup-error.ts";

/** Exit codes: 0 done (verify: the key is good), 1 refused or failed, 2 wrong usage, 3 verify: the key is not good. */
const NOT_GOOD = 3;

const REQUEST_ID = "say the same one, such as a UUID, to repeat a call whose answer was lost";

interface UserOptions extends CallOptions {
  user?: string;
}

interface KeyOptions extends UserOptions {
  name?: string;
  scope?: string[];
  ttl?: number;
  grace?: number;
  requestId?: string;
}

const program = new Command("latchkey")
  .description("API keys on MongoDB: one active key per user.")
  .exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : 2));

program
  .command("serve")
  .description("run the service until SIGINT or SIGTERM; configured by environment variables, see the README")
  .action(async () => {
    process.exitCode = await serve();
  });

program
  .command("token")
  .description("make a development user token (embedded mode), or a service token for callers of Verify")
  .option("--user <id>", "the user the token is for")
  .option("--admin", "mark the user as an admin")
  .option("--ttl <duration>", "how long it is good: 90s, 15m, 24h", duration, 86_400_000)
  .option("--service <name>", "make a service token, and the entry for LATCHKEY_SERVICE_TOKENS")
  .option("--json", "print JSON")
  .action(async ({ user, admin = false, ttl, service, json }) => {
    if (service !== undefined) {
      if (!SERVICE_NAME.test(service))
        throw new StartupError("A service's name must have 1 to 64 of the characters 0-9 A-Z a-z . _ -");
      const token = randomBytes(32).toString("base64url");
      const entry = `${service}:sha256:${createHash("sha256").update(token).digest("hex")}`;
      print(
        json
          ? JSON.stringify({ token, entry })
          : `token, for the caller:              ${token}\nentry, for LATCHKEY_SERVICE_TOKENS: ${entry}`,
      );
      return;
    }
    if (!user) throw new StartupError("Say for whom: latchkey token --user alice");
    const token = await mintDevToken(devSecret(), { user, admin, ttlS: Math.floor(ttl / 1_000), now: new Date() });
    print(json ? JSON.stringify({ token }) : token);
  });

keyCommand("create", "create a key; it is printed once")
  .requiredOption("--scope <scope...>", "what the key may do")
  .option("--name <name>", "a label for people")
  .option("--ttl <duration>", "how long it lives", duration)
  .option("--request-id <id>", REQUEST_ID)
  .action(async (options: KeyOptions) => {
    const { client, owner } = await sessionFor(options);
    const answer = await client.create({ ...owner, ...keyFields(options) });
    show(CreateResponseSchema, answer, options, answer.key);
    tellWithheld(answer);
  });

keyCommand("get", "show the active key, without its secret").action(async (options: UserOptions) => {
  const { client, owner } = await sessionFor(options);
  const answer = await client.get(owner);
  show(GetResponseSchema, answer, options, `${answer.apiKey?.prefix}  ${answer.apiKey?.scopes.join(" ")}`);
});

keyCommand("refresh", "replace the key by a new one; it is printed once")
  .option("--scope <scope...>", "what the new key may do; default: as before")
  .option("--name <name>", "a label for people; default: as before")
  .option("--ttl <duration>", "how long it lives; default: as before", duration)
  .option("--grace <duration>", "how long the old key goes on working; default: not at all", duration)
  .option("--request-id <id>", REQUEST_ID)
  .action(async (options: KeyOptions) => {
    const gracePeriod = options.grace === undefined ? {} : { gracePeriod: span(options.grace) };
    const { client, owner } = await sessionFor(options);
    const answer = await client.refresh({ ...owner, ...keyFields(options), ...gracePeriod });
    show(RefreshResponseSchema, answer, options, answer.key);
    tellWithheld(answer);
  });

keyCommand("revoke", "revoke the key, and one in its grace period")
  .option("--reason <text>", "why, for the record")
  .action(async (options: UserOptions & { reason?: string }) => {
    const { client, owner } = await sessionFor(options);
    const answer = await client.revoke({ ...owner, reason: options.reason ?? "" });
    show(RevokeResponseSchema, answer, options, `${answer.message} ${answer.revokedKeyPrefix}`);
  });

keyCommand(
  "verify",
  "ask whether a key is good; the key is read from standard input, so that it stands in no process list",
)
  .option("--scope <scope...>", "scopes it must have")
  .action(async (options: KeyOptions) => {
    const { baseUrl, token } = endpointOf(options);
    const client = createLatchkeyClient({ baseUrl, ...(token !== undefined && { token }) });
    const answer = await client.verify({ key: await readKey(), requiredScopes: options.scope ?? [] });
    show(VerifyResponseSchema, answer, options, Outcome[answer.outcome] ?? "");
    if (answer.outcome !== Outcome.VALID) process.exitCode = NOT_GOOD;
  });

addAdminCommands(program);

program
  .command("doctor")
  .description("look at the configuration, the database and the service, and say what is wrong")
  .option("--json", "print JSON")
  .action(async ({ json }) => {
    const findings = await runDoctor();
    const lines = findings.map(({ what, ok, detail }) => `${ok ? "ok  " : "FAIL"}  ${what}: ${detail}`);
    print(json ? JSON.stringify(findings) : lines.join("\n"));
    if (findings.some(({ ok }) => !ok)) process.exitCode = 1;
  });

program
  .command("peppers")
  .description(
    "count keys by the pepper of their fingerprint, and say which pepper may be taken out of LATCHKEY_PEPPERS",
  )
  .option("--json", "print JSON")
  .action(async ({ json }) => {
    const report = await reportPeppers(readConfig());
    print(json ? JSON.stringify(report) : formatPeppers(report));
  });

function keyCommand(name: string, description: string): Command {
  return program
    .command(name)
    .description(description)
    .option("--user <id>", "whose key; without a token: the user to make a development token for")
    .option("--url <url>", "the service; default: LATCHKEY_URL, or http://127.0.0.1:8080")
    .option("--token <token>", "the bearer token; default: LATCHKEY_TOKEN, or a development token for --user")
    .option("--json", "print the whole answer as JSON");
}

interface Session {
  client: Client<typeof ApiKeyService>;
  /** Whose key is meant, where that is not the caller's own. */
  owner: { userId?: string };
}

/** Without a token and beside an embedded service's data, the caller becomes `--user` by a development token. */
async function sessionFor({ user, ...options }: UserOptions): Promise<Session> {
  const { baseUrl, token } = endpointOf(options);
  if (token !== undefined)
    return { client: createLatchkeyClient({ baseUrl, token }), owner: user === undefined ? {} : { userId: user } };
  if (user === undefined)
    throw new StartupError("No token: set LATCHKEY_TOKEN, or say --user for a development token.");
  return { client: createLatchkeyClient({ baseUrl, token: await developmentToken(user, false) }), owner: {} };
}

function keyFields(options: KeyOptions) {
  return {
    scopes: options.scope ?? [],
    ...(options.name !== undefined && { name: options.name }),
    ...(options.requestId !== undefined && { requestId: options.requestId }),
    ...(options.ttl !== undefined && { lifetime: { case: "ttl" as const, value: span(options.ttl) } }),
  };
}

function span(ms: number): { seconds: bigint; nanos: number } {
  return { seconds: BigInt(Math.floor(ms / 1_000)), nanos: (ms % 1_000) * 1_000_000 };
}

/** A repeat whose key is not told again made nothing: a script that goes on with no key must notice. */
function tellWithheld({ apiKey, key, keyWithheld }: CreateResponse | RefreshResponse): void {
  if (key !== "") return;
  const why =
    keyWithheld === KeyWithheld.ENDED
      ? `it is ${State[apiKey?.state ?? State.UNSPECIFIED]?.toLowerCase()}`
      : "the request key that its secret was derived from is no longer in LATCHKEY_REQUEST_KEYS";
  throw new StartupError(`This call made the key ${apiKey?.prefix} before. The key is not told again: ${why}.`);
}

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = 1;
  if (error instanceof StartupError) process.stderr.write(`latchkey: ${error.message}\n`);
  else if (error instanceof ConnectError) {
    const { reason, code, message } = describeError(error);
    process.stderr.write(`latchkey: ${message} (${reason ?? code})\n`);
  } else throw error;
}
