import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
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
} from "../client/index.ts";
import type { KeyState } from "../keys/record.ts";
import { StartupError } from "../observe/startup-error.ts";
import { describeKey, type EndingOptions, endingOf, printable, show, table, timeOf, wordOf } from "./output.ts";
import { type CallOptions, developmentToken, endpointOf, readKey } from "./session.ts";

interface PageOptions extends CallOptions {
  pageSize?: number;
  pageToken?: string;
}

interface ListOptions extends PageOptions {
  user?: string;
  state?: KeyState;
  prefix?: string;
  name?: string;
  metadata?: Record<string, string>;
}

interface RevokeOptions extends CallOptions, EndingOptions {
  user?: string;
}

interface AuditOptions extends PageOptions {
  actor?: string;
  user?: string;
  key?: string;
  action?: string;
  result?: "changed" | "answered" | "denied";
  /** In Unix milliseconds, as `until`. */
  since?: number;
  until?: number;
}

const KEY_HEADINGS = ["id", "prefix", "state", "user", "scopes", "name"];
const ENTRY_HEADINGS = ["time", "action", "result", "actor", "user", "keys", "address", "request", "stated reason"];

export async function list(options: ListOptions): Promise<void> {
  const { user, state, prefix = "", name = "", metadata = {}, pageSize = 0, pageToken = "" } = options;
  const narrowed = {
    prefix,
    name,
    metadata,
    ...(user !== undefined && { userId: user }),
    ...(state && { state: State[state.toUpperCase() as Uppercase<KeyState>] }),
  };
  const answer = await (await clientOf(options)).listKeys({ ...narrowed, pageSize, pageToken });
  show(ListKeysResponseSchema, answer, options, table(KEY_HEADINGS, answer.apiKeys.map(keyRow)));
  sayNext(answer, options);
}

export async function get(keyId: string, options: CallOptions): Promise<void> {
  const answer = await (await clientOf(options)).getKey({ keyId });
  show(GetKeyResponseSchema, answer, options, describeKey(answer.apiKey!));
}

export async function revoke(keyId: string | undefined, options: RevokeOptions): Promise<void> {
  const { user } = options;
  if ((keyId === undefined) === (user === undefined))
    throw new StartupError("Say which: latchkey admin revoke KEY-ID, or latchkey admin revoke --user alice");
  const client = await clientOf(options);
  if (keyId !== undefined) {
    const answer = await client.revokeKey({ keyId, ...endingOf(options) });
    return show(RevokeKeyResponseSchema, answer, options, endOf(answer));
  }
  const answer = await client.revokeUser({ userId: user!, ...endingOf(options) });
  const ended = answer.apiKeys.map((apiKey) => endOf({ apiKey, revoked: true }));
  show(RevokeUserResponseSchema, answer, options, ended.join("\n") || "The user has no key to revoke.");
}

export async function revokePresented(options: RevokeOptions): Promise<void> {
  const answer = await (await clientOf(options)).revokeByPresentedKey({ key: await readKey(), ...endingOf(options) });
  show(RevokeByPresentedKeyResponseSchema, answer, options, endOf(answer));
}

export async function audit(options: AuditOptions): Promise<void> {
  const { actor, user, key = "", action = "", result, since, until, pageSize = 0, pageToken = "" } = options;
  const narrowed = {
    keyId: key,
    action,
    ...(actor !== undefined && { actorId: actor }),
    ...(user !== undefined && { userId: user }),
    ...(result && { result: AuditResult[result.toUpperCase() as Uppercase<typeof result>] }),
    ...(since !== undefined && { since: timestampFromMs(since) }),
    ...(until !== undefined && { until: timestampFromMs(until) }),
  };
  const answer = await (await clientOf(options)).listAudit({ ...narrowed, pageSize, pageToken });
  show(ListAuditResponseSchema, answer, options, table(ENTRY_HEADINGS, answer.entries.map(entryRow)));
  sayNext(answer, options);
}

async function clientOf(options: CallOptions): Promise<Client<typeof AdminService>> {
  const { baseUrl, token, tls } = endpointOf(options);
  return createLatchkeyAdminClient({
    tls,
    baseUrl,
    token: token ?? (await developmentToken(baseUrl, "admin", true)),
    timeoutMs: 10_000,
  });
}

/** On standard error: what reads the lines of keys must not take it for one. */
function sayNext({ nextPageToken }: { nextPageToken: string }, { json }: CallOptions): void {
  if (nextPageToken !== "" && !json) process.stderr.write(`There are more: --page-token ${nextPageToken}\n`);
}

function keyRow({ id, prefix, state, userId, scopes, name = "" }: ApiKey): string[] {
  return [id, prefix, wordOf(State, state), userId, scopes.join(","), name];
}

function entryRow({ time, action, result, reason, leftOut, ...entry }: AuditEntry): string[] {
  const outcome = [wordOf(AuditResult, result), ...(reason === ErrorReason.UNSPECIFIED ? [] : [ErrorReason[reason]])];
  const { actorId, userId, keyIds, peerAddress, requestId, statedReason } = entry;
  const call = [timeOf(time) ?? "", action, outcome.join(":")];
  if (leftOut > 0n) return [...call, "", "", "", "", "", `${leftOut} calls that were not recorded one by one`];
  return [...call, actorId, userId, keyIds.join(","), peerAddress, requestId, statedReason];
}

function endOf({ apiKey, revoked }: { apiKey?: ApiKey | undefined; revoked: boolean }): string {
  const { prefix, userId, state } = apiKey!;
  const said = revoked ? "was revoked" : `had ended before: it is ${wordOf(State, state)}`;
  return printable(`The API key ${prefix} of ${userId} ${said}.`);
}
