import { parseArgs } from "node:util";
import { stopProcesses } from "../support/process.ts";
import { table, writeBetweenMarkers } from "../support/trust-page.ts";
import { type Census, takeCensus } from "./census.ts";
import { grown, leastOf } from "./growth.ts";
import { createLoad } from "./load.ts";
import { slopeOf } from "./slope.ts";
import { openSoakStage } from "./stage.ts";

// `npm run soak`: load of all kinds for as long as is said, with a restart of the database in the middle, and what the service
// holds between bouts of it. Fails where that grew.

const USAGE = `npm run soak -- [options]

  --minutes N   how long                          (30)
  --seed N      the same calls                    (1)
  --write       write the table of docs/trust.md
`;
/** Long enough for a slope of many samples, short enough for the samples to be many. */
const BOUT_MS = 10_000;
const CLIENTS = 8;
/** Code is compiled, pools grow: only then is what is held compared. */
const WARM_UP_SHARE = 0.2;
/** Less than any object takes, were one left by every other call; compiled code grows in steps, and ever more slowly. */
const HEAP_BYTES_A_CALL = 8;

interface Sample {
  hours: number;
  calls: number;
  census: Census;
}

interface Restart {
  awayMs: number;
  calls: number;
  failed: number;
  before: Census;
  after: Census;
}

async function run(minutes: number, seed: number, write: boolean): Promise<string[]> {
  const stage = await openSoakStage();
  try {
    const load = await createLoad(stage.service.url, seed);
    await load.run(500, { clients: 2 * CLIENTS });
    await stage.fillChanges();
    const began = performance.now();
    const elapsedMs = () => performance.now() - began;
    const endMs = minutes * 60_000;
    const samples: Sample[] = [];
    let restart: Restart | undefined;
    let calls = 0;
    let failed = 0;
    while (elapsedMs() < endMs) {
      const untilMs = elapsedMs() + Math.min(BOUT_MS, endMs / 20);
      let restarting = false;
      const bout = load.run(Number.POSITIVE_INFINITY, {
        clients: CLIENTS,
        done: () => elapsedMs() > untilMs && !restarting,
      });
      let awayMs: number | undefined;
      if (restart === undefined && samples.length > 0 && elapsedMs() > endMs / 2) {
        restarting = true;
        ({ awayMs } = await stage.restartDatabase());
        restarting = false;
      }
      const made = await bout;
      calls += made.calls;
      const census = await takeCensus(stage.service);
      if (awayMs === undefined) failed += made.failed;
      else restart = { awayMs, ...made, before: samples.at(-1)!.census, after: census };
      samples.push({ hours: elapsedMs() / 3_600_000, calls, census });
      say(`${(elapsedMs() / 60_000).toFixed(1)} min, ${calls} calls, ${mib(census.rss)}, heap ${mib(census.heapUsed)}`);
    }
    const warm = samples.slice(Math.ceil(samples.length * WARM_UP_SHARE));
    const leaks = leaksOf(warm);
    const text = [
      `${new Date().toISOString().slice(0, 10)}, ${minutes} minutes: ${calls} calls by ${CLIENTS} callers at a time, of which ${failed} could not be answered but for the restart.`,
      restart === undefined ? "" : told(restart),
      "",
      held(warm),
      "",
      leaks.length === 0 ? "Nothing grew." : `Grown: ${leaks.join("; ")}.`,
    ].join("\n");
    process.stdout.write(`\n${text}\n`);
    if (write) writeBetweenMarkers("soak", text);
    return leaks;
  } finally {
    await stopProcesses();
    await stage.stop();
  }
}

function leaksOf(warm: readonly Sample[]): string[] {
  const [before, now] = ends(warm);
  const leaks = grown(before, now, warm.at(-1)!.calls - warm[0]!.calls);
  const heap = slopeOf(warm.map(({ calls, census }) => ({ x: calls, y: census.heapUsed })));
  if (heap.perX - 3 * heap.error > HEAP_BYTES_A_CALL) {
    leaks.push(`heap: ${heap.perX.toFixed(1)} ± ${heap.error.toFixed(1)} bytes a call`);
  }
  return leaks;
}

/** What was held at the beginning and at the end, without what was under way for a moment. */
function ends(warm: readonly Sample[]): [Census["counts"], Census["counts"]] {
  const least = (samples: readonly Sample[]) => leastOf(samples.map(({ census }) => census));
  const some = Math.max(1, Math.min(3, Math.floor(warm.length / 2)));
  return [least(warm.slice(0, some)), least(warm.slice(-some))];
}

function told({ awayMs, calls, failed, before, after }: Restart): string {
  return (
    `MongoDB killed and started again: not ready for ${(awayMs / 1_000).toFixed(1)} s; of ${calls} calls in that bout ` +
    `${failed} could not be answered; heap ${mib(before.heapUsed)} before, ${mib(after.heapUsed)} after.`
  );
}

const HELD: [name: string, counts: (name: string) => boolean][] = [
  ["open handles", (name) => name === "sockets" || name.startsWith("handles: ")],
  ["of them sockets", (name) => name === "sockets"],
  [
    "HTTP sessions, streams and calls",
    (name) =>
      /^objects: (Connection|NodeSession|BidirectionalStream|Call|ServerHttp2\w+|\w+Request|\w+Response|IncomingMessage)$/.test(
        name,
      ),
  ],
  ["sessions of the database", (name) => name === "objects: ClientSession"],
  ["change streams", (name) => name === "objects: ChangeStream"],
  ["listeners", (name) => name === "listeners"],
  ["timers", (name) => name === "timers"],
  ["entries of maps and sets", (name) => name === "entries of maps and sets"],
  ["objects in all", (name) => name === "objects"],
];

function held(warm: readonly Sample[]): string {
  const [before, now] = ends(warm);
  const slope = (y: (census: Census) => number, digits: number) => {
    const { perX, error } = slopeOf(warm.map(({ hours, census }) => ({ x: hours, y: y(census) })));
    return `${perX.toFixed(digits)} ± ${error.toFixed(digits)}`;
  };
  const memory = (name: string, bytes: (census: Census) => number) => {
    const inMib = (census: Census) => bytes(census) / 1024 / 1024;
    return [name, inMib(warm[0]!.census).toFixed(1), inMib(warm.at(-1)!.census).toFixed(1), slope(inMib, 2)];
  };
  const count = ([name, counts]: (typeof HELD)[number]) => {
    const sum = (of: Census["counts"]) => Object.keys(of).reduce((all, one) => (counts(one) ? all + of[one]! : all), 0);
    return [name, sum(before), sum(now), slope((census) => sum(census.counts), 1)];
  };
  return table(
    ["held", "after the warm-up", "at the end", "slope an hour"],
    [
      memory("resident memory, MiB", ({ rss }) => rss),
      memory("heap after a collection, MiB", ({ heapUsed }) => heapUsed),
      memory("memory outside of the heap, MiB", ({ external }) => external),
      ...HELD.map(count),
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
  else if ((await run(minutes, Number(values.seed), values.write)).length > 0) process.exitCode = 1;
} catch (error) {
  process.stderr.write(`soak: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
