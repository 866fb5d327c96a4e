import { unknownKey, wrongSecret } from "../bench/records.ts";
import { median } from "../bench/statistics.ts";
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
  const several = (make: () => string) => Array.from({ length: KEYS_A_KIND }, make);
  const unknown = several(unknownKey);
  const kinds = [
    { name: "an unknown id", keys: unknown },
    { name: "the same once more (nothing to tell)", keys: unknown },
    { name: "a wrong secret", keys: several(() => wrongSecret(world.other)) },
    { name: "a wrong secret of a key in use", keys: several(() => wrongSecret(world.good)) },
    { name: "a wrong secret of a revoked key", keys: several(() => wrongSecret(world.revoked)) },
  ];
  const samples = kinds.map(() => new Float64Array(rounds));
  await ask(session, world.good);
  for (let round = -200; round < rounds; round += 1) {
    for (const kind of shuffled(kinds.length)) {
      const { keys } = kinds[kind]!;
      const key = keys[Math.abs(round) % keys.length]!;
      const startedMs = performance.now();
      await ask(session, key);
      if (round >= 0) samples[kind]![round] = (performance.now() - startedMs) * 1_000;
    }
  }
  session.destroy();
  const compare = (label: string, a: Float64Array, b: Float64Array): TimingRow => {
    const [cutA, cutB] = trimmed([a, b]);
    return { label, aUs: median([...a]), bUs: median([...b]), t: welch(cutA!, cutB!) };
  };
  const [base, ...others] = samples;
  const medianUs = median([...base!]);
  return [
    ...others.map((other, index) => compare(`${kinds[0]!.name} / ${kinds[index + 1]!.name}`, base!, other)),
    compare(
      kinds
        .slice(2, 4)
        .map(({ name }) => name)
        .join(" / "),
      samples[2]!,
      samples[3]!,
    ),
    compare(
      `${kinds[0]!.name} / ${kinds[1]!.name}, and ${PLANTED * 100} % more (planted: must be told apart)`,
      base!,
      samples[1]!.map((us) => us + medianUs * PLANTED),
    ),
  ];
}

function shuffled(length: number): number[] {
  const order = Array.from({ length }, (_, index) => index);
  for (let last = length - 1; last > 0; last -= 1) {
    const other = Math.floor(Math.random() * (last + 1));
    [order[last], order[other]] = [order[other]!, order[last]!];
  }
  return order;
}
