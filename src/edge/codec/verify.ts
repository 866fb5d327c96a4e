import { isAscii } from "node:buffer";
import { create, toBinary, toJsonString } from "@bufbuild/protobuf";
import {
  ApiKeySchema,
  Consistency,
  VerifyErrorSchema,
  VerifyResponseSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import { ENVELOPE_BYTES } from "../../fastpath/fast-method.ts";
import { putEnvelopeHead } from "../../fastpath/wire-format.ts";
import { KeyError } from "../../keys/errors.ts";
import type { Verification, VerifyInput } from "../../keys/verify/verify.ts";
import { type Entry, stateAt } from "../../keys/verify/view.ts";
import { isUsual, OUTCOMES, restOfResponse, toApiKey, toVerifyError, toVerifyResponse } from "../answer.ts";
import { ANSWER_TOO_LARGE, MAX_BATCH_ANSWER_BYTES, type Verdict } from "../doors/verify-many.ts";
import { delimited, LENGTH_DELIMITED, sizeOfField, tag, VARINT, varint, writeText, writeVarint } from "./protobuf.ts";

// Verify's messages by hand: the generic codec takes as long for one of them as everything else that a call needs. What is
// out of the ordinary (unknown fields, long text, odd types) is undefined here, and the generic codec's to judge.

const NONE: readonly string[] = [];

const NOT_ASCII = /[\x80-\xff]/;

const KEY = tag(1, LENGTH_DELIMITED);
const REQUIRED_SCOPES = tag(2, LENGTH_DELIMITED);
const CONSISTENCY = tag(3, VARINT);
/** Of BatchVerifyRequest. */
const OMIT_RECORDS = tag(2, VARINT);

/** The VerifyRequest in `bytes[start, end)`. Text is taken for ASCII; whether it was, `isPlain` tells. */
export function decodeVerify(bytes: Buffer, start: number, end: number): VerifyInput | undefined {
  let key = "";
  let requiredScopes: string[] | undefined;
  let strong = false;
  let at = start;
  while (at < end) {
    const field = bytes[at++];
    const value = bytes[at++];
    if (value === undefined || at > end) return undefined;
    if (field === CONSISTENCY) {
      if (value > Consistency.STRONG) return undefined;
      strong = value === Consistency.STRONG;
    } else if (field === KEY || field === REQUIRED_SCOPES) {
      // Nothing that is a key or a scope needs a second byte of length.
      const until = at + value;
      if (value > 0x7f || until > end) return undefined;
      const text = bytes.toString("latin1", at, until);
      at = until;
      if (field === KEY) {
        // The last one counts, but each must be UTF-8.
        if (key !== "") return undefined;
        key = text;
      } else if (requiredScopes === undefined) requiredScopes = [text];
      else requiredScopes.push(text);
    } else return undefined;
  }
  return { key, requiredScopes: requiredScopes ?? NONE, strong, timeoutMs: 0 };
}

/**
 * Whether all text is ASCII, and was thus decoded rightly. Other text is never that of a good key, so it is enough to ask
 * before a refusal.
 */
export function isPlain({ key, requiredScopes }: VerifyInput): boolean {
  return !NOT_ASCII.test(key) && !requiredScopes.some((scope) => NOT_ASCII.test(scope));
}

export interface Batch {
  inputs: VerifyInput[];
  omitRecords: boolean;
}

/** BatchVerifyRequest: its VerifyRequests, each as above, and whether records are left out. */
export function decodeBatch(bytes: Buffer): Batch | undefined {
  const inputs: VerifyInput[] = [];
  let omitRecords = false;
  for (let at = 0; at < bytes.length; ) {
    if (bytes[at] === OMIT_RECORDS) {
      const value = bytes[at + 1] ?? Number.NaN;
      if (!(value <= 1)) return undefined;
      omitRecords = value === 1;
      at += 2;
      continue;
    }
    if (bytes[at] !== tag(1, LENGTH_DELIMITED)) return undefined;
    const { value: length, end: start } = readVarint(bytes, at + 1);
    at = start + length;
    // A length that is none is not within.
    const input = at <= bytes.length ? decodeVerify(bytes, start, at) : undefined;
    if (input === undefined || !isPlain(input)) return undefined;
    inputs.push(input);
  }
  return { inputs, omitRecords };
}

/** VerifyStreamRequest: one VerifyRequest. */
export function decodeStreamed(bytes: Buffer): VerifyInput | undefined {
  if (bytes[0] !== tag(1, LENGTH_DELIMITED)) return undefined;
  const { value: length, end: start } = readVarint(bytes, 1);
  const input = start + length === bytes.length ? decodeVerify(bytes, start, bytes.length) : undefined;
  return input !== undefined && isPlain(input) ? input : undefined;
}

/** NaN when there is no varint below 2^21. */
function readVarint(bytes: Buffer, start: number): { value: number; end: number } {
  let value = 0;
  for (let index = 0; index < 3; index += 1) {
    const byte = bytes[start + index] ?? Number.NaN;
    value += (byte & 0x7f) * 128 ** index;
    if (byte < 0x80) return { value, end: start + index + 1 };
  }
  return { value: Number.NaN, end: start };
}

const JSON_FIELDS: ReadonlyMap<string, string> = new Map(
  ["key", "requiredScopes", "consistency"].map((name) => [name, `"${name}"`]),
);

/** The VerifyRequest in JSON, where it is spelled as nearly all callers spell it. */
export function decodeVerifyJson(bytes: Buffer): VerifyInput | undefined {
  if (!isAscii(bytes)) return undefined;
  const text = bytes.toString("latin1");
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) return undefined;
  // A name may come twice, but for JSON.parse the last one counts; spelled with escapes it may look like no name at all.
  if (text.includes("\\")) return undefined;
  for (const name in parsed) {
    const quoted = JSON_FIELDS.get(name);
    if (quoted === undefined || text.indexOf(quoted) !== text.lastIndexOf(quoted)) return undefined;
  }
  const { key = "", requiredScopes = NONE, consistency } = parsed as Record<string, unknown>;
  if (typeof key !== "string" || !Array.isArray(requiredScopes)) return undefined;
  if (!requiredScopes.every((scope) => typeof scope === "string")) return undefined;
  if (consistency !== undefined && consistency !== "CONSISTENCY_STRONG" && consistency !== "CONSISTENCY_BOUNDED") {
    return undefined;
  }
  return { key, requiredScopes, strong: consistency === "CONSISTENCY_STRONG", timeoutMs: 0 };
}

