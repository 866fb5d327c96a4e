import { expect, test } from "@jest/globals";
import { describe as describePeppers, formatPeppers } from "../../src/cli/peppers.ts";

test("a pepper may go once no good key is under it, however many ended ones are", () => {
  const { outdated, peppers } = describePeppers(
    ["p3", "p2", "p1"],
    [
      { pepper: "p3", good: 5, all: 6 },
      { pepper: "p2", good: 2, all: 9 },
      { pepper: "p1", good: 0, all: 7 },
    ],
  );
  expect(outdated).toBe(2);
  expect(peppers.map(({ pepper, advice }) => [pepper, advice])).toEqual([
    ["p3", "newest"],
    ["p2", expect.stringContaining("keep it in the ring")],
    ["p1", "* may be taken out of the ring"],
  ]);
});

test("peppers that were taken out too early, and keys without a fingerprint, are named with what they cost", () => {
  const report = describePeppers(
    ["p2"],
    [
      { pepper: "p1", good: 3, all: 4 },
      { pepper: undefined, good: 1, all: 1 },
    ],
  );
  expect(report).toMatchObject({
    outdated: 4,
    peppers: [
      { pepper: "p2", known: true, good: 0, all: 0 },
      { pepper: "p1", known: false, advice: expect.stringContaining("one argon2") },
      { pepper: null, known: false, advice: expect.stringContaining("one argon2") },
    ],
  });
  expect(formatPeppers(report)).toMatch(/^\(none\) .* 1 .* 1 .*argon2/m);
});
