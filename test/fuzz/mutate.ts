import { below, pick, type Random } from "./random.ts";

/** What parsers trip over: ends of ranges, separators, the letters of every protocol here. */
const INTERESTING = [
  ...[
    "",
    "\0",
    "\r\n",
    "\r\n\r\n",
    "\n",
    " ",
    "\t",
    ":",
    ";",
    ",",
    "_",
    "%",
    "%00",
    "?",
    "#",
    "=",
    "&",
    '"',
    "\\",
    "{",
    "}",
    "[]",
  ],
  ...[
    "null",
    "true",
    "-1",
    "1e9",
    "\u007f",
    "\u0080",
    "\u00ff",
    "\u00c3\u0028",
    "__proto__",
    "Bearer ",
    "lk_",
    "0\r\n\r\n",
  ],
  ...["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "content-length", "POST ", "HTTP/1.1", "*"],
  ...[
    "\u0000\u0000\u0000\u0000",
    "\u00ff\u00ff\u00ff\u00ff",
    "\u007f\u00ff\u00ff\u00ff",
    "\u0080\u0080\u0080\u0080\u0001",
  ],
].map((text) => Buffer.from(text, "latin1"));

type Mutation = (bytes: Buffer, random: Random, others: readonly Buffer[]) => Buffer;

const MUTATIONS: readonly Mutation[] = [
  (bytes, random) => replaced(bytes, random, (byte) => byte ^ (1 << below(random, 8))),
  (bytes, random) => replaced(bytes, random, () => below(random, 256)),
  (bytes, random) => replaced(bytes, random, (byte) => byte + pick(random, [-1, 1, 16, 128])),
  (bytes, random) => inserted(bytes, random, pick(random, INTERESTING)),
  (bytes, random) => overwritten(bytes, random, pick(random, INTERESTING)),
  (bytes, random) => {
    const { start, end } = range(bytes, random);
    return Buffer.concat([bytes.subarray(0, start), bytes.subarray(end)]);
  },
  (bytes, random) => {
    const { start, end } = range(bytes, random);
    return inserted(bytes, random, bytes.subarray(start, end));
  },
  (bytes, random) => bytes.subarray(0, below(random, bytes.length + 1)),
  (bytes, random, others) => {
    const other = pick(random, others);
    return Buffer.concat([
      bytes.subarray(0, below(random, bytes.length + 1)),
      other.subarray(below(random, other.length + 1)),
    ]);
  },
  (bytes, random, others) => Buffer.concat([bytes, pick(random, others)]),
];

const MAX_BYTES = 40_000;

/** One to eight changes. */
export function mutate(bytes: Buffer, random: Random, others: readonly Buffer[]): Buffer {
  let mutated = bytes;
  for (let left = 1 + below(random, 8); left > 0; left -= 1) mutated = pick(random, MUTATIONS)(mutated, random, others);
  return mutated.subarray(0, MAX_BYTES);
}

function range({ length }: Buffer, random: Random): { start: number; end: number } {
  const start = below(random, length + 1);
  return { start, end: Math.min(length, start + 1 + below(random, pick(random, [2, 8, 64, length + 1]))) };
}

function replaced(bytes: Buffer, random: Random, change: (byte: number) => number): Buffer {
  const copy = Buffer.from(bytes);
  const at = below(random, bytes.length);
  if (bytes.length > 0) copy[at] = change(copy[at]!);
  return copy;
}

function inserted(bytes: Buffer, random: Random, piece: Buffer): Buffer {
  const at = below(random, bytes.length + 1);
  return Buffer.concat([bytes.subarray(0, at), piece, bytes.subarray(at)]);
}

function overwritten(bytes: Buffer, random: Random, piece: Buffer): Buffer {
  const at = below(random, bytes.length + 1);
  return Buffer.concat([bytes.subarray(0, at), piece, bytes.subarray(at + piece.length)]);
}
