import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { crc32 } from "node:zlib";
import { describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import {
  base62,
  formatKey,
  isKeyId,
  KEY_PREFIX_PATTERN,
  parseAnyKey,
  parseKey,
  randomBase62,
} from "../../src/keys/text.ts";

const base62Text = (length: number) => fc.stringMatching(new RegExp(`^[0-9A-Za-z]{${length}}$`));
const prefix = fc.stringMatching(/^[0-9A-Za-z]{1,8}(_[0-9A-Za-z]{1,8}){0,2}$/);
const parts = fc.record({ prefix, id: base62Text(16), secret: base62Text(43) });

describe("the key grammar", () => {
  test("what is formatted is parsed back, whatever the prefix", () => {
    fc.assert(fc.property(parts, (key) => expect(parseKey(formatKey(key), [key.prefix])).toEqual(key)));
  });

  test("any change of one character makes a key malformed", () => {
    fc.assert(
      fc.property(parts, fc.nat(), fc.constantFrom(..."09AZaz_-é "), (key, position, character) => {
        const text = formatKey(key);
        const at = position % text.length;
        fc.pre(text[at] !== character);
        expect(parseAnyKey(text.slice(0, at) + character + text.slice(at + 1))).toBeUndefined();
      }),
    );
  });

  test("no string makes the parser throw, and only a formatted key is taken", () => {
    const anything = fc.oneof(fc.string({ unit: "binary" }), fc.string(), parts.map(formatKey));
    fc.assert(
      fc.property(anything, (text) => {
        const parsed = parseAnyKey(text);
        if (parsed !== undefined) expect(formatKey(parsed)).toBe(text);
      }),
    );
  });

  test("padded, foreign and cut keys are malformed", () => {
    const key = formatKey({ prefix: "lk", id: "0".repeat(16), secret: "z".repeat(43) });
    for (const bad of [
      "",
      " ",
      `${key} `,
      ` ${key}`,
      `${key}\n`,
      key.slice(1),
      key.slice(0, -1),
      `${key}0`,
      key.replace("lk_", "_"),
    ]) {
      expect(parseKey(bad, ["lk"])).toBeUndefined();
    }
    expect(parseKey(key, ["acme"])).toBeUndefined();
  });

  test("a right checksum does not make a key of what breaks the grammar", () => {
    const sealed = (prefix: string, id = "0".repeat(16), secret = "z".repeat(43), separators = "__") => {
      const body = `${prefix}${separators[0]}${id}${separators[1]}${secret}`;
      return body + base62(crc32(Buffer.from(body, "latin1")), 6);
    };
    expect(parseAnyKey(sealed("lk"))).toEqual({ prefix: "lk", id: "0".repeat(16), secret: "z".repeat(43) });
    for (const bad of ["-", "_", " ", "/", ":", "@", "[", "`", "{", "\u007f", "\u0080", "é"]) {
      for (const at of [0, 15])
        expect(parseAnyKey(sealed("lk", "0".repeat(at) + bad + "0".repeat(15 - at)))).toBeUndefined();
      for (const at of [0, 42])
        expect(parseAnyKey(sealed("lk", undefined, "z".repeat(at) + bad + "z".repeat(42 - at)))).toBeUndefined();
    }
    for (const separators of ["-_", "_-", "0_", "_0"])
      expect(parseAnyKey(sealed("lk", undefined, undefined, separators))).toBeUndefined();
    for (const prefix of ["_lk", "lk_", "l-k", "é"]) expect(parseAnyKey(sealed(prefix))).toBeUndefined();
  });

  test("a checksum is written in one way: a digit of less than nothing after a greater one is not taken", () => {
    const keys = Array.from({ length: 1_000 }, (_, n) =>
      formatKey({ prefix: "lk", id: base62(n, 16), secret: "z".repeat(43) }),
    );
    const key = keys.find((one) => /[0-8]z$/.test(one))!;
    expect(parseAnyKey(key)).toBeDefined();
    expect(parseAnyKey(`${key.slice(0, -2)}${Number(key.at(-2)) + 1}_`)).toBeUndefined();
  });

  test("a key's id has 16 letters and digits", () => {
    expect(isKeyId("0123456789ABCxyz")).toBe(true);
    for (const bad of ["", "0".repeat(15), "0".repeat(17), `${"0".repeat(15)}_`, `${"0".repeat(16)}\n`, "é".repeat(16)])
      expect(isKeyId(bad)).toBe(false);
  });

  test("a key's prefix has 1 to 32 characters", () => {
    const keyOf = (length: number) =>
      formatKey({ prefix: "x".repeat(length), id: "0".repeat(16), secret: "z".repeat(43) });
    expect([0, 1, 32, 33].map((length) => parseAnyKey(keyOf(length))?.prefix.length)).toEqual([
      undefined,
      1,
      32,
      undefined,
    ]);
  });

  test("the test vectors in docs/api.md are well-formed", () => {
    const page = readFileSync("docs/api.md", "utf8");
    const vectors = /Test vectors[^`]*```\n([\s\S]*?)```/.exec(page)![1]!.trim().split("\n");
    expect(vectors).toHaveLength(3);
    for (const vector of vectors) expect(parseAnyKey(vector)).toBeDefined();
  });

  test("a prefix has no _ at either end, and at most 32 characters", () => {
    for (const good of ["lk", "acme_live", "acme__live_eu", "A1", "0", "x".repeat(32)])
      expect(good).toMatch(KEY_PREFIX_PATTERN);
    for (const bad of ["", "_", "lk_", "_lk", "l k", "lk\n", "é", "x".repeat(33)])
      expect(bad).not.toMatch(KEY_PREFIX_PATTERN);
  });

  test("base62 puts the most significant digit first and pads with 0", () => {
    expect([base62(0, 3), base62(61, 3), base62(62, 3), base62(0xffffffff, 6)]).toEqual([
      "000",
      "00z",
      "010",
      "4gfFC3",
    ]);
  });
});

test("random characters are drawn without modulo bias: bytes from 248 up are drawn again", () => {
  const source = [[255, 248, 0, 61], [62, 247, 250], [5]].map((bytes) => Uint8Array.from(bytes));
  const sizes: number[] = [];
  const draw = (size: number) => {
    sizes.push(size);
    return source.shift()!;
  };
  expect([randomBase62(5, draw), sizes]).toEqual(["0z0z5", [5, 3, 1]]);
});

test("random characters are uniform over the alphabet", () => {
  const counts = new Map<string, number>();
  for (const character of randomBase62(124_000, randomBytes)) counts.set(character, (counts.get(character) ?? 0) + 1);
  const chiSquared = [...counts.values()].reduce((sum, count) => sum + (count - 2_000) ** 2 / 2_000, 0);
  expect(counts.size).toBe(62);
  // 61 degrees of freedom: above 150 once in 10^9 runs.
  expect(chiSquared).toBeLessThan(150);
});
