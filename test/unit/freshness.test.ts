import { expect, test } from "@jest/globals";
import { createFreshness } from "../../src/keys/verify/freshness.ts";
import { stillClock } from "../support/records.ts";

const at = (ms: number) => ({ wallMs: 1_000_000 + ms, monotonicMs: ms });

test("before the first proof nothing is believed, and there is nothing to be answered from", () => {
  const freshness = createFreshness({ maxStalenessMs: 1_000, outageGraceMs: 30_000, clockMs: () => 0 });
  expect([freshness.isFresh(), freshness.isWithinGrace(), freshness.asOfMs]).toEqual([false, false, 0]);
});

test("a proof holds for the staleness, counted from when its heartbeat was sent, and for the grace in an outage", () => {
  const { nowMs, pass } = stillClock(500);
  const freshness = createFreshness({ maxStalenessMs: 1_000, outageGraceMs: 30_000, clockMs: nowMs });
  freshness.prove(at(0));
  pass(500);
  expect([freshness.isFresh(), freshness.isWithinGrace()]).toEqual([true, true]);
  pass(1);
  expect([freshness.isFresh(), freshness.isWithinGrace()]).toEqual([false, true]);
  pass(28_999);
  expect(freshness.isWithinGrace()).toBe(true);
  pass(1);
  expect(freshness.isWithinGrace()).toBe(false);
  expect(freshness.asOfMs).toBe(1_000_000);
});

test("a proof that comes late does not take an earlier one's place; the wall clock's steps decide nothing", () => {
  const { nowMs, pass } = stillClock(2_000);
  const freshness = createFreshness({ maxStalenessMs: 1_000, outageGraceMs: 0, clockMs: nowMs });
  freshness.prove(at(2_000));
  freshness.prove(at(1_000));
  expect([freshness.provenMs, freshness.asOfMs]).toEqual([2_000, 1_002_000]);
  freshness.prove({ wallMs: 5, monotonicMs: 2_500 });
  pass(1_500);
  expect([freshness.isFresh(), freshness.asOfMs]).toEqual([true, 5]);
});
