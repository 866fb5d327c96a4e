import { expect, test } from "@jest/globals";
import type { FieldViolation } from "../../src/keys/errors.ts";
import { checkMetadata, checkMetadataSize, fromMetadata, isMetadataName, toMetadata } from "../../src/keys/metadata.ts";

const faultsOf = (map: Record<string, string>) => {
  const violations: FieldViolation[] = [];
  checkMetadata(map, violations);
  checkMetadataSize(toMetadata(map), violations);
  return violations.map(({ field, description }) => `${field} ${description}`);
};

test("entries are stored as sorted texts, and read back whatever is in them", () => {
  const map = { plan: "a=b=c", "plan-x": "", note: "ü 😀", a: "-" };
  expect(toMetadata(map)).toEqual(["a=-", "note=ü 😀", "plan-x=", "plan=a=b=c"]);
  expect(fromMetadata(toMetadata(map))).toEqual(map);
  expect(toMetadata({ plan: "1", a: "2" })).toEqual(toMetadata({ a: "2", plan: "1" }));
});

test.each([
  ["a", true],
  ["plan", true],
  ["0-1", true],
  ["x".repeat(64), true],
  ["x".repeat(65), false],
  ["", false],
  ["-a", false],
  ["a-", false],
  ["Plan", false],
  ["a_b", false],
  ["a=b", false],
  ["a\n", false],
  ["latchkey", false],
  ["latchkey-plan", false],
])("the name %j may be one of metadata: %s", (name, may) => {
  expect(isMetadataName(name)).toBe(may);
  expect(faultsOf({ [name]: "x" }).length === 0).toBe(may);
});

test.each([
  ["a line break", "a\r\nx-latchkey-user: root", "must not contain control characters"],
  ["NUL", "\u0000", "must not contain control characters"],
  ["a half character", "\ud800", "must be well-formed Unicode"],
  ["257 characters", "😀".repeat(257), "must have at most 256 characters, and has 257"],
])("a value with %s is refused, by the name of its entry", (_what, value, why) => {
  expect(faultsOf({ plan: value })).toContainEqual(`metadata.plan ${why}`);
});

test("sixteen entries of two KiB together are the most", () => {
  const entries = (count: number, value = "") =>
    Object.fromEntries(Array.from({ length: count }, (_, index) => [`n${index + 10}`, value]));
  expect(faultsOf(entries(16))).toEqual([]);
  expect(faultsOf(entries(17))).toEqual(["metadata must have at most 16 entries, and has 17"]);
  // Three bytes of name each, and 125 of value: 2,048.
  expect(faultsOf(entries(16, `${"€".repeat(41)}ab`))).toEqual([]);
  expect(faultsOf({ ...entries(16, `${"€".repeat(41)}ab`), n10: `${"€".repeat(42)}` })).toEqual([
    "metadata must have at most 2048 bytes, names and values together, and has 2049",
  ]);
});
