import { EMPTY } from "../wire-format.ts";

// HPACK, RFC 7541: how HTTP/2 writes headers.

/** A block that can't be read: the connection is over, since both ends' tables would differ from here on. */
export class HpackError extends Error {
  override readonly name = "HpackError";
}

export interface HpackDecoder {
  /** Names and values by turns, one character a byte. Empty when they are too large: the table followed to the end. */
  decode(block: Buffer): string[];
  /** One more at each change of the dynamic table: a block means what it meant while this stands. */
  readonly version: number;
}

interface HpackLimits {
  /** Of the dynamic table: what this end's SETTINGS_HEADER_TABLE_SIZE says. */
  maxTableBytes: number;
  /** Of all names and values of a block together. A bomb of few bytes that refer to long entries ends here. */
  maxListBytes: number;
}

/** RFC 7541, 4.1: what an entry counts beyond its name and value. */
export const ENTRY_OVERHEAD = 32;

export function createHpackDecoder({ maxTableBytes, maxListBytes }: HpackLimits): HpackDecoder {
  /** Names and values by turns; the newest entry last. What was evicted stands before `first`. */
  let table: string[] = [];
  let first = 0;
  let tableBytes = 0;
  let tableLimit = maxTableBytes;
  let version = 0;

  const evictDownTo = (limit: number) => {
    while (tableBytes > limit) {
      tableBytes -= table[first]!.length + table[first + 1]!.length + ENTRY_OVERHEAD;
      first += 2;
    }
    if (first > 256 && first * 2 > table.length) {
      table = table.slice(first);
      first = 0;
    }
  };
  const insert = (name: string, value: string) => {
    const bytes = name.length + value.length + ENTRY_OVERHEAD;
    version += 1;
    evictDownTo(Math.max(0, tableLimit - bytes));
    if (bytes > tableLimit) return;
    table.push(name, value);
    tableBytes += bytes;
  };

  let block: Buffer = EMPTY;
  let at = 0;

  /** RFC 7541, 5.1. */
  const integer = (prefixBits: number): number => {
    const mask = (1 << prefixBits) - 1;
    let value = byte() & mask;
    if (value < mask) return value;
    for (let shift = 0; shift <= 14; shift += 7) {
      const next = byte();
      value += (next & 0x7f) << shift;
      if (next < 0x80) return value;
    }
    throw new HpackError("an integer is too large");
  };
  const byte = (): number => {
    if (at >= block.length) throw new HpackError("the block ends too early");
    return block[at++]!;
  };
  const text = (): string => {
    const isHuffman = at < block.length && block[at]! >= 0x80;
    const length = integer(7);
    const end = at + length;
    if (end > block.length) throw new HpackError("the block ends too early");
    const value = isHuffman ? decodeHuffman(block, at, end) : block.toString("latin1", at, end);
    at = end;
    return value;
  };
  /** Of a name in the tables; its value stands after it. */
  const place = (index: number): { fields: readonly string[]; at: number } => {
    if (index <= STATIC_ENTRIES && index > 0) return { fields: STATIC_TABLE, at: (index - 1) * 2 };
    const found = table.length - (index - STATIC_ENTRIES) * 2;
    if (index === 0 || found < first) throw new HpackError("an index is not in the table");
    return { fields: table, at: found };
  };

  return {
    decode(source) {
      block = source;
      at = 0;
      const list: string[] = [];
      let listBytes = 0;
      while (at < block.length) {
        const kind = block[at]!;
        let name: string;
        let value: string;
        if (kind >= 0x80) {
          const { fields, at: found } = place(integer(7));
          name = fields[found]!;
          value = fields[found + 1]!;
        } else if (kind >= 0x20 && kind < 0x40) {
          // A change of the table's size stands before all fields.
          if (listBytes > 0) throw new HpackError("the table is resized within a block");
          tableLimit = integer(5);
          if (tableLimit > maxTableBytes) throw new HpackError("the table is made larger than allowed");
          version += 1;
          evictDownTo(tableLimit);
          continue;
        } else {
          const isKept = kind >= 0x40;
          const index = integer(isKept ? 6 : 4);
          if (index === 0) name = text();
          else {
            const { fields, at: found } = place(index);
            name = fields[found]!;
          }
          value = text();
          if (isKept) insert(name, value);
        }
        listBytes += name.length + value.length + ENTRY_OVERHEAD;
        if (listBytes <= maxListBytes) list.push(name, value);
        else list.length = 0;
      }
      block = EMPTY;
      return list;
    },
    get version() {
      return version;
    },
  };
}

/** RFC 7541, appendix A: a name, and a value where there is one, a line. */
const STATIC_TABLE = `
:authority
:method GET
:method POST
:path /
:path /index.html
:scheme http
:scheme https
:status 200
:status 204
:status 206
:status 304
:status 400
:status 404
:status 500
accept-charset
accept-encoding gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate
`
  .trim()
  .split("\n")
  .flatMap((line) => /^(\S+) ?(.*)$/.exec(line)!.slice(1));
