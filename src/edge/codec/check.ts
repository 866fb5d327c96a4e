import type { Entry } from "../../keys/verify/view.ts";
import { DENIAL_CODES, type Identity, identityHeaders } from "../answer.ts";
import { type Denial, scopesIn } from "../gateway/decide.ts";
import {
  headersToRemove,
  type KeySources,
  noteAuthorization,
  noteHeader,
  noteKeyHeader,
  noteQuery,
  nothingPresented,
  type Presented,
} from "../gateway/presented-key.ts";
import { delimited, LENGTH_DELIMITED, tag, varint } from "./protobuf.ts";

// Check's messages by hand: a CheckRequest has a hundred strings or so, of which one or two are wanted. The request is walked
// once, and nothing is made of what is not. Text is taken for Latin-1: no key and no name that is looked for has anything
// beyond ASCII, and what is no UTF-8 must be refused with an answer, not an error.

interface CheckReader {
  /** Contents of the CheckRequest. `requiredScopes` is undefined when the bytes are no CheckRequest. */
  read(bytes: Buffer): { presented: Presented; requiredScopes: readonly string[] | undefined };
}

const SCOPES_EXTENSION = Buffer.from("latchkey-scopes");

/** Where the next byte is read. One walk at a time, from beginning to end. */
let at = 0;

export function createCheckReader(sources: KeySources): CheckReader {
  const credentials = [
    ...sources.headers.map((name, index) => ({
      name: Buffer.from(name),
      note: (value: string) => noteKeyHeader(presented, sources, index, value),
    })),
    ...(sources.bearer
      ? [{ name: Buffer.from("authorization"), note: (value: string) => noteAuthorization(presented, sources, value) }]
      : []),
  ];
  /** By the lengths of their names. */
  const byLength: (typeof credentials)[] = [];
  for (const credential of credentials) {
    byLength[credential.name.length] ??= [];
    byLength[credential.name.length]!.push(credential);
  }
  const wantsQuery = sources.queries.length > 0;

  const scopesOf = createScopeParser();
  let lastList = Buffer.alloc(0);
  let lastScopes: readonly string[] = NONE;

  let presented = nothingPresented();
  let requiredScopes: readonly string[] = NONE;
  let nameAt = 0;
  let nameEnd = 0;
  let valueAt = 0;
  let valueEnd = 0;

  /** A map's entry, or a HeaderValue: a name, and a value as text or as bytes. */
  const readPairField: ReadField = (_bytes, field, end) => {
    if (field === 1) {
      nameAt = at;
      nameEnd = end;
    } else if (field === 2 || (field === 3 && at < end)) {
      valueAt = at;
      valueEnd = end;
    }
    return true;
  };
  const readPair = (bytes: Buffer, end: number): boolean => {
    nameEnd = nameAt;
    valueEnd = valueAt;
    return readFields(bytes, end, readPairField);
  };

  const readHeader = (bytes: Buffer, end: number): boolean => {
    if (!readPair(bytes, end)) return false;
    const value = bytes.toString("latin1", valueAt, valueEnd);
    const named = byLength[nameEnd - nameAt] ?? NONE;
    for (let index = 0; index < named.length; index += 1) {
      const { name, note } = named[index]!;
      if (!isAt(bytes, nameAt, name)) continue;
      note(value);
      return true;
    }
    // Another name, or one in capitals.
    noteHeader(presented, sources, bytes.toString("latin1", nameAt, nameEnd), value);
    return true;
  };

  /** Whether a name may be one that is wanted, or pass for one of ours: `x` first, `l` third. Capitals differ by one bit. */
  const concerns = (bytes: Buffer, start: number, length: number): boolean => {
    const first = bytes[start]! | 0x20;
    if (first === 0x78 && (bytes[start + 2]! | 0x20) === 0x6c) return true;
    const named = byLength[length] ?? NONE;
    for (let index = 0; index < named.length; index += 1) if (named[index]!.name[0] === first) return true;
    return false;
  };

  const readExtension = (bytes: Buffer, end: number): boolean => {
    if (!readPair(bytes, end)) return false;
    if (nameEnd - nameAt !== SCOPES_EXTENSION.length || !isAt(bytes, nameAt, SCOPES_EXTENSION)) return true;
    // Mostly the same as in the last call; a list is made once, so that its taker knows it again.
    if (valueEnd - valueAt === lastList.length && isAt(bytes, valueAt, lastList)) requiredScopes = lastScopes;
    else requiredScopes = scopesOf(bytes.toString("latin1", valueAt, valueEnd));
    if (requiredScopes !== lastScopes) {
      lastScopes = requiredScopes;
      lastList = Buffer.from(bytes.subarray(valueAt, valueEnd));
    }
    return true;
  };

  const readHeaderMapField: ReadField = (bytes, field, end) => field !== 1 || readHeader(bytes, end);
  const readHttpField: ReadField = (bytes, field, end) => {
    if (field === 3) return readHeader(bytes, end);
    if (field === 13) return readFields(bytes, end, readHeaderMapField);
    if (field === 4 && wantsQuery) noteQuery(presented, sources, bytes.toString("latin1", at, end));
    return true;
  };
  // Most of a CheckRequest is headers of no interest, and nearly all of them begin with their name: what comes after it need
  // not be read. Written without calls for these.
  const readHttp = (bytes: Buffer, end: number): boolean => {
    let position = at;
    while (position < end) {
      const low = bytes[position + 1]!;
      const high = low < 0x80 ? 0 : bytes[position + 2]!;
      if (bytes[position] !== HEADERS || high >= 0x80) {
        at = position;
        if (!readField(bytes, end, readHttpField)) return false;
        position = at;
        continue;
      }
      const start = position + (low < 0x80 ? 2 : 3);
      const stop = start + (low & 0x7f) + high * 0x80;
      if (!(stop <= end)) return false;
      const length = bytes[start + 1]!;
      const plain = bytes[start] === NAME && length < 0x80 && start + 2 + length <= stop;
      if (!plain || concerns(bytes, start + 2, length)) {
        at = start;
        if (!readHeader(bytes, stop)) return false;
      }
      position = stop;
    }
    at = position;
    return at === end;
  };
  const readRequestField: ReadField = (bytes, field, end) => field !== 2 || readHttp(bytes, end);
  const readAttribute: ReadField = (bytes, field, end) => {
    if (field === 4) return readFields(bytes, end, readRequestField);
    return field !== 10 || readExtension(bytes, end);
  };
  const readCheckField: ReadField = (bytes, field, end) => field !== 1 || readFields(bytes, end, readAttribute);

  return {
    read(bytes) {
      presented = nothingPresented();
      requiredScopes = NONE;
      at = 0;
      const whole = readFields(bytes, bytes.length, readCheckField);
      return { presented, requiredScopes: whole ? requiredScopes : undefined };
    },
  };
}

