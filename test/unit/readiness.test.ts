import { afterEach, beforeEach, expect, jest, test } from "@jest/globals";
import { createFreshness } from "../../src/keys/verify/freshness.ts";
import { createReadiness, mergedReport, shown } from "../../src/observe/readiness.ts";
import { checkDatabase } from "../../src/service/database-checks.ts";
import { stillClock } from "../support/records.ts";

beforeEach(() => void jest.useFakeTimers());
afterEach(() => void jest.useRealTimers());

test("listeners hear of each condition that begins or ceases to hold, and not of other words for the same", () => {
  const readiness = createReadiness(["A"]);
  let heard = 0;
  const leave = readiness.onChange(() => {
    heard += 1;
  });
  const condition = readiness.condition("base", ["A"], "gone");
  expect([heard, readiness.isReady("A"), readiness.isReady("")]).toEqual([1, false, true]);
  condition.set("still gone");
  expect(heard).toBe(1);
  condition.set(undefined);
  condition.set(undefined);
  expect([heard, readiness.isReady("A")]).toEqual([2, true]);
  leave();
  condition.set("gone");
  expect(heard).toBe(2);
});

test("several processes are ready while one is, and a condition that holds in one of them is shown as held", () => {
  const [one, other] = [undefined, "no"].map((fault) => {
    const readiness = createReadiness([]);
    readiness.condition("keys", [""], fault);
    readiness.condition("database", [], "away");
    return readiness.report();
  });
  expect(shown(mergedReport([other!, one!]))).toEqual({
    ready: true,
    text: "ready\n[+] keys: ok\n[-] database: away\n",
  });
  expect(shown(mergedReport([other!, other!])).ready).toBe(false);
});

/** Checks over a database that does as it is told, at times that the test says. */
function check({ outageGraceMs = 30_000 } = {}) {
  const clock = stillClock(100_000);
  const freshness = createFreshness({ maxStalenessMs: 1_000, outageGraceMs, clockMs: clock.nowMs });
  const does = { ping: true, reads: true };
  const seen = { answered: false, proven: false, up: true };
  const stop = checkDatabase({
    ...{ freshness, database: { reachable: async () => does.ping } },
    source: {
      async readProven() {
        if (!does.reads) throw new Error("no majority");
        return [];
      },
    },
    onKeys: (state) => Object.assign(seen, state),
    onDatabase(up) {
      seen.up = up;
    },
  });
  const pass = async (ms: number) => {
    for (let left = ms; left > 0; left -= 250) {
      clock.pass(250);
      await jest.advanceTimersByTimeAsync(250);
    }
  };
  return { does, seen, stop, pass, prove: () => freshness.prove({ wallMs: 0, monotonicMs: clock.nowMs() }) };
}

test("keys do not count as answered before the first proof of freshness, though reads are", async () => {
  const { seen, pass, prove, stop } = check();
  await pass(60_000);
  expect(seen).toEqual({ answered: false, proven: false, up: true });
  prove();
  await pass(250);
  expect(seen).toEqual({ answered: true, proven: true, up: true });
  const stopped = stop();
  await jest.runAllTimersAsync();
  await stopped;
});

test("keys count as answered until the grace since the last proof is over, and after it while reads are answered", async () => {
  const { does, seen, pass, prove } = check({ outageGraceMs: 30_000 });
  prove();
  Object.assign(does, { ping: false, reads: false });
  await pass(29_000);
  expect(seen).toMatchObject({ answered: true, up: false });
  await pass(2_000);
  expect(seen).toMatchObject({ answered: false, up: false });
  Object.assign(does, { ping: true, reads: true });
  await pass(2_000);
  // The stream is still behind: no new proof.
  expect(seen).toMatchObject({ answered: true, up: true });
});

test("a stream that is behind does not make a service that reads unready, without any grace either", async () => {
  const { seen, pass, prove } = check({ outageGraceMs: 0 });
  prove();
  for (let seconds = 0; seconds < 10; seconds += 1) {
    await pass(1_000);
    expect(seen).toMatchObject({ answered: true, up: true });
  }
});

test("a primary that answers pings and has lost its majority counts as away", async () => {
  const { does, seen, pass, prove } = check();
  prove();
  does.reads = false;
  await pass(4_000);
  expect(seen.up).toBe(false);
});
