#!/usr/bin/env node
import "./node-version.ts";
import { readFileSync } from "node:fs";
import { Command, Option } from "commander";
import { CAUSES, KEY_STATES, SUPERSEDED } from "../keys/record.ts";
import { duration, metadata, moment, wholeNumber } from "./arguments.ts";

// Each command is loaded when it runs: help, the version and wrong usage need commander alone.
const keys = () => import("./key-commands.ts");
const admins = () => import("./admin-commands.ts");

const REQUEST_ID = "say the same one, such as a UUID, to repeat a call whose answer was lost";
const URL_OPTION = ["--url <url>", "the service; default: LATCHKEY_URL, or http://127.0.0.1:8080"] as const;
const JSON_OPTION = ["--json", "print the whole answer as JSON"] as const;
const REASON = ["--reason <text>", "why, for the record and the audit trail"] as const;

const METADATA = ["--metadata <name=value...>", "entries of its metadata, for admins", metadata] as const;

/** The command that runs, for what is to be said when it fails. */
let running: Command | undefined;

const program = new Command("latchkey")
  .description("API keys on MongoDB: one active key per user.")
  .version(version(), "-V, --version", "print the version")
  .helpCommand("help [command]", "show the help of a command")
  .addHelpText(
    "after",
    "\nExit codes: 0 done (verify: the key is good), 1 refused or failed, 2 wrong usage, 3 verify: the key is not good.",
  )
  .exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : 2))
  .hook("preAction", (_, command) => {
    running = command;
  });

program
  .command("serve")
  .description("run the service until SIGINT or SIGTERM; configured by environment variables, see the README")
  .action(async () => {
    const { serve } = await import("../service/serve.ts");
    process.exitCode = await serve();
  });

program
  .command("token")
  .description("make a user token, or a service token for callers of Verify")
  .option("--user <id>", "the user the token is for")
  .option("--admin", "mark the user as an admin, by LATCHKEY_ADMIN_CLAIM")
  .option("--ttl <duration>", "how long it is good: 90s, 15m; default: 15m, of a development token 24h", duration)
  .option(
    "--key <file>",
    "the private key to sign with, PEM or JWK; default: LATCHKEY_JWT_SECRET, or the development secret of an embedded service",
  )
  .option("--service <name>", "make a service token, and the entry for LATCHKEY_SERVICE_TOKENS")
  .option("--json", "print JSON")
  .action(async (options) => (await import("./token.ts")).token(options));

keyCommand("create", "create a key; it is printed once")
  .requiredOption("--scope <scope...>", "what the key may do")
  .option("--name <name>", "a label for people")
  .option("--ttl <duration>", "how long it lives", duration)
  .option(...METADATA)
  .option("--request-id <id>", REQUEST_ID)
  .action(async (options) => (await keys()).create(options));

keyCommand("get", "show the active key, without its secret").action(async (options) => (await keys()).get(options));

keyCommand("refresh", "replace the key by a new one; it is printed once")
  .alias("rotate")
  .option("--scope <scope...>", "what the new key may do; default: as before")
  .option("--name <name>", "a label for people; default: as before")
  .option("--ttl <duration>", "how long it lives; default: as before", duration)
  .option(...METADATA)
  .option("--grace <duration>", "how long the old key goes on working; default: not at all", duration)
  .option("--request-id <id>", REQUEST_ID)
  .action(async (options) => (await keys()).refresh(options));

keyCommand("revoke", "revoke the key, and one in its grace period")
  .option("--presented", "instead: the key that is read from standard input, which needs no other proof")
  .option(...REASON)
  .addOption(cause())
  .action(async (options) => (await keys()).revoke(options));

keyCommand("update", "change the key; its secret goes on. What is not said stays")
  .option("--scope <scope...>", "what it may do from now on")
  .option("--name <name>", "a label for people")
  .option("--no-name", "take the label away")
  .option("--ttl <duration>", "how long it lives, from now on", duration)
  .option("--no-ttl", "take its end away")
  .option(...METADATA)
  .option("--remove-metadata <name...>", "entries of its metadata to take away, for admins")
  .option("--etag <etag>", "only if it has not changed since `get --json` showed this")
  .option("--request-id <id>", REQUEST_ID)
  .action(async (options) => (await keys()).update(options));

