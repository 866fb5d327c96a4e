import { unknownKey, wrongSecret } from "../bench/records.ts";
import { median } from "../bench/statistics.ts";
import { createRandom } from "../faults/random.ts";
import { ask, type World } from "./world.ts";

// Whether a stranger can tell by the clock what Verify does not tell: that an id exists, or was revoked.

export interface TimingRow {
  label: string;
  /** Medians, of a and b. */
  aUs: number;
  bUs: number;
  /** Welch's t of the two; beyond ±4.5, as is usual in side-channel tests, they are told apart. */
  t: number;
}

type Samples = readonly number[] | Float64Array;

/** Welch's statistic: the difference of two means in units of its own error. */
export function welch(a: Samples, b: Samples): number {
  const [one, two] = [describe(a), describe(b)];
  return (one.mean - two.mean) / Math.sqrt(one.variance / a.length + two.variance / b.length);
}

function describe(values: Samples): { mean: number; variance: number } {
  let sum = 0;
  for (const value of values) sum += value;
  const mean = sum / values.length;
  let squares = 0;
  for (const value of values) squares += (value - mean) ** 2;
  return { mean, variance: squares / (values.length - 1) };
}

/** The faster half: what is slower is the machine's own noise. The cut is where it is for all samples together. */
export function trimmed(classes: readonly Samples[]): number[][] {
  const all = classes.flatMap((values) => [...values]).sort((x, y) => x - y);
  const limit = all[Math.floor(all.length / 2)] ?? 0;
  return classes.map((values) => [...values].filter((value) => value <= limit));
}

/** The smallest difference that is planted: what the test must be able to see. */
const PLANTED = 0.02;

/** Keys of a kind, all asked about before: what is measured is what the memory answers. */
const KEYS_A_KIND = 16;

/** One call at a time, of every kind once a round, in an order of chance. */
export async function measureTiming(world: World, rounds: number): Promise<TimingRow[]> {
  const session = world.openSession();
  const random = createRandom(Date.now());
  const several = (make: () => string) => Array.from({ length: KEYS_A_KIND }, make);
  const kind = (name: string, keys: string[]) => ({ name, keys, tookUs: new Float64Array(rounds) });
  const keys = several(unknownKey);
  const unknown = kind("an unknown id", keys);
  const again = kind("the same once more (nothing to tell)", keys);
  const wrong = kind(
    "a wrong secret",
    several(() => wrongSecret(world.other)),
  );
  const inUse = kind(
    "a wrong secret of a key in use",
    several(() => wrongSecret(world.good)),
  );
  const revoked = kind(
    "a wrong secret of a revoked key",
    several(() => wrongSecret(world.revoked)),
  );
  await ask(session, world.good);
  for (let round = -200; round < rounds; round += 1) {
    for (const { keys, tookUs } of random.shuffled([unknown, again, wrong, inUse, revoked])) {
      const key = keys[Math.abs(round) % keys.length]!;
      const startedMs = performance.now();
      await ask(session, key);
      if (round >= 0) tookUs[round] = (performance.now() - startedMs) * 1_000;
    }
  }
  session.destroy();
  const extraUs = median([...unknown.tookUs]) * PLANTED;
  const planted = {
    name: `${again.name}, and ${PLANTED * 100} % more (planted: must be told apart)`,
    tookUs: again.tookUs.map((us) => us + extraUs),
  };
  return [
    ...[again, wrong, inUse, revoked].map((other) => compare(unknown, other)),
    compare(wrong, inUse),
    compare(unknown, planted),
  ];
}

type Kind = { name: string; tookUs: Float64Array };

function compare(a: Kind, b: Kind): TimingRow {
  const [cutA, cutB] = trimmed([a.tookUs, b.tookUs]);
  return {
    ...{ label: `${a.name} / ${b.name}`, aUs: median([...a.tookUs]), bUs: median([...b.tookUs]) },
    t: welch(cutA!, cutB!),
  };
}
