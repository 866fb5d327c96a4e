import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { stopProcesses } from "../support/process.ts";
import { type Census, takeCensus } from "./census.ts";
import { createLoad, type Load } from "./load.ts";
import { openSoakStage, type SoakStage } from "./stage.ts";

/** Less than any object that a call could leave behind, were it left by every second one. */
const NOISE_BYTES_A_CALL = 150;
const WARM_UP_CALLS = 2_000;
const CALLS = 2_000;

let stage: SoakStage;
let load: Load;
let first: Census;
let calls = 0;

beforeAll(async () => {
  stage = await openSoakStage();
  load = await createLoad(stage.service.url, 1);
  // More at once than later: pools have their size by then.
  await load.run(WARM_UP_CALLS, { clients: 12 });
  for (let before = ""; JSON.stringify(first?.counts) !== before || before === ""; await sleep(500)) {
    before = JSON.stringify(first?.counts ?? "");
    first = await takeCensus(stage.service);
  }
}, 240_000);
afterAll(async () => {
  await stopProcesses();
  await stage?.stop();
}, 60_000);

/** What is held more of than at first. What is let go late is waited for; what never is stays in the list. */
async function grown(): Promise<string[]> {
  for (let tries = 0; ; tries += 1) {
    const { heapUsed, counts } = await takeCensus(stage.service);
    const more = Object.keys(counts)
      .filter((name) => counts[name]! > (first.counts[name] ?? 0))
      .map((name) => `${name}: ${first.counts[name] ?? 0}, now ${counts[name]}`);
    const bytesACall = (heapUsed - first.heapUsed) / calls;
    if (bytesACall > NOISE_BYTES_A_CALL) more.push(`heap: ${Math.round(bytesACall)} bytes a call`);
    if (more.length === 0 || tries === 20) return more;
    await sleep(500);
  }
}

test("after thousands of calls of all kinds, no more is held than before them", async () => {
  calls += await load.run(CALLS);
  expect(await grown()).toEqual([]);
}, 240_000);

test("after kill -9 and a restart of the database under load, no more is held than before", async () => {
  let done = false;
  const loaded = load.run(Number.POSITIVE_INFINITY, { done: () => done });
  await stage.restartDatabase();
  done = true;
  calls += await loaded;
  calls += await load.run(CALLS / 3);
  expect(await grown()).toEqual([]);
}, 240_000);
