import { expect, test } from "@jest/globals";
import type { FieldViolation } from "../../src/keys/errors.ts";
import { checkPageSize, MAX_PAGE_BYTES, pageOf, readPageToken } from "../../src/keys/pages.ts";

const items = [{ id: "a1" }, { id: "b2" }, { id: "c3" }];
const read = (token: string, search: object) => {
  const violations: FieldViolation[] = [];
  const last = readPageToken(token, search, violations);
  return { last, said: violations.map(({ field, description }) => `${field} ${description}`) };
};
const REFUSED = {
  last: undefined,
  said: ["page_token is not a token that this search gave; leave it out to begin anew"],
};

test("a page's token leads on after its last item, and the last page has none", () => {
  const page = pageOf(items, 2, { userId: "u" });
  expect(page.items).toEqual(items.slice(0, 2));
  expect(read(page.nextToken!, { userId: "u" })).toEqual({ last: "b2", said: [] });
  expect(read(pageOf(items, 1, {}).nextToken!, {})).toEqual({ last: "a1", said: [] });
  expect(pageOf(items, 3, {}).nextToken).toBeUndefined();
});

test("no token asks for the first page", () => {
  expect(read("", {})).toEqual({ last: undefined, said: [] });
});

test("a token whose id could be no item's is refused, though anybody can make one", () => {
  for (const id of ["a".repeat(64), "a".repeat(65), "$a", "a$", "é", ""]) {
    const { nextToken } = pageOf([{ id }, { id }], 1, {});
    expect(read(nextToken!, {})).toEqual(id.length === 64 ? { last: id, said: [] } : REFUSED);
  }
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
    expect(read(given, search)).toEqual(REFUSED);
  }
});

test("a page has 50 items unless 1 to 500 are asked for", () => {
  const size = (asked: number) => {
    const violations: FieldViolation[] = [];
    const found = checkPageSize(asked, violations);
    return violations.length > 0 ? violations : found;
  };
  const refused = [{ field: "page_size", description: "must be 0 to 500; 0 means 50" }];
  expect([0, 1, 500, 501, -1].map(size)).toEqual([50, 1, 500, refused, refused]);
});

test("a page ends before it is larger than clients take, though never without an item", () => {
  const page = (...bytes: number[]) => {
    const found = bytes.map((size, index) => ({ id: `i${index}`, size }));
    const { items: within, nextToken } = pageOf(found, 3, {}, ({ size }) => size);
    return [within.length, nextToken && read(nextToken, {}).last];
  };
  expect(page(MAX_PAGE_BYTES - 1, 1, 1)).toEqual([2, "i1"]);
  expect(page(MAX_PAGE_BYTES - 2, 1, 1)).toEqual([3, undefined]);
  expect(page(2 * MAX_PAGE_BYTES, 1)).toEqual([1, "i0"]);
  expect(page(1, 1, 1, 1)).toEqual([3, "i2"]);
});
