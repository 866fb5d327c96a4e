import { crc32 } from "node:zlib";

/**
 * The key grammar: `<prefix>_<id>_<secret><checksum>`, letters, digits and `_` only, so that a double click selects it.
 * The checksum (CRC-32 of the ASCII bytes before it) turns typos and random strings away without a look-up and lets a
 * secret scanner check a hit offline. It proves nothing.
 */
export const ID_LENGTH = 16;
/** 43 base62 characters carry 256 bits. */
export const SECRET_LENGTH = 43;
const CHECKSUM_LENGTH = 6;

const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const TAIL_LENGTH = 1 + ID_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH;
/** Where the id begins, counted from the end of a key. */
export const ID_FROM_END = TAIL_LENGTH - 1;
const TAIL = new RegExp(
  `^_([0-9A-Za-z]{${ID_LENGTH}})_([0-9A-Za-z]{${SECRET_LENGTH}})[0-9A-Za-z]{${CHECKSUM_LENGTH}}$`,
);

/** What `LATCHKEY_KEY_PREFIX` may be: 1 to 32 letters, digits and `_`, with no `_` at either end. */
export const KEY_PREFIX_PATTERN = /^(?=.{1,32}$)[0-9A-Za-z]+(?:_+[0-9A-Za-z]+)*$/;

export interface ParsedKey {
  prefix: string;
  id: string;
  secret: string;
}

/** `value` in base62, most significant digit first, left-padded with `0` to `length`. */
export function base62(value: number, length: number): string {
  let digits = "";
  for (let rest = value; digits.length < length; rest = Math.floor(rest / 62)) digits = ALPHABET[rest % 62] + digits;
  return digits;
}

/** `length` characters drawn uniformly: bytes from 248 (4 × 62) up are drawn again, or the low digits would be favoured. */
export function randomBase62(length: number, randomBytes: (size: number) => Uint8Array): string {
  let text = "";
  while (text.length < length) {
    for (const byte of randomBytes(length - text.length)) if (byte < 248) text += ALPHABET[byte % 62];
  }
  return text;
}

export function formatKey({ prefix, id, secret }: ParsedKey): string {
  const body = `${prefix}_${id}_${secret}`;
  return body + base62(crc32(body), CHECKSUM_LENGTH);
}

/** The parts of `text` if it is a well-formed key with a right checksum and one of `prefixes`; else undefined. */
export function parseKey(text: string, prefixes: readonly string[]): ParsedKey | undefined {
  const parsed = parseAnyKey(text);
  return parsed !== undefined && prefixes.includes(parsed.prefix) ? parsed : undefined;
}

/** As `parseKey`, under any prefix. */
export function parseAnyKey(text: string): ParsedKey | undefined {
  const prefixLength = text.length - TAIL_LENGTH;
  if (prefixLength < 1 || prefixLength > 32) return undefined;
  const prefix = text.slice(0, prefixLength);
  const tail = TAIL.exec(text.slice(prefixLength));
  if (tail === null || !KEY_PREFIX_PATTERN.test(prefix)) return undefined;
  const body = text.slice(0, -CHECKSUM_LENGTH);
  if (base62(crc32(body), CHECKSUM_LENGTH) !== text.slice(-CHECKSUM_LENGTH)) return undefined;
  return { prefix, id: tail[1]!, secret: tail[2]! };
}
