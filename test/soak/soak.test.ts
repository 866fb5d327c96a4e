import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { stopProcesses } from "../support/process.ts";
import { type Census, takeCensus } from "./census.ts";
import { grown, leastOf } from "./growth.ts";
import { createLoad, type Load } from "./load.ts";
import { openSoakStage, type SoakStage } from "./stage.ts";

const WARM_UP_CALLS = 1_200;
const CALLS = 2_000;

let stage: SoakStage;
let load: Load;
let first: Census["counts"];
let calls = 0;

beforeAll(async () => {
  stage = await openSoakStage();
  load = await createLoad(stage.service.url, 1);
  // More at once than later, and all that happens later, so that what is kept for the next time is there.
  await load.run(WARM_UP_CALLS, { clients: 12 });
  await restartUnderLoad();
  // Connections to the database are made anew after it: as many as are ever used at once, of which a change takes two.
  await load.run(WARM_UP_CALLS, { clients: 12 });
  await stage.fillChanges();
  first = leastOf([await takeCensus(stage.service), await takeCensus(stage.service)]);
}, 600_000);
afterAll(async () => {
  await stopProcesses();
  await stage?.stop();
}, 60_000);

async function restartUnderLoad(): Promise<number> {
  let done = false;
  const loaded = load.run(Number.POSITIVE_INFINITY, { done: () => done });
  await stage.restartDatabase().finally(() => {
    done = true;
  });
  return (await loaded).calls;
}

/** What is held more of than at first. What is let go late is waited for; what never is stays in the list. */
async function leaks(): Promise<string[]> {
  const censuses: Census[] = [];
  for (;;) {
    censuses.push(await takeCensus(stage.service));
    const more = grown(first, leastOf(censuses), calls);
    if (more.length === 0 || censuses.length === 8) return more;
  }
}

test("after thousands of calls of all kinds, no more is held than before them", async () => {
  calls += (await load.run(CALLS)).calls;
  expect(await leaks()).toEqual([]);
}, 600_000);

test("after kill -9 and a restart of the database under load, no more is held than before", async () => {
  calls += await restartUnderLoad();
  calls += (await load.run(CALLS / 4)).calls;
  expect(await leaks()).toEqual([]);
}, 600_000);
