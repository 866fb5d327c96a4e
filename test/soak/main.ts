import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { table, writeBetweenMarkers } from "../faults/report.ts";
import { stopProcesses } from "../support/process.ts";
import { type Census, takeCensus } from "./census.ts";
import { createLoad } from "./load.ts";
import { slopeOf } from "./slope.ts";
import { openSoakStage } from "./stage.ts";

// `npm run soak`: load of all kinds for as long as is said, with a restart of the database in the middle, and what the service
// holds between bouts of it, as slopes with their noise.

const USAGE = `npm run soak -- [options]

  --minutes N   how long                          (30)
  --seed N      the same calls                    (1)
  --write       write the table of docs/trust.md
`;
/** Long enough for a slope of many samples, short enough for few calls to be under way at each. */
const BOUT_MS = 10_000;
/** Maps fill, code is compiled, pools grow: only then is what is held compared. */
const WARM_UP_SHARE = 0.2;

interface Sample {
  hours: number;
  calls: number;
  census: Census;
}

async function run(minutes: number, seed: number, write: boolean): Promise<void> {
  const stage = await openSoakStage();
  try {
    const load = await createLoad(stage.service.url, seed);
    const began = performance.now();
    const elapsedMs = () => performance.now() - began;
    const endMs = minutes * 60_000;
    const samples: Sample[] = [];
    let calls = 0;
    let restarted = false;
    while (elapsedMs() < endMs) {
      const untilMs = elapsedMs() + Math.min(BOUT_MS, endMs / 20);
      const bout = load.run(Number.POSITIVE_INFINITY, { done: () => elapsedMs() > untilMs });
      if (!restarted && elapsedMs() > endMs / 2) {
        restarted = true;
        await stage.restartDatabase();
      }
      calls += await bout;
      await sleep(500);
      const census = await takeCensus(stage.service);
      samples.push({ hours: elapsedMs() / 3_600_000, calls, census });
      say(`${(elapsedMs() / 60_000).toFixed(1)} min, ${calls} calls, ${mib(census.rss)}, heap ${mib(census.heapUsed)}`);
    }
    const text = `${minutes} minutes, ${calls} calls, one restart of MongoDB in the middle.\n\n${slopes(samples)}`;
    process.stdout.write(`\n${text}\n`);
    if (write) writeBetweenMarkers("soak", text);
  } finally {
    await stopProcesses();
    await stage.stop();
  }
}

function slopes(samples: readonly Sample[]): string {
  const warm = samples.slice(Math.ceil(samples.length * WARM_UP_SHARE));
  const names = Object.keys(Object.assign({}, ...warm.map(({ census }) => census.counts)));
  const of = (name: string, y: (census: Census) => number, unit: number, digits: number) => {
    const values = warm.map(({ census }) => y(census) / unit);
    const { perX, error } = slopeOf(warm.map(({ hours }, index) => ({ x: hours, y: values[index]! })));
    const [first, last, most] = [values[0]!, values.at(-1)!, Math.max(...values)].map((value) => value.toFixed(digits));
    return [name, first!, last!, most!, `${perX.toFixed(digits)} ± ${error.toFixed(digits)}`];
  };
  const MIB = 1024 * 1024;
  return table(
    ["held", "after the warm-up", "at the end", "at most", "slope an hour"],
    [
      of("resident memory, MiB", ({ rss }) => rss, MIB, 1),
      of("heap after a collection, MiB", ({ heapUsed }) => heapUsed, MIB, 2),
      of("memory outside of the heap, MiB", ({ external }) => external, MIB, 2),
      ...names.map((name) => of(name, ({ counts }) => counts[name] ?? 0, 1, 0)),
    ],
  );
}

function mib(bytes: number): string {
  return `${(bytes / 1024 / 1024).toFixed(1)} MiB`;
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

try {
  const { values } = parseArgs({
    options: {
      minutes: { type: "string", default: "30" },
      seed: { type: "string", default: "1" },
      write: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  const minutes = Number(values.minutes);
  if (values.help) process.stdout.write(USAGE);
  else if (!(minutes > 0)) throw new Error("--minutes must be a number above 0.");
  else await run(minutes, Number(values.seed), values.write);
} catch (error) {
  process.stderr.write(`soak: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
