import { type Timestamp, timestampDate, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
import { type Command, InvalidArgumentError, Option } from "commander";
import {
  type AdminService,
  type ApiKey,
  type AuditEntry,
  AuditResult,
  createLatchkeyAdminClient,
  ErrorReason,
  GetKeyResponseSchema,
  ListAuditResponseSchema,
  ListKeysResponseSchema,
  RevokeByPresentedKeyResponseSchema,
  RevokeKeyResponseSchema,
  RevokeUserResponseSchema,
  State,
} from "./client/index.ts";
import { type CallOptions, developmentToken, endpointOf, readKey, show } from "./command-line.ts";
import { parseDuration } from "./config.ts";
import { StartupError } from "./startup-error.ts";

interface PageOptions extends CallOptions {
  pageSize?: number;
  pageToken?: string;
}

interface ListOptions extends PageOptions {
  user?: string;
  state?: "active" | "retiring" | "revoked" | "expired";
  prefix?: string;
  name?: string;
}

interface RevokeOptions extends CallOptions {
  user?: string;
  reason?: string;
}

interface AuditOptions extends PageOptions {
  actor?: string;
  user?: string;
  key?: string;
  action?: string;
  result?: "changed" | "answered" | "denied";
  since?: Timestamp;
  until?: Timestamp;
}

const STATES = { active: State.ACTIVE, retiring: State.RETIRING, revoked: State.REVOKED, expired: State.EXPIRED };
const RESULTS = { changed: AuditResult.CHANGED, answered: AuditResult.ANSWERED, denied: AuditResult.DENIED };
const REASON = ["--reason <text>", "why, for the record"] as const;

/** `latchkey admin …`: AdminService from a terminal. */
export function addAdminCommands(program: Command): void {
  const admin = program.command("admin").description("look at all keys, end any of them, and read who did what");
  const command = (usage: string, description: string) =>
    admin
      .command(usage)
      .description(description)
      .option("--url <url>", "the service; default: LATCHKEY_URL, or http://127.0.0.1:8080")
      .option("--token <token>", "an admin's token; default: LATCHKEY_TOKEN, or a development token of the user admin")
      .option("--json", "print the whole answer as JSON");
  const pages = (usage: string, description: string) =>
    command(usage, description)
      .option("--page-size <number>", "1 to 500; default: 50", wholeNumber)
      .option("--page-token <token>", "the page that a search before named as the next one");

  pages("list", "search keys; each option narrows the search")
    .option("--user <id>", "the owner")
    .addOption(new Option("--state <state>", "the state they are in now").choices(Object.keys(STATES)))
    .option("--prefix <prefix>", "what is shown of a key, or its beginning")
    .option("--name <text>", "some part of the name, in any case")
    .action(async ({ user, state, prefix = "", name = "", pageSize = 0, pageToken = "", ...options }: ListOptions) => {
      const narrowed = {
        prefix,
        name,
        ...(user !== undefined && { userId: user }),
        ...(state && { state: STATES[state] }),
      };
      const answer = await (await clientOf(options)).listKeys({ ...narrowed, pageSize, pageToken });
      show(ListKeysResponseSchema, answer, options, answer.apiKeys.map(lineOf).join("\n"));
      tellNext(answer, options);
    });

  command("get <key-id>", "show a key, in whatever state").action(async (keyId: string, options: CallOptions) => {
    const answer = await (await clientOf(options)).getKey({ keyId });
    show(GetKeyResponseSchema, answer, options, lineOf(answer.apiKey!));
  });

  command("revoke [key-id]", "revoke one key by its id, or with --user all that a user has")
    .option("--user <id>", "whose keys")
    .option(...REASON)
    .action(async (keyId: string | undefined, { user, reason = "", ...options }: RevokeOptions) => {
      if ((keyId === undefined) === (user === undefined))
        throw new StartupError("Say which: latchkey admin revoke KEY-ID, or latchkey admin revoke --user alice");
      const client = await clientOf(options);
      if (keyId !== undefined) {
        const answer = await client.revokeKey({ keyId, reason });
        return show(RevokeKeyResponseSchema, answer, options, endOf(answer));
      }
      const answer = await client.revokeUser({ userId: user!, reason });
      const ended = answer.apiKeys.map((apiKey) => endOf({ apiKey, revoked: true }));
      show(RevokeUserResponseSchema, answer, options, ended.join("\n") || "The user has no key to revoke.");
    });

  command(
    "revoke-presented",
    "revoke a key that was found somewhere; it is read from standard input, so that it stands in no process list",
  )
    .option(...REASON)
    .action(async ({ reason = "", ...options }: RevokeOptions) => {
      const answer = await (await clientOf(options)).revokeByPresentedKey({ key: await readKey(), reason });
      show(RevokeByPresentedKeyResponseSchema, answer, options, endOf(answer));
    });

  pages("audit", "read who did what, newest first; each option narrows the search")
    .option("--actor <id>", "who called")
    .option("--user <id>", "whose keys")
    .option("--key <id>", "the id of a key")
    .option("--action <method>", "the method, such as Refresh")
    .addOption(new Option("--result <result>", "what it came to").choices(Object.keys(RESULTS)))
    .option("--since <time>", "from then on: 2026-11-25T08:00Z, or 24h for a day ago", moment)
    .option("--until <time>", "before then", moment)
    .action(async ({ actor, user, key = "", action = "", result, since, until, ...options }: AuditOptions) => {
      const { pageSize = 0, pageToken = "" } = options;
      const narrowed = {
        keyId: key,
        action,
        ...(actor !== undefined && { actorId: actor }),
        ...(user !== undefined && { userId: user }),
        ...(result && { result: RESULTS[result] }),
        ...(since && { since }),
        ...(until && { until }),
      };
      const answer = await (await clientOf(options)).listAudit({ ...narrowed, pageSize, pageToken });
      show(ListAuditResponseSchema, answer, options, answer.entries.map(entryLine).join("\n"));
      tellNext(answer, options);
    });
}

async function clientOf(options: CallOptions): Promise<Client<typeof AdminService>> {
  const { baseUrl, token } = endpointOf(options);
  return createLatchkeyAdminClient({
    baseUrl,
    token: token ?? (await developmentToken("admin", true)),
    timeoutMs: 10_000,
  });
}

/** On standard error: what reads the lines of keys must not take it for one. */
function tellNext({ nextPageToken }: { nextPageToken: string }, { json }: CallOptions): void {
  if (nextPageToken !== "" && !json) process.stderr.write(`There are more: --page-token ${nextPageToken}\n`);
}

function lineOf({ id, prefix, state, userId, scopes, name }: ApiKey): string {
  return fields(id, prefix, wordOf(State, state), userId, scopes.join(","), name ?? "");
}

function entryLine({ time, action, result, reason, leftOut, ...entry }: AuditEntry): string {
  const outcome = [wordOf(AuditResult, result), ...(reason === ErrorReason.UNSPECIFIED ? [] : [ErrorReason[reason]])];
  const { actorId, userId, keyIds, peerAddress, requestId } = entry;
  const when = time ? timestampDate(time).toISOString() : "-";
  if (leftOut > 0n)
    return fields(when, action, outcome.join(":"), `${leftOut} calls that were not recorded one by one`);
  return fields(when, action, outcome.join(":"), actorId, userId, keyIds.join(","), peerAddress, requestId);
}

function endOf({ apiKey, revoked }: { apiKey?: ApiKey | undefined; revoked: boolean }): string {
  const { prefix, userId, state } = apiKey!;
  const said = revoked ? "was revoked" : `had ended before: it is ${wordOf(State, state)}`;
  return printable(`The API key ${prefix} of ${userId} ${said}.`);
}

function wordOf(names: Record<number, string>, value: number): string {
  return (names[value] ?? String(value)).toLowerCase();
}

/** Separated by tabs; `-` is nothing. */
function fields(...values: (string | undefined)[]): string {
  return values.map((value) => printable(value || "-")).join("\t");
}

/** Names and ids of users are what callers said, and could speak to the terminal. */
function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (one) => `\\u{${one.codePointAt(0)!.toString(16)}}`);
}

function wholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError("It must be a whole number.");
  return Number(text);
}

function moment(text: string): Timestamp {
  const agoMs = parseDuration(text);
  const ms = agoMs === undefined ? Date.parse(text) : Date.now() - agoMs;
  if (Number.isNaN(ms)) throw new InvalidArgumentError("It must be a time, 2026-11-25T08:00Z, or a span, 24h.");
  return timestampFromMs(ms);
}
