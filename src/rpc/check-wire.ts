import { create, toBinary } from "@bufbuild/protobuf";
import { LRUCache } from "lru-cache";
import { HeaderValueOption_HeaderAppendAction } from "#gen/envoy/config/core/v3/base_pb";
import { CheckResponseSchema, OkHttpResponseSchema } from "#gen/envoy/service/auth/v3/external_auth_pb";
import type { GatewayKeySources } from "../config.ts";
import { displayPrefix } from "../keys/key.ts";
import type { Entry } from "../keys/view.ts";
import { type Denial, identityHeaders } from "./gateway.ts";
import { headersToRemove, noteHeader, noteQuery, nothingPresented, type Presented } from "./presented-key.ts";

// Check's messages by hand: a CheckRequest has a hundred strings or so, of which one or two are wanted. The request is walked
// once, and nothing is made of what is not. Text is taken for Latin-1: no key and no name that is looked for has anything
// beyond ASCII, and what is no UTF-8 must be refused with an answer, not an error.

export interface CheckReader {
  /** What stands in the CheckRequest. `scopes` is undefined when the bytes are no CheckRequest. */
  read(bytes: Buffer): { presented: Presented; scopes: string | undefined };
}

const SCOPES_EXTENSION = "latchkey-scopes";
const LENGTH_DELIMITED = 2;

/** Where the next byte is read. One walk at a time, from beginning to end. */
let at = 0;

export function createCheckReader(sources: GatewayKeySources): CheckReader {
  const wanted = [...sources.headers, ...(sources.bearer ? ["authorization"] : [])];
  /** By a name's length: the first letters, in lower case, of names of that length that are wanted. */
  const firstLetters: number[][] = [];
  for (const name of wanted) {
    firstLetters[name.length] ??= [];
    firstLetters[name.length]!.push(name.charCodeAt(0));
  }
  const wantsQuery = sources.queries.length > 0;

  let presented = nothingPresented();
  let scopes = "";

  // Letters in lower case differ from those in upper case by one bit. A name with `x` first and `l` third may be one of ours.
  const concerns = (bytes: Buffer, start: number, length: number): boolean => {
    const first = bytes[start]! | 0x20;
    if (first === 0x78 && length > 11 && (bytes[start + 2]! | 0x20) === 0x6c) return true;
    return firstLetters[length]?.includes(first) === true;
  };

  let nameAt = 0;
  let nameEnd = 0;
  let valueAt = 0;
  let valueEnd = 0;
  /** A map's entry, or a HeaderValue: a name, and a value as text or as bytes. */
  const readPair: ReadField = (_bytes, field, end) => {
    if (field === 1) {
      nameAt = at;
      nameEnd = end;
    } else if (field === 2 || (field === 3 && at < end)) {
      valueAt = at;
      valueEnd = end;
    }
    return true;
  };
  const readPairs = (bytes: Buffer, end: number): boolean => {
    nameEnd = nameAt;
    valueEnd = valueAt;
    return readFields(bytes, end, readPair);
  };

  const readHeader = (bytes: Buffer, end: number): boolean => {
    if (!readPairs(bytes, end)) return false;
    if (!concerns(bytes, nameAt, nameEnd - nameAt)) return true;
    const name = bytes.toString("latin1", nameAt, nameEnd);
    noteHeader(presented, sources, name, bytes.toString("latin1", valueAt, valueEnd));
    return true;
  };

  const readExtension = (bytes: Buffer, end: number): boolean => {
    if (!readPairs(bytes, end)) return false;
    if (nameEnd - nameAt !== SCOPES_EXTENSION.length) return true;
    if (bytes.toString("latin1", nameAt, nameEnd) !== SCOPES_EXTENSION) return true;
    scopes = bytes.toString("latin1", valueAt, valueEnd);
    return true;
  };

  const readHeaderMap: ReadField = (bytes, field, end) => field !== 1 || readHeader(bytes, end);
  const readHttp: ReadField = (bytes, field, end) => {
    if (field === 3) return readHeader(bytes, end);
    if (field === 13) return readFields(bytes, end, readHeaderMap);
    if (field === 4 && wantsQuery) noteQuery(presented, sources, bytes.toString("latin1", at, end));
    return true;
  };
  const readRequest: ReadField = (bytes, field, end) => field !== 2 || readFields(bytes, end, readHttp);
  const readAttributes: ReadField = (bytes, field, end) => {
    if (field === 4) return readFields(bytes, end, readRequest);
    return field !== 10 || readExtension(bytes, end);
  };
  const readCheck: ReadField = (bytes, field, end) => field !== 1 || readFields(bytes, end, readAttributes);

  return {
    read(bytes) {
      presented = nothingPresented();
      scopes = "";
      at = 0;
      const whole = readFields(bytes, bytes.length, readCheck);
      return { presented, scopes: whole ? scopes : undefined };
    },
  };
}

/** Reads the content of a length-delimited field, from `at` to `end`, as far as it is wanted. False: malformed. */
type ReadField = (bytes: Buffer, field: number, end: number) => boolean;

/** Walks a message from `at` to `end`. */
function readFields(bytes: Buffer, end: number, read: ReadField): boolean {
  while (at < end) {
    const tag = readVarint(bytes);
    const type = tag & 7;
    if (type === LENGTH_DELIMITED) {
      const length = readVarint(bytes);
      const stop = at + length;
      if (!(stop <= end) || !read(bytes, tag >>> 3, stop)) return false;
      at = stop;
    } else if (type === 0) readVarint(bytes);
    else if (type === 1) at += 8;
    else if (type === 5) at += 4;
    else return false;
  }
  return at === end;
}

