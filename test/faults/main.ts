import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stopProcesses } from "../support/process.ts";
import { startReplicaSet } from "../support/replica-set.ts";
import { table, writeBetweenMarkers } from "../support/trust-page.ts";
import { ATTEMPTS, DEFECTIVE_GRACES_MS, DEFECTS, plant } from "./defects.ts";
import { ALWAYS, FAULTS, type Fault } from "./fault.ts";
import { buildChecker, type Decide } from "./linearizable.ts";
import { type Options, readOptions, USAGE } from "./options.ts";
import { createRandom } from "./random.ts";
import { faultTable, rowsOf } from "./report.ts";
import { faultsInOrder, makeSteady, NOBODY, playRound, type Round, type Steady } from "./round.ts";
import { openStage, type Stage } from "./stage.ts";

// `npm run faults`: rounds of faults under load for as long as is said, each history checked at its end.

interface Judged {
  round: Round;
  /** All that was found broken, by either checker. */
  broken: string[];
}

async function run(options: Options): Promise<number> {
  const { minutes, seed, defects, write, only } = options;
  const chosen = FAULTS.filter(({ name }) => name.includes(only));
  if (chosen.length === 0) throw new Error(`No fault has "${only}" in its name.`);
  const checker = buildChecker();
  const decide = typeof checker === "string" ? undefined : checker;
  say(`Seed ${seed}: --seed ${seed} plays the same calls and faults, though not to the microsecond.`);
  if (typeof checker === "string") say(`SKIPPED: no history is checked for an order that explains it: ${checker}`);
  const set = await startReplicaSet();
  const judged: Judged[] = [];
  try {
    const stage = await openStage({ set });
    const steady = await makeSteady(stage, "run");
    const faults = faultsInOrder(chosen, createRandom(seed), ALWAYS);
    const endMs = performance.now() + minutes * 60_000;
    for (let index = 0; performance.now() < endMs; index += 1) {
      const fault = faults.next().value!;
      judged.push(await judge(stage, fault, { name: `r${index}`, seed, steady }, decide, options));
    }
    await stage.stop();
    const rows = rowsOf(judged.map(({ round, broken }) => ({ ...round, broken: broken.length })));
    const faultsText = faultTable(rows);
    process.stdout.write(`\n${faultsText}\n`);
    if (write) writeBetweenMarkers("faults", faultsText);
    if (defects) {
      const caught = [];
      for (const [index, defect] of DEFECTS.entries()) {
        const defective = await openStage({ set, root: plant(defect), gracesMs: DEFECTIVE_GRACES_MS });
        let broken: string[] = [];
        for (let attempt = 0; attempt < ATTEMPTS && broken.length === 0; attempt += 1) {
          const playing = { name: `d${index}-${attempt}`, seed, steady: NOBODY };
          ({ broken } = await judge(defective, defect.fault, playing, decide));
        }
        caught.push([defect.name, defect.fault.name, broken.length === 0 ? "**not caught**" : short(broken[0]!)]);
        await defective.stop();
      }
      const defectsText = table(["planted defect", "fault", "caught by"], caught);
      process.stdout.write(`\n${defectsText}\n`);
      if (write) writeBetweenMarkers("defects", defectsText);
    }
  } finally {
    for (const { process } of set.members) process.kill("SIGCONT");
    await stopProcesses();
    await set.stop();
  }
  return judged.some(({ broken }) => broken.length > 0) ? 1 : 0;
}

async function judge(
  stage: Stage,
  fault: Fault,
  playing: { name: string; seed: number; steady: Steady },
  decide: Decide | undefined,
  options?: Options,
): Promise<Judged> {
  const round = await playRound(stage, fault, playing);
  const verdicts = (await decide?.(round.history)) ?? [];
  const broken = [
    ...round.broken,
    ...verdicts
      .filter(({ result }) => result !== "ok")
      .map(({ user, result, stuck, where }) => `${result} history of ${user}: ${stuck} (${where})`),
  ];
  say(`${playing.name} ${fault.name}: ${JSON.stringify(round.figures)}`);
  for (const what of broken.slice(0, 5)) say(`  BROKEN ${what}`);
  if (options?.out !== undefined || (options !== undefined && broken.length > 0)) {
    const folder = options.out ?? mkdtempSync(join(tmpdir(), "latchkey history "));
    mkdirSync(folder, { recursive: true });
    const file = join(folder, `${playing.seed}-${playing.name}.jsonl`);
    writeFileSync(file, round.history.map((operation) => `${JSON.stringify(operation)}\n`).join(""));
    say(`  ${file}`);
  }
  return { round, broken };
}

/** What was found, without the operation it was found at. */
function short(broken: string): string {
  return broken.replace(/^illegal history of [^:]*: /, "no order explains: ").replace(/: \{.*| \(replica \d\).*/s, "");
}

function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

try {
  const options = readOptions(process.argv.slice(2));
  if (options === undefined) process.stdout.write(USAGE);
  else process.exitCode = await run(options);
} catch (error) {
  process.stderr.write(`faults: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
