import { mkdirSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { argon2 } from "./figures/argon2.ts";
import { builds } from "./figures/builds.ts";
import { check } from "./figures/check.ts";
import { cold } from "./figures/cold.ts";
import { envoy } from "./figures/envoy.ts";
import type { Figure } from "./figures/figure.ts";
import { flood } from "./figures/flood.ts";
import { garbage } from "./figures/garbage.ts";
import { large } from "./figures/large.ts";
import { many } from "./figures/many.ts";
import { metadata } from "./figures/metadata.ts";
import { restart } from "./figures/restart.ts";
import { revocation } from "./figures/revocation.ts";
import { grpc, headers, http1, protocols } from "./figures/warm.ts";
import { type Lab, openLab } from "./lab.ts";
import { ensureH2load } from "./loads.ts";
import { canPin, describeMachine, LOAD_CORE, moveToCore } from "./machine.ts";
import { type Options, readOptions, USAGE } from "./options.ts";
import { type Report, type Taken, toMarkdown } from "./report.ts";
import { toSvg } from "./svg.ts";

const FIGURES: Figure[] = [
  ...[grpc, headers, http1, check, envoy, many, cold, garbage, flood, large, metadata, revocation, restart],
  ...[protocols, builds, argon2],
];

async function run(options: Options): Promise<number> {
  if (process.platform !== "linux")
    throw new Error("It reads CPU times from /proc and pins by taskset: it runs on Linux.");
  const load = ensureH2load();
  if (!canPin()) say("There is no second core, or no taskset: nothing is pinned, and the figures mean little.");
  moveToCore(process.pid, LOAD_CORE);
  let lab: Lab | undefined;
  let interrupted = false;
  const end = () => {
    interrupted = true;
    // What is half set up can't be taken down: it is when it is whole.
    void lab?.stop().finally(() => process.exit(130));
  };
  process.once("SIGINT", end).once("SIGTERM", end);
  lab = await openLab(options, say);
  try {
    const figures: Taken[] = [];
    if (interrupted) return 130;
    for (const figure of FIGURES.filter(({ name }) => options.only.includes(name))) {
      const taken = await take(lab, figure);
      if (interrupted) return 130;
      figures.push(taken);
    }
    const report: Report = {
      machine: await describeMachine(lab.client, load),
      ...{ rounds: options.rounds, secondsPerRound: options.seconds, figures },
    };
    process.stdout.write(`\n${toMarkdown(report)}\n`);
    mkdirSync(options.outDir, { recursive: true });
    writeFileSync(join(options.outDir, "bench.json"), `${JSON.stringify(report, null, 2)}\n`);
    writeFileSync(join(options.outDir, "bench.svg"), toSvg(report));
    say(`\nWritten: ${join(options.outDir, "bench.json")} and bench.svg`);
    return figures.some(({ failure }) => failure !== undefined) ? 1 : 0;
  } finally {
    await lab.stop();
  }
}

/** One figure that can't be taken does not cost the others. */
async function take(lab: Lab, { name, title, take: takeFigure }: Figure): Promise<Taken> {
  say(`${title} (${name})`);
  try {
    const findings = await takeFigure(lab);
    for (const { label, note } of findings.rows) if (note?.startsWith("skipped")) say(`  ${label}: ${note}`);
    return { name, title, ...findings };
  } catch (error) {
    const failure = error instanceof Error ? error.message : String(error);
    say(`  failed: ${failure}`);
    return { name, title, series: [], rows: [], failure };
  } finally {
    await lab.stopServers();
  }
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

const figureNames = FIGURES.map(({ name }) => name);
try {
  const options = readOptions(process.argv.slice(2), figureNames, join(tmpdir(), "latchkey-bench"));
  if (options === undefined) process.stdout.write(USAGE.replace("FIGURES", figureNames.join(", ")));
  else process.exitCode = await run(options);
} catch (error) {
  process.stderr.write(`bench: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
