import { expect, test } from "@jest/globals";
import type { Census } from "../soak/census.ts";
import { grown, leastOf } from "../soak/growth.ts";
import { slopeOf } from "../soak/slope.ts";

const census = (counts: Census["counts"]): Census => ({ rss: 0, heapUsed: 0, external: 0, counts });

test("what is under way for a moment is in some censuses only, and does not count as held", () => {
  expect(leastOf([census({ listeners: 7, sockets: 3 }), census({ listeners: 5, timers: 1 })])).toEqual({
    ...{ listeners: 5, sockets: 0, timers: 0 },
  });
});

test("one listener more is a leak; of what is counted in all, a few hundred, and one for every hundredth call", () => {
  const before = { listeners: 5, objects: 50_000 };
  expect(grown(before, { listeners: 5, objects: 50_210 }, 1_000)).toEqual([]);
  expect(grown(before, { listeners: 6, objects: 50_211, "handles: Worker": 1 }, 1_000)).toEqual([
    ...["listeners: 5, now 6", "objects: 50000, now 50211", "handles: Worker: 0, now 1"],
  ]);
});

test("a slope is told with its standard error", () => {
  const points = [1, 3, 2, 4].map((y, x) => ({ x, y }));
  expect(slopeOf(points).perX).toBeCloseTo(0.8);
  expect(slopeOf(points).error).toBeCloseTo(0.424, 3);
});
