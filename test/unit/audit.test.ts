import { expect, test } from "@jest/globals";
import { auditedKeyIds, auditedUserId, cleanUserAgent } from "../../src/keys/audit/entry.ts";
import { formatKey } from "../../src/keys/text.ts";

const ID = "0123456789abcDEF";
const KEY = formatKey({ prefix: "acme_live", id: ID, secret: `${"s3".repeat(21)}X` });
const TOKEN = "eyJh-b_c.eyJz-d_e.Sig-n_1";

const CLEANED: [text: string, cleaned: string][] = [
  ["curl/8.5 (a_b; c.d.e)", "curl/8.5 (a_b; c.d.e)"],
  [`curl/8 lk_${ID}_${"7".repeat(49)} x`, "curl/8 [secret] x"],
  // The part of a longer prefix before its `_` is nobody's secret.
  [KEY, "acme_[secret]"],
  [`lk_${ID}_${"z".repeat(20)}`, "[secret]"],
  // Cut off, by whoever sent it or because it was too long.
  [`lk_${ID}_z`, "[secret]"],
  [`lk_${ID.slice(1)}_${"z".repeat(20)}`, `lk_${ID.slice(1)}_${"z".repeat(20)}`],
  [`Bearer ${TOKEN}; ${TOKEN}`, "Bearer [secret]; [secret]"],
  ["an unsigned eyJhbGci.eyJzdWIi. too", "an unsigned [secret] too"],
  ["eyJ.eyJ.eyJ", "eyJ.eyJ.eyJ"],
];

test("what looks like a key or a token is cut out of what a caller says of itself, wherever it stands", () => {
  for (const [text, cleaned] of CLEANED) {
    expect(cleanUserAgent(text)).toBe(cleaned);
    expect(auditedUserId(text)).toBe(cleaned);
  }
});

test("256 characters of a user agent are kept, none of them of a secret, and only its first 1,024 are looked at", () => {
  expect(cleanUserAgent("a\u0085b\tc")).toBe("a b c");
  expect(cleanUserAgent("x".repeat(256))).toBe("x".repeat(256));
  expect(cleanUserAgent("x".repeat(257))).toBe("x".repeat(256));
  const atTheCut = `${"x ".repeat(124)}${KEY}`;
  expect(cleanUserAgent(atTheCut)).toBe(`${"x ".repeat(124)}acme_[secret]`.slice(0, 256));
  const long = `lk_${ID}_`.padEnd(1_020, "z");
  expect(cleanUserAgent(`${long} abcdef`)).toBe("[secret] abc");
});

test("a claimed user is kept only where it could be a user's id", () => {
  const claims: unknown[] = ["alice", "x".repeat(256), "x".repeat(257), "", "\ud800", 7, undefined];
  expect(claims.map(auditedUserId)).toEqual(["alice", "x".repeat(256), ...Array(5).fill(undefined)]);
});

test("a call was about the key whose id or whole it names, and nothing else of what was sent is kept", () => {
  const asked: [object, string[]][] = [
    [{ keyId: ID }, [ID]],
    [{ key: KEY }, [ID]],
    [{ keyId: 7, key: KEY }, [ID]],
    [{ keyId: KEY }, []],
    [{ keyId: "" }, []],
    [{ key: ID }, []],
    [{ key: `${KEY}x` }, []],
    [{ key: 7 }, []],
    [{}, []],
  ];
  for (const [fields, ids] of asked) expect([fields, auditedKeyIds(fields)]).toEqual([fields, ids]);
});