keyCommand("suspend", "stop the key for a time, and one in its grace period; resume makes it good again")
  .option(...REASON)
  .action(async (options) => (await keys()).suspend(options));

keyCommand("resume", "end a suspension").action(async (options) => (await keys()).resume(options));

keyCommand(
  "verify",
  "ask whether a key is good; the key is read from standard input, so that it stands in no process list",
)
  .option("--scope <scope...>", "scopes it must have")
  .action(async (options) => (await keys()).verify(options));

const admin = program.command("admin").description("look at all keys, end any of them, and read who did what");

pages("list", "search keys; each option narrows the search")
  .option("--user <id>", "the owner")
  .addOption(new Option("--state <state>", "the state they are in now").choices(KEY_STATES))
  .option("--prefix <prefix>", "what is shown of a key, or its beginning")
  .option("--name <text>", "some part of the name, in any case")
  .option(...METADATA)
  .action(async (options) => (await admins()).list(options));

adminCommand("get <key-id>", "show a key, in whatever state").action(async (keyId, options) =>
  (await admins()).get(keyId, options),
);

adminCommand("revoke [key-id]", "revoke one key by its id, or with --user all that a user has")
  .option("--user <id>", "whose keys")
  .option(...REASON)
  .addOption(cause())
  .action(async (keyId, options) => (await admins()).revoke(keyId, options));

adminCommand(
  "revoke-presented",
  "revoke a key that was found somewhere; it is read from standard input, so that it stands in no process list",
)
  .option(...REASON)
  .addOption(cause())
  .action(async (options) => (await admins()).revokePresented(options));

pages("audit", "read who did what, newest first; each option narrows the search")
  .option("--actor <id>", "who called")
  .option("--user <id>", "whose keys")
  .option("--key <id>", "the id of a key")
  .option("--action <method>", "the method, such as Refresh")
  .addOption(new Option("--result <result>", "what it came to").choices(["changed", "answered", "denied"]))
  .option("--since <time>", "from then on: 2026-11-25T08:00Z, or 24h for a day ago", moment)
  .option("--until <time>", "before then", moment)
  .action(async (options) => (await admins()).audit(options));

program
  .command("doctor")
  .description("look at the configuration, the database and the service, and say what is wrong")
  .option("--json", "print JSON")
  .action(async (options) => (await import("./doctor.ts")).doctor(options));

program
  .command("peppers")
  .description(
    "count keys by the pepper of their fingerprint, and say which pepper may be taken out of LATCHKEY_PEPPERS",
  )
  .option("--json", "print JSON")
  .option(
    "--forget <id>",
    "instead: have the database forget the pepper of this id, because its secret is lost; first stop whatever runs with it",
  )
  .option("--forget-request-key <id>", "instead: the same for an entry of LATCHKEY_REQUEST_KEYS")
  .action(async (options) => (await import("./peppers.ts")).peppers(options));

function cause(): Option {
  const causes = CAUSES.filter((name) => name !== SUPERSEDED);
  return new Option("--cause <cause>", "the same for machines").choices(causes);
}

function keyCommand(name: string, description: string): Command {
  return program
    .command(name)
    .description(description)
    .option("--user <id>", "whose key; without a token: the user to make a development token for")
    .option(...URL_OPTION)
    .option("--token <token>", "the bearer token; default: LATCHKEY_TOKEN, or a development token for --user")
    .option(...JSON_OPTION);
}

function adminCommand(usage: string, description: string): Command {
  return admin
    .command(usage)
    .description(description)
    .option(...URL_OPTION)
    .option("--token <token>", "an admin's token; default: LATCHKEY_TOKEN, or a development token of the user admin")
    .option(...JSON_OPTION);
}

function pages(usage: string, description: string): Command {
  return adminCommand(usage, description)
    .option("--page-size <number>", "1 to 500; default: 50", wholeNumber)
    .option("--page-token <token>", "the page that a search before named as the next one");
}

function version(): string {
  const text = readFileSync(new URL("../../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = 1;
  const { whatFailed } = await import("./failure.ts");
  process.stderr.write(`latchkey: ${whatFailed(error, running?.opts() ?? {})}\n`);
}