/** Beyond the end of `bytes` or of what a varint may hold: NaN, which is in no range. */
function readVarint(bytes: Buffer): number {
  const first = bytes[at++]!;
  if (first < 0x80) return first;
  let value = first & 0x7f;
  for (let factor = 0x80, count = 1; count < 10; factor *= 0x80, count += 1) {
    const byte = bytes[at++] ?? Number.NaN;
    value += (byte & 0x7f) * factor;
    if (byte < 0x80) return value;
  }
  return Number.NaN;
}

// A CheckResponse that allows: status {}, ok_response { what the key says, what the request brought }, dynamic_metadata.
const OK_STATUS = "\x0a\x00";
const OK_RESPONSE = "\x1a";

/** Keys whose answers are kept, beside the view: a gateway asks about few keys at a time, and often. */
const MAX_KEPT = 10_000;

interface Kept {
  /** `OkHttpResponse.headers`, one character a byte. */
  headers: string;
  /** `CheckResponse.dynamic_metadata`, with its tag. */
  metadata: string;
}

export interface CheckWriter {
  /** Both after `room` bytes that are left for the caller to fill. */
  allowed(entry: Entry, presented: Presented, room: number): Buffer;
  denied(denial: Denial, room: number): Buffer;
}

export function createCheckWriter(sources: GatewayKeySources): CheckWriter {
  const keptAnswers = new LRUCache<Entry, Kept>({ max: MAX_KEPT });
  const usualRemovals = new WeakMap<readonly string[], string>();
  const denials = new WeakMap<Denial, Uint8Array>();

  const removalsOf = (presented: Presented): string => {
    const names = headersToRemove(presented, sources);
    if (presented.queryNames === undefined && presented.forged === undefined) {
      const known = usualRemovals.get(names) ?? encodedRemovals(names, []);
      usualRemovals.set(names, known);
      return known;
    }
    return encodedRemovals(names, presented.queryNames ?? []);
  };

  return {
    allowed(entry, presented, room) {
      let kept = keptAnswers.get(entry);
      if (kept === undefined) {
        kept = toKept(entry);
        keptAnswers.set(entry, kept);
      }
      const removals = removalsOf(presented);
      const length = kept.headers.length + removals.length;
      const head = OK_STATUS + OK_RESPONSE + varint(length);
      const message = Buffer.allocUnsafe(room + head.length + length + kept.metadata.length);
      message.write(head + kept.headers + removals + kept.metadata, room, "latin1");
      return message;
    },
    denied(denial, room) {
      const bytes = denials.get(denial) ?? encodedDenial(denial);
      denials.set(denial, bytes);
      const message = Buffer.allocUnsafe(room + bytes.length);
      message.set(bytes, room);
      return message;
    },
  };
}

function toKept(entry: Entry): Kept {
  const { id, userId, name, scopes } = entry.record;
  const headers = toBinary(
    OkHttpResponseSchema,
    create(OkHttpResponseSchema, { headers: setting(identityHeaders(entry)) }),
  );
  const dynamicMetadata = {
    ...{ user: userId, key_id: id, key_prefix: displayPrefix(entry.record), scopes: [...scopes] },
    ...(name !== undefined && { name }),
  };
  const metadata = toBinary(CheckResponseSchema, create(CheckResponseSchema, { dynamicMetadata }));
  return { headers: latin1(headers), metadata: latin1(metadata) };
}

function encodedRemovals(headersToRemove: readonly string[], queryParametersToRemove: readonly string[]): string {
  const removals = { headersToRemove: [...headersToRemove], queryParametersToRemove: [...queryParametersToRemove] };
  return latin1(toBinary(OkHttpResponseSchema, create(OkHttpResponseSchema, removals)));
}

const ERROR_RESPONSE = (5 << 3) | LENGTH_DELIMITED;

/**
 * An outage stands there twice, as a denial and after it as an error: of a oneof the last one counts. So an Envoy that knows
 * of errors takes that, and lets `failure_mode_allow` decide; one that doesn't refuses the request with the same answer.
 */
function encodedDenial({ status, headers, body, outage }: Denial): Uint8Array {
  const response = create(CheckResponseSchema, {
    status: { code: STATUS_CODES[status] },
    httpResponse: { case: "deniedResponse", value: { status: { code: status }, headers: setting(headers), body } },
  });
  const denied = toBinary(CheckResponseSchema, response);
  if (!outage) return denied;
  // After the status, which takes less than 128 bytes.
  const error = denied.slice(2 + denied[1]!);
  error[0] = ERROR_RESPONSE;
  return Buffer.concat([denied, error]);
}

/** Canonical codes. */
const STATUS_CODES: Record<Denial["status"], number> = { 401: 16, 403: 7, 429: 8, 431: 3, 503: 14 };

function setting(headers: Readonly<Record<string, string>>) {
  return Object.entries(headers).map(([key, value]) => ({
    ...{ header: { key, value }, append: false },
    appendAction: HeaderValueOption_HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
  }));
}

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
}

function varint(value: number): string {
  if (value < 0x80) return String.fromCharCode(value);
  return String.fromCharCode((value & 0x7f) | 0x80) + varint(value >>> 7);
}