const RESULT = tag(1, LENGTH_DELIMITED);
const RESPONSE = tag(1, LENGTH_DELIMITED);
const ERROR = tag(2, LENGTH_DELIMITED);

/** BatchVerifyResponse, of at most `MAX_BATCH_ANSWER_BYTES`. */
export function encodeBatch(verdicts: readonly Verdict[]): Buffer {
  const measured = verdicts.map(measure);
  const keeps = whatFits(measured);
  const items = keeps === undefined ? measured : measured.map((item, index) => (keeps[index] ? item : TOO_LARGE));
  const message = Buffer.allocUnsafe(sizeOfItems(items));
  let at = 0;
  for (const item of items) at = writeResult(item, message, at);
  return message;
}

/** The verdicts that `encodeBatch` would write, for other encoders. */
export function fitting(verdicts: Verdict[]): Verdict[] {
  const keeps = whatFits(verdicts.map(measure));
  return keeps === undefined ? verdicts : verdicts.map((verdict, index) => (keeps[index] ? verdict : ANSWER_TOO_LARGE));
}

/** undefined: all of it. */
function whatFits(items: readonly Measured[]): boolean[] | undefined {
  if (sizeOfItems(items) <= MAX_BATCH_ANSWER_BYTES) return undefined;
  const least = sizeOfItems([TOO_LARGE]);
  // Each item that comes later must at least have room for its error.
  let left = MAX_BATCH_ANSWER_BYTES - least * items.length;
  return items.map((item) => {
    const more = sizeOfItems([item]) - least;
    const fits = more <= left;
    if (fits) left -= more;
    return fits;
  });
}

function sizeOfItems(items: readonly Measured[]): number {
  return items.reduce((size, item) => size + sizeOfField(item.resultSize), 0);
}

/** VerifyStreamResponses, each in a gRPC envelope. */
export function encodeStreamed(verdicts: readonly Verdict[]): Buffer {
  const items = verdicts.map(measure);
  const size = items.reduce((sum, item) => sum + ENVELOPE_BYTES + sizeOfField(item.resultSize), 0);
  const messages = Buffer.allocUnsafe(size);
  let at = 0;
  for (const item of items) {
    at = writeResult(item, messages, putEnvelopeHead(messages, at, sizeOfField(item.resultSize)));
  }
  return messages;
}

interface Measured {
  verdict: Verification | Uint8Array;
  /** Of a verification. */
  rest: string;
  size: number;
  resultSize: number;
}

