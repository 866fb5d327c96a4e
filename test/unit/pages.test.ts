import { expect, test } from "@jest/globals";
import type { FieldViolation } from "../../src/keys/errors.ts";
import { checkPageSize, pageOf, readPageToken } from "../../src/keys/pages.ts";

const items = [{ id: "a1" }, { id: "b2" }, { id: "c3" }];
const read = (token: string, search: object) => {
  const violations: FieldViolation[] = [];
  return { last: readPageToken(token, search, violations), fields: violations.map(({ field }) => field) };
};

test("a page's token leads on after its last item, and the last page has none", () => {
  const page = pageOf(items, 2, { userId: "u" });
  expect(page.items).toEqual(items.slice(0, 2));
  expect(read(page.nextToken!, { userId: "u" })).toEqual({ last: "b2", fields: [] });
  expect(pageOf(items, 3, {}).nextToken).toBeUndefined();
  expect(read(pageOf(items, 1, {}).nextToken!, {})).toEqual({ last: "a1", fields: [] });
  expect(read("", {})).toEqual({ last: undefined, fields: [] });
});

test("a token of another search, or one that was altered, is refused", () => {
  const { nextToken: token } = pageOf(items, 2, { userId: "u" });
  const altered = Buffer.from(token!, "base64url");
  altered[0]! ^= 1;
  for (const [given, search] of [
    [token!, { userId: "v" }],
    [altered.toString("base64url"), { userId: "u" }],
    [token!.slice(0, 8), { userId: "u" }],
    [`${token}==`, { userId: "u" }],
    ["$", { userId: "u" }],
  ] as const) {
    expect(read(given, search)).toEqual({ last: undefined, fields: ["page_token"] });
  }
});

test("a page has 50 items unless 1 to 500 are asked for", () => {
  const size = (asked: number) => {
    const violations: FieldViolation[] = [];
    const found = checkPageSize(asked, violations);
    return violations.length > 0 ? violations[0]!.field : found;
  };
  expect([0, 1, 500, 501, -1].map(size)).toEqual([50, 1, 500, "page_size", "page_size"]);
});

test("complaints say what would be right", () => {
  const violations: FieldViolation[] = [];
  checkPageSize(501, violations);
  readPageToken("$", {}, violations);
  expect(violations.map(({ description }) => description)).toEqual([
    "must be 0 to 500; 0 means 50",
    "is not a token that this search gave; leave it out to begin anew",
  ]);
});
