import { randomInt } from "node:crypto";
import { parseArgs } from "node:util";
import { type Failure, fuzz } from "./fuzz.ts";
import { codecs } from "./targets/codecs.ts";
import { connections } from "./targets/connections.ts";

const USAGE = `npm run fuzz -- [options]

  --minutes N   of all targets together   (5)
  --target a,b  these alone: TARGETS
  --seed N      the one that a failure told

What fails is made small and kept in test/fuzz/corpus, which every later run begins with.
`;

const TARGETS = [...codecs, ...connections];
const MAX_GROWTH_BYTES = 300 * 1024 * 1024;

async function run(): Promise<number> {
  const { values } = parseArgs({
    options: {
      minutes: { type: "string", default: "5" },
      target: { type: "string" },
      seed: { type: "string" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE.replace("TARGETS", TARGETS.map(({ name }) => name).join(", ")));
    return 0;
  }
  const names = values.target?.split(",");
  const chosen = TARGETS.filter(({ name }) => names === undefined || names.includes(name));
  const seed = Number(values.seed ?? randomInt(2 ** 32));
  const shareMs = (Number(values.minutes) * 60_000) / chosen.length;
  if (chosen.length < (names?.length ?? 1) || !(shareMs > 0) || !Number.isInteger(seed)) throw new Error(USAGE);
  const failures: Failure[] = [];
  let current = "";
  process.on("uncaughtException", (error) => {
    process.stdout.write(`${current}: thrown out of a connection, seed ${seed}\n${error.stack}\n`);
    process.exit(1);
  });
  for (const target of chosen) {
    current = target.name;
    const startedMs = performance.now();
    const before = process.memoryUsage().rss;
    const outcome = await fuzz(target, { seed, goOn: () => performance.now() - startedMs < shareMs });
    await target.stop?.();
    const grown = process.memoryUsage().rss - before;
    if (typeof outcome !== "number") {
      failures.push(outcome);
      const why = outcome.error instanceof Error ? outcome.error.stack : String(outcome.error);
      process.stdout.write(`${target.name}: FAILED, seed ${seed}, kept in ${outcome.file}\n${why}\n`);
    } else process.stdout.write(`${target.name}: ${outcome} inputs, memory +${Math.round(grown / 2 ** 20)} MiB\n`);
    if (grown > MAX_GROWTH_BYTES) throw new Error(`${target.name}: the memory grew by ${grown} bytes, seed ${seed}`);
  }
  return failures.length > 0 ? 1 : 0;
}

try {
  process.exit(await run());
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exit(1);
}
