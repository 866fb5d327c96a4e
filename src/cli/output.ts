import { type DescMessage, type MessageShape, toJsonString } from "@bufbuild/protobuf";
import { type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";
import { type ApiKey, RevocationCause, State } from "#gen/latchkey/v1/api_key_service_pb";
import type { RevocationCause as KeyCause } from "../keys/record.ts";

/** The answer as JSON where that is asked for, else `text`. */
export function show<Desc extends DescMessage>(
  schema: Desc,
  answer: MessageShape<Desc>,
  { json }: { json?: boolean },
  text: string,
): void {
  if (json || text !== "") print(json ? toJsonString(schema, answer) : text);
}

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** Headings and rows in columns, to a terminal and to a pipe alike: `--json` is what programs read. Empty: no rows. */
export function table(headings: readonly string[], rows: readonly (readonly string[])[]): string {
  if (rows.length === 0) return "";
  const lines = [headings, ...rows.map((row) => row.map((value) => printable(value || "-")))];
  const widths = headings.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)));
  return lines
    .map((line) => line.map((value, column) => value.padEnd(widths[column]!)).join("  "))
    .map((line) => line.trimEnd())
    .join("\n");
}

/** All that people ask of one key, a line each. */
export function describeKey(apiKey: ApiKey): string {
  const { id, prefix, userId, name, state, scopes, createdAt, expiresAt, retiresAt, revokedAt, lastUsedAt, metadata } =
    apiKey;
  const lines: [string, string | undefined][] = [
    ["key", prefix],
    ["id", id],
    ["user", userId],
    ["name", name || "-"],
    ["state", wordOf(State, state)],
    ["scopes", scopes.join(" ")],
    ["metadata", entriesOf(metadata)],
    ["created", timeOf(createdAt)],
    ["ends", timeOf(expiresAt) ?? "never"],
    ["retires", timeOf(retiresAt)],
    ["revoked", timeOf(revokedAt)],
    ["reason", apiKey.revocationReason || undefined],
    ["cause", apiKey.revocationCause === 0 ? undefined : wordOf(RevocationCause, apiKey.revocationCause)],
    ["suspended", timeOf(apiKey.suspendedAt)],
    ["because", apiKey.suspensionReason || undefined],
    ["last used", timeOf(lastUsedAt) ?? "not yet"],
  ];
  return lines
    .filter(([, value]) => value !== undefined)
    .map(([label, value]) => `${label.padEnd(9)}  ${printable(value!)}`)
    .join("\n");
}

export interface EndingOptions {
  reason?: string;
  cause?: Exclude<KeyCause, "superseded">;
}

/** The fields of a call that revokes. */
export function endingOf({ reason = "", cause }: EndingOptions): { reason: string; cause: RevocationCause } {
  const number = cause === undefined ? 0 : RevocationCause[cause.toUpperCase() as Uppercase<typeof cause>];
  return { reason, cause: number };
}

/** undefined: none. */
function entriesOf(metadata: Record<string, string>): string | undefined {
  const entries = Object.entries(metadata).map(([name, value]) => `${name}=${value}`);
  return entries.sort().join(", ") || undefined;
}

export function timeOf(time: Timestamp | undefined): string | undefined {
  return time && timestampDate(time).toISOString();
}

/** The name of a member of an enum, in lower case. */
export function wordOf(names: Record<number, string>, value: number): string {
  return (names[value] ?? String(value)).toLowerCase();
}

/** Names and ids of users are what callers said, and could speak to the terminal. */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (one) => `\\u{${one.codePointAt(0)!.toString(16)}}`);
}
