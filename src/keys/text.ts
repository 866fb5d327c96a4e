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
/** `LATCHKEY_KEY_PREFIX`: 1 to 32 letters, digits and `_`, with no `_` at either end. */
export const KEY_PREFIX_PATTERN = /^(?=.{1,32}$)[0-9A-Za-z]+(?:_+[0-9A-Za-z]+)*$/;

/** A whole id, as a regular expression. */
export const KEY_ID_PATTERN: string = `^[0-9A-Za-z]{${ID_LENGTH}}$`;
const KEY_ID = new RegExp(KEY_ID_PATTERN);
/** Texts that look like a key or a JWT, or like the beginning of one that was cut. */
const SECRETS = new RegExp(`[0-9A-Za-z]+_[0-9A-Za-z]{${ID_LENGTH}}_[0-9A-Za-z]+|eyJ[\\w-]+\\.[\\w-]+\\.[\\w-]*`, "g");
/** The id of a key, with so much behind it that a part of the secret is there: an id has no more characters. */
const BEGUN_SECRET = new RegExp(`(_[0-9A-Za-z]{${ID_LENGTH}})_(?![0-9A-Za-z]{0,${ID_LENGTH}}$)[^_]*$`);
/** A prefix, an id, and what may be the beginning of a secret. */
const CUT_KEY = new RegExp(`^(.+)_([0-9A-Za-z]{${ID_LENGTH}})_[0-9A-Za-z]{0,${ID_LENGTH}}$`);

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

export function isKeyId(text: string): boolean {
  return KEY_ID.test(text);
}

/** The parts of `text` if it is a well-formed key with a right checksum and one of `prefixes`; else undefined. */
export function parseKey(text: string, prefixes: readonly string[]): ParsedKey | undefined {
  const parts = split(text);
  return parts !== undefined && prefixes.includes(parts.prefix) ? parts : undefined;
}

/** As `parseKey`, under any prefix. */
export function parseAnyKey(text: string): ParsedKey | undefined {
  const parts = split(text);
  return parts !== undefined && KEY_PREFIX_PATTERN.test(parts.prefix) ? parts : undefined;
}

/** `text` without keys and tokens, whole or cut: people paste them into anything. */
export function redacted(text: string): string {
  return text.replace(SECRETS, "[secret]");
}

/** A text by which somebody looks for keys, without a secret that may be in it. */
interface PastedKey {
  /** Less the secret where it is plain that there is one. */
  text: string;
  /** The key, where the text's end may be the beginning of an id as well as of a secret. */
  cut?: Pick<ParsedKey, "prefix" | "id">;
}

export function readPastedKey(given: string): PastedKey {
  const text = given.trim().replace(BEGUN_SECRET, "$1");
  const [, prefix, id] = CUT_KEY.exec(text) ?? [];
  return prefix === undefined || id === undefined ? { text } : { text, cut: { prefix, id } };
}

/**
 * The parts of what ends like a key and has a right checksum. One pass by hand: garbage has to be cheaper than a good key,
 * and expressions and zlib take longer than all else that is done for it.
 */
function split(text: string): ParsedKey | undefined {
  const prefixLength = text.length - TAIL_LENGTH;
  if (prefixLength < 1 || prefixLength > 32) return undefined;
  const bodyLength = text.length - CHECKSUM_LENGTH;
  const idStart = prefixLength + 1;
  const secretStart = idStart + ID_LENGTH + 1;
  let crc = -1;
  for (let at = 0; at < bodyLength; at += 1) {
    const code = text.charCodeAt(at);
    if (at >= prefixLength) {
      const isSeparator = at === idStart - 1 || at === secretStart - 1;
      if (isSeparator ? code !== UNDERSCORE : !(DIGITS[code]! >= 0)) return undefined;
    }
    crc = CRC[(crc ^ code) & 0xff]! ^ (crc >>> 8);
  }
  let checksum = 0;
  for (let at = bodyLength; at < text.length; at += 1) {
    const digit = DIGITS[text.charCodeAt(at)]!;
    if (!(digit >= 0)) return undefined;
    checksum = checksum * 62 + digit;
  }
  if (checksum !== ~crc >>> 0) return undefined;
  const prefix = text.slice(0, prefixLength);
  return { prefix, id: text.slice(idStart, secretStart - 1), secret: text.slice(secretStart, bodyLength) };
}

const UNDERSCORE = 0x5f;
/** The value of each base62 digit by its code; -1: none. */
const DIGITS = Int8Array.from({ length: 128 }, (_, code) => ALPHABET.indexOf(String.fromCharCode(code)));
/** CRC-32 (IEEE) of each byte. */
const CRC = Int32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit += 1) crc = (crc & 1) === 0 ? crc >>> 1 : (crc >>> 1) ^ 0xedb88320;
  return crc;
});