function measure(verdict: Verdict): Measured {
  if (verdict instanceof KeyError) {
    const error = toBinary(VerifyErrorSchema, toVerifyError(verdict));
    return { verdict: error, rest: "", size: error.length, resultSize: sizeOfField(error.length) };
  }
  const rest = restOf(verdict);
  const size = sizeOfVerification(verdict, rest);
  return { verdict, rest, size, resultSize: sizeOfField(size) };
}

const TOO_LARGE = measure(ANSWER_TOO_LARGE);

function writeResult({ verdict, rest, size, resultSize }: Measured, target: Buffer, start: number): number {
  target[start] = RESULT;
  let at = writeVarint(target, start + 1, resultSize);
  target[at] = verdict instanceof Uint8Array ? ERROR : RESPONSE;
  at = writeVarint(target, at + 1, size);
  if (!(verdict instanceof Uint8Array)) return writeVerification(verdict, rest, target, at);
  target.set(verdict, at);
  return at + size;
}

const OUTCOME = tag(1, VARINT);
const API_KEY = tag(2, LENGTH_DELIMITED);
const AS_OF = 4;
const SECONDS = tag(1, VARINT);
const NANOS = tag(2, VARINT);

/** VerifyResponse, after `room` bytes that are left for the caller to fill. */
export function encodeVerification(verification: Verification, room: number): Buffer {
  const rest = restOf(verification);
  const message = Buffer.allocUnsafe(room + sizeOfVerification(verification, rest));
  writeVerification(verification, rest, message, room);
  return message;
}

function sizeOfVerification({ entry, nowMs }: Verification, rest: string): number {
  const size = 2 + rest.length;
  return entry === undefined ? size : size + sizeOfField(encodedKey(entry, nowMs).length);
}

/** The fields after the outcome and the key, one character a byte. */
function restOf(verification: Verification): string {
  if (isUsual(verification)) return asOfField(verification.asOfMs);
  const rest = create(VerifyResponseSchema, restOfResponse(verification));
  return Buffer.from(toBinary(VerifyResponseSchema, rest)).toString("latin1");
}

/** Returns where it ends. */
function writeVerification(answer: Verification, rest: string, target: Buffer, start: number): number {
  target[start] = OUTCOME;
  target[start + 1] = OUTCOMES[answer.outcome].number;
  let at = start + 2;
  if (answer.entry !== undefined) at = writeText(target, at, API_KEY, encodedKey(answer.entry, answer.nowMs));
  return at + target.write(rest, at, "latin1");
}

/** The VerifyResponse in JSON. */
export function verificationJson(verification: Verification): string {
  if (!isUsual(verification)) return toJsonString(VerifyResponseSchema, toVerifyResponse(verification));
  const { outcome, entry, asOfMs, nowMs } = verification;
  const apiKey = entry === undefined ? "" : `,"apiKey":${encodedKeyJson(entry, nowMs)}`;
  const asOf = new Date(asOfMs).toISOString().replace(".000Z", "Z");
  return `{"outcome":"OUTCOME_${outcome.toUpperCase()}"${apiKey},"asOf":"${asOf}"}`;
}

function encodedKey(entry: Entry, nowMs: number): string {
  forgetOtherState(entry, nowMs);
  if (entry.encoded === undefined) {
    entry.encoded = Buffer.from(toBinary(ApiKeySchema, toApiKey(entry, nowMs))).toString("latin1");
  }
  return entry.encoded;
}

function encodedKeyJson(entry: Entry, nowMs: number): string {
  forgetOtherState(entry, nowMs);
  if (entry.encodedJson === undefined) {
    entry.encodedJson = toJsonString(ApiKeySchema, toApiKey(entry, nowMs));
  }
  return entry.encodedJson;
}

/** An encoding is good for as long as the record's state is. */
function forgetOtherState(entry: Entry, nowMs: number): void {
  const state = stateAt(entry, nowMs);
  if (entry.encodedState === state) return;
  entry.encoded = undefined;
  entry.encodedJson = undefined;
  entry.encodedState = state;
}

let lastAsOfMs = -1;
let lastAsOf = "";

/** The whole field, one character a byte. It is the same for all answers between two proofs. */
function asOfField(asOfMs: number): string {
  if (asOfMs === lastAsOfMs) return lastAsOf;
  const seconds = Math.floor(asOfMs / 1_000);
  const nanos = (asOfMs - seconds * 1_000) * 1_000_000;
  const content =
    (seconds === 0 ? "" : String.fromCharCode(SECONDS) + varint(seconds)) +
    (nanos === 0 ? "" : String.fromCharCode(NANOS) + varint(nanos));
  lastAsOfMs = asOfMs;
  lastAsOf = delimited(AS_OF, content);
  return lastAsOf;
}
