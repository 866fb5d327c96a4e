import { expect, test } from "@jest/globals";
import { auditedUserId, cleanUserAgent } from "../../src/keys/audit.ts";

const key = `lk_${"A".repeat(16)}_${"s".repeat(20)}`;
const token = "eyJhbG-_.eyJzdW-_.c2ln-_";

test("keys and tokens are taken out of a user agent, all of them, before it is cut", () => {
  expect(cleanUserAgent(`curl ${key} and ${token}, ${key}`)).toBe("curl [secret] and [secret], [secret]");
  for (const harmless of ["eyJ", "eyJa.b", "a_b_c", key.slice(0, -1)]) expect(cleanUserAgent(harmless)).toBe(harmless);
  const cut = cleanUserAgent(`${"x".repeat(250)} ${key}${"y".repeat(2_000)}`);
  expect(cut).toBe(`${"x".repeat(250)} [secr`);
  expect(cleanUserAgent("z".repeat(300))).toBe("z".repeat(256));
  const late = `${key.padEnd(1_020, "s")} ${"w".repeat(100)}`;
  expect(cleanUserAgent(late)).toBe("[secret] www");
});

test("a claimed user id is kept if it could be one, without what looks secret", () => {
  expect(auditedUserId("alice")).toBe("alice");
  expect(auditedUserId(`${key} ${key}`)).toBe("[secret] [secret]");
  for (const bad of ["", "x".repeat(257), 7, undefined, ["alice"]]) expect(auditedUserId(bad)).toBeUndefined();
});
