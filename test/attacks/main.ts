import { mkdtempSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { table, writeBetweenMarkers } from "../support/trust-page.ts";
import { ATTACKS } from "./attacks.ts";
import { type Measured, measure } from "./measure.ts";
import { measureTiming, type TimingRow } from "./timing.ts";
import { goodTraffic, startWorld } from "./world.ts";

const USAGE = `npm run attacks -- [options]

  --seconds S   good traffic measured beside each attack   (3)
  --idle N      idle connections; needs ulimit -n above it (9900)
  --only TEXT   attacks whose name has this in it
  --rounds N    samples of each kind for the timing test   (20000)
  --write       put the tables into docs/trust.md
`;

const MiB = 1024 * 1024;

async function run(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seconds: { type: "string", default: "3" },
      idle: { type: "string", default: "9900" },
      only: { type: "string", default: "" },
      rounds: { type: "string", default: "20000" },
      write: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const forMs = Number(values.seconds) * 1_000;
  const size = { connections: 500, idle: Number(values.idle) };
  const dataDir = mkdtempSync(join(tmpdir(), "latchkey attacks "));
  const world = await startWorld("dist/src/cli/main.js", { LATCHKEY_DATA_DIR: dataDir });
  try {
    await goodTraffic(world, forMs);
    const alone = await goodTraffic(world, forMs);
    process.stderr.write(`good traffic alone: ${Math.round(alone.perSecond)}/s\n`);
    const found: Measured[] = [];
    for (const attack of ATTACKS.filter(({ name }) => name.includes(values.only))) {
      const measured = await measure(world, attack, size, forMs);
      found.push(measured);
      process.stderr.write(
        `${rowOf(measured, alone.perSecond).join(" | ")}${measured.fault ? `  FAULT: ${measured.fault}` : ""}\n`,
      );
      if (!measured.alive) throw new Error(`${attack.name}: the service ended`);
    }
    const timing = await measureTiming(world, Number(values.rounds));
    const text = toMarkdown(alone.perSecond, found, timing, forMs);
    process.stdout.write(`${text}\n`);
    if (values.write && values.only === "") writeBetweenMarkers("attacks", text);
    return found.some(({ fault, good }) => fault !== undefined || good.failed > 0) ? 1 : 0;
  } finally {
    world.endConnections();
    await world.stop();
    rmSync(dataDir, { recursive: true, force: true });
  }
}

function rowOf({ name, did, good, peakBytes, beforeBytes, alive }: Measured, alone: number): string[] {
  return [
    ...[
      name,
      did,
      `${Math.round((good.perSecond / alone) * 100)} %`,
      String(good.failed),
      `${good.p99Ms.toFixed(1)} ms`,
    ],
    `${Math.round(beforeBytes / MiB)} → ${Math.round(peakBytes / MiB)} MiB`,
    alive ? "lives" : "ENDED",
  ];
}

function toMarkdown(alone: number, found: Measured[], timing: TimingRow[], forMs: number): string {
  const machine = `${cpus()[0]?.model ?? "?"}, ${cpus().length} cores shared by the service, MongoDB, the attacker and the good client · Node ${process.version} · ${forMs / 1_000} s each · ${new Date().toISOString().slice(0, 10)} · good traffic alone: ${Math.round(alone)} calls a second`;
  const attacks = table(
    [
      "attack",
      "what it did",
      "good traffic, of what it gets alone",
      "good calls that failed",
      "their p99",
      "memory, before → at most",
      "the process",
    ],
    found.map((one) => rowOf(one, alone)),
  );
  const times = table(
    ["who asks about a / b", "median a", "median b", "Welch's t"],
    timing.map(({ label, aUs, bUs, t }) => [label, `${aUs.toFixed(1)} µs`, `${bUs.toFixed(1)} µs`, t.toFixed(1)]),
  );
  return `${machine}\n\n${attacks}\n\n${times}`;
}

try {
  process.exit(await run());
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.stack : String(error)}\n`);
  process.exit(1);
}
