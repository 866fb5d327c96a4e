import { describe, expect, test } from "@jest/globals";
import { digestOf, GATEWAYS } from "./gateways.ts";
import { columnOf, otherReleases } from "./results.ts";

// What CI does not ask through stands in the tables as it was seen when it was: of these very files, and in every case.

const DAY = /^20\d\d-\d\d-\d\d$/;
const RELEASE = /^\d+\.\d+/;

describe.each(GATEWAYS.map((gateway) => [gateway.name, gateway] as const))("%s", (name, gateway) => {
  test("its column of the table is not older than its files", () => {
    const { release, on, files } = columnOf(name);
    expect({ release, on, files }).toEqual({
      release: expect.stringMatching(RELEASE),
      on: expect.stringMatching(DAY),
      files: digestOf(gateway),
    });
  });

  test("its column of the table has every case", () => {
    const { cells } = columnOf(name);
    const unseen = Object.keys(cells).filter((row) => cells[row] === "");
    // It names one Latchkey, and no other.
    const cannot = gateway.withSecond === undefined ? ["Latchkey drains, another is there"] : [];
    expect(unseen).toEqual(cannot);
  });

  test("no other release of it in the table was seen with older files, or in fewer cases", () => {
    const cases = Object.values(columnOf(name).cells).filter((cell) => cell !== "").length;
    for (const { gateway: of, ...seen } of otherReleases().filter((each) => each.gateway === name))
      expect({ of, ...seen }).toEqual({
        ...{ of: name, release: expect.stringMatching(RELEASE), on: expect.stringMatching(DAY) },
        ...{ files: digestOf(gateway), cases, differs: expect.stringMatching(/./) },
      });
  });
});