const NONE: readonly never[] = [];
const MAX_KNOWN_LISTS = 1_000;

/** Routes have few lists of scopes between them, each sent with every request. */
function createScopeParser(): (list: string) => readonly string[] {
  const known = new Map<string, readonly string[]>();
  return (list) => {
    const found = known.get(list) ?? scopesIn(list);
    if (known.size >= MAX_KNOWN_LISTS) known.clear();
    known.set(list, found);
    return found;
  };
}

const NAME = tag(1, LENGTH_DELIMITED);
const HEADERS = tag(3, LENGTH_DELIMITED);

function isAt(bytes: Buffer, start: number, text: Buffer): boolean {
  for (let index = 0; index < text.length; index += 1) if (bytes[start + index] !== text[index]) return false;
  return true;
}

/** Reads the content of a length-delimited field, from `at` to `end`, as far as it is wanted. False: malformed. */
type ReadField = (bytes: Buffer, field: number, end: number) => boolean;

/** Walks a message from `at` to `end`. */
function readFields(bytes: Buffer, end: number, read: ReadField): boolean {
  while (at < end) if (!readField(bytes, end, read)) return false;
  return at === end;
}

function readField(bytes: Buffer, end: number, read: ReadField): boolean {
  const key = readVarint(bytes);
  const type = key & 7;
  if (type === LENGTH_DELIMITED) {
    const length = readVarint(bytes);
    const stop = at + length;
    if (!(stop <= end) || !read(bytes, key >>> 3, stop)) return false;
    at = stop;
  } else if (type === 0) readVarint(bytes);
  else if (type === 1) at += 8;
  else if (type === 5) at += 4;
  else return false;
  return true;
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

/** Answers that are kept, beside the view: a gateway asks about few keys at a time, and often. */
export const MAX_KEPT_ANSWERS = 10_000;

/** An answer that allows, for a request that brings nothing unusual: whole, by whether a bearer is to be removed. */
type Kept = [Buffer | undefined, Buffer | undefined];

interface CheckWriter {
  /** Not to be written to: what is returned may be returned again. */
  allowed(entry: Entry, presented: Presented): Buffer;
  denied(denial: Denial): Buffer;
}

/** `maxKept`: answers that are kept, and with them the entries they are of. */
export function createCheckWriter(sources: KeySources, maxKept: number): CheckWriter {
  const { identity } = sources;
  let young = new Map<Entry, Kept>();
  let old = young;
  const denials = new WeakMap<Denial, Buffer>();
  const usualRemovals = [false, true].map((bearer) =>
    encodedRemovals(headersToRemove({ ...nothingPresented(), bearer }, sources), []),
  );

  return {
    allowed(entry, presented) {
      const { forged, queryNames, bearer } = presented;
      if (forged !== undefined || queryNames !== undefined) {
        return encodedAllowance(
          identity,
          entry,
          encodedRemovals(headersToRemove(presented, sources), queryNames ?? []),
        );
      }
      let kept = young.get(entry);
      if (kept === undefined) {
        kept = old.get(entry) ?? [undefined, undefined];
        // Cheaper than an LRU: what was not asked for in a whole generation is let go.
        if (young.size >= maxKept / 2) {
          old = young;
          young = new Map();
        }
        young.set(entry, kept);
      }
      const variant = Number(bearer);
      kept[variant] ??= encodedAllowance(identity, entry, usualRemovals[variant]!);
      return kept[variant];
    },
    denied(denial) {
      const bytes = denials.get(denial) ?? encodedDenial(denial);
      denials.set(denial, bytes);
      return bytes;
    },
  };
}

// A CheckResponse that allows: status {}, ok_response { what the key says, what the request brought }, dynamic_metadata.
// By hand, since the generic codec takes as long for it as for several calls. One character a byte.
const OK_STATUS = "\x0a\x00";

function encodedAllowance(identity: Identity, entry: Entry, removals: string): Buffer {
  const headers = identityHeaders(identity, entry);
  let ok = "";
  for (const name in headers) ok += delimited(2, setting(name, headers[name]!));
  const message = OK_STATUS + delimited(3, ok + removals) + delimited(4, metadata(identity, entry));
  return Buffer.from(message, "latin1");
}

/** HeaderValueOption: the header, `append` false, `append_action` OVERWRITE_IF_EXISTS_OR_ADD. */
function setting(name: string, value: string): string {
  return `${delimited(1, delimited(1, name) + delimited(2, value))}\x12\x00\x18\x02`;
}

/** A Struct of what the key says, as it is stored. */
function metadata({ fields }: Identity, entry: Entry): string {
  const text = (value: string) => delimited(3, utf8(value));
  const list = (values: readonly string[]) => delimited(6, values.map((value) => delimited(1, text(value))).join(""));
  const field = (name: string, value: string) => delimited(1, delimited(1, name) + delimited(2, value));
  const struct = (map: Readonly<Record<string, string>>) =>
    delimited(
      5,
      Object.entries(map)
        .map(([name, value]) => field(name, text(value)))
        .join(""),
    );
  return fields
    .map(({ metadata, value }) => {
      const of = metadata === undefined ? undefined : value(entry);
      if (metadata === undefined || of === undefined || of === "") return "";
      if (typeof of === "string") return field(metadata, text(of));
      return field(metadata, isList(of) ? list(of) : struct(of));
    })
    .join("");
}

function isList(value: object): value is readonly string[] {
  return Array.isArray(value);
}

function utf8(text: string): string {
  return Buffer.from(text).toString("latin1");
}

function encodedRemovals(headers: readonly string[], queryParameters: readonly string[]): string {
  const all = headers.map((name) => delimited(5, name));
  return all.concat(queryParameters.map((name) => delimited(8, name))).join("");
}

/**
 * An outage stands there twice, as a denial and after it as an error: of a oneof the last one counts. So an Envoy that knows
 * of errors takes that, and lets `failure_mode_allow` decide; one that doesn't refuses the request with the same answer.
 */
function encodedDenial({ status, headers, body, outage }: Denial): Buffer {
  let content = delimited(1, `\x08${varint(status)}`);
  for (const name in headers) content += delimited(2, setting(name, headers[name]!));
  content += delimited(3, utf8(body));
  const denied = delimited(1, `\x08${varint(DENIAL_CODES[status])}`) + delimited(2, content);
  return Buffer.from(outage ? denied + delimited(5, content) : denied, "latin1");
}