const STATIC_ENTRIES = STATIC_TABLE.length / 2;

/** RFC 7541, appendix B: the bits of each byte's code, and of the end's, in base 36. The codes follow: it is canonical. */
const CODE_LENGTHS = `
dnsssssssoussussssssssusssssssss6aacd68baa8b8666555666666678f6ca
d67777777777777777777777878djde6f56565666577666567655677777fbeds
kmkkmmmnmnnnnnonoomnonnnnlmnmnnomlkmmnnlnmmolmnnllmlnmnnkmmmnmmn
qqkjmnmpqqqrrqopjlqrrqrollqqsrrrkoklmllnmmppooqnqrqqrrrrrsrrrrrq
u
`
  .replaceAll("\n", "")
  .split("")
  .map((digit) => Number.parseInt(digit, 36));
const END = 256;

/** The code as a machine that is fed four bits at a time: no code is shorter, so that a step ends one at most. */
const { NEXT, SYMBOL, MAY_END } = buildHuffman();

function buildHuffman() {
  /** Of each inner node, where 0 and 1 lead: to a node, or to a symbol, which is written as its complement. */
  const nodes: [number, number][] = [[0, 0]];
  const symbols = CODE_LENGTHS.map((bits, symbol) => ({ bits, symbol })).sort(
    (a, b) => a.bits - b.bits || a.symbol - b.symbol,
  );
  let code = 0;
  let width = 0;
  for (const { bits, symbol } of symbols) {
    code *= 2 ** (bits - width);
    width = bits;
    let node = 0;
    for (let bit = bits - 1; bit > 0; bit -= 1) {
      const side = (code >>> bit) & 1;
      if (nodes[node]![side] === 0) nodes[node]![side] = nodes.push([0, 0]) - 1;
      node = nodes[node]![side]!;
    }
    nodes[node]![code & 1] = ~symbol;
    code += 1;
  }
  const NEXT = new Int16Array(nodes.length * 16);
  const SYMBOL = new Int16Array(nodes.length * 16).fill(-1);
  for (let start = 0; start < nodes.length; start += 1) {
    for (let nibble = 0; nibble < 16; nibble += 1) {
      let node = start;
      for (let bit = 3; bit >= 0; bit -= 1) {
        const to = nodes[node]![(nibble >>> bit) & 1]!;
        if (to < 0) SYMBOL[start * 16 + nibble] = ~to;
        node = Math.max(to, 0);
      }
      NEXT[start * 16 + nibble] = node;
    }
  }
  // Bits left over at the end must be fewer than eight, all ones.
  const MAY_END = new Set<number>();
  for (let node = 0, bits = 0; bits < 8; bits += 1) {
    MAY_END.add(node);
    node = nodes[node]![1]!;
  }
  return { NEXT, SYMBOL, MAY_END };
}

const scratch = Buffer.allocUnsafe(4_096);

function decodeHuffman(source: Buffer, start: number, end: number): string {
  const most = Math.ceil(((end - start) * 8) / 5);
  const target = most <= scratch.length ? scratch : Buffer.allocUnsafe(most);
  let length = 0;
  let node = 0;
  const step = (nibble: number) => {
    const index = node * 16 + nibble;
    const symbol = SYMBOL[index]!;
    if (symbol === END) throw new HpackError("a string has its own end in it");
    if (symbol >= 0) target[length++] = symbol;
    node = NEXT[index]!;
  };
  for (let at = start; at < end; at += 1) {
    step(source[at]! >>> 4);
    step(source[at]! & 15);
  }
  if (!MAY_END.has(node)) throw new HpackError("a string ends within a character");
  return target.toString("latin1", 0, length);
}

/** Fields as they are, without either table: it can be read whatever came before. */
export function encodeFields(list: readonly string[]): Buffer {
  let size = 0;
  for (const text of list) size += 4 + text.length;
  const block = Buffer.allocUnsafe(size + list.length);
  let at = 0;
  for (let index = 0; index < list.length; index += 2) {
    block[at++] = 0;
    at = putText(block, at, list[index]!);
    at = putText(block, at, list[index + 1]!);
  }
  return block.subarray(0, at);
}

function putText(target: Buffer, start: number, text: string): number {
  let at = start;
  if (text.length < 0x7f) target[at++] = text.length;
  else {
    target[at++] = 0x7f;
    let rest = text.length - 0x7f;
    for (; rest >= 0x80; rest >>>= 7) target[at++] = (rest & 0x7f) | 0x80;
    target[at++] = rest;
  }
  return at + target.write(text, at, "latin1");
}
