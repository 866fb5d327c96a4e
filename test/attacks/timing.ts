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

/** Welch's statistic: the difference of two means in units of its own error. */
export function welch(a: readonly number[], b: readonly number[]): number {
  const [one, two] = [describe(a), describe(b)];
  return (one.mean - two.mean) / Math.sqrt(one.variance / a.length + two.variance / b.length);
}

function describe(values: readonly number[]): { mean: number; variance: number } {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1);
  return { mean, variance };
}

/** Without the slowest tenth, which the machine's own pauses make; the cut is where it is for all samples together. */
export function trimmed(classes: readonly number[][]): number[][] {
  const all = classes.flat().sort((x, y) => x - y);
  const limit = all[Math.floor(all.length * 0.9)] ?? 0;
  return classes.map((values) => values.filter((value) => value <= limit));
}

/** The smallest difference that is planted: what the test must be able to see. */
const PLANTED = 0.02;

/** One call at a time, kinds in turn, each turn in another order. */
export async function measureTiming(world: World, rounds: number): Promise<TimingRow[]> {
  const session = world.openSession();
  const unknown = unknownKey();
  const kinds: Record<string, () => string> = {
    unknown: () => unknown,
    "unknown again": () => unknown,
    "wrong secret": () => wrongSecret(world.other),
    "wrong secret of a revoked key": () => wrongSecret(world.revoked),
  };
  const names = Object.keys(kinds);
  const samples = new Map(names.map((name) => [name, [] as number[]]));
  for (let round = -200; round < rounds; round += 1) {
    for (let index = 0; index < names.length; index += 1) {
      const name = names[(index + Math.abs(round) * 3) % names.length]!;
      const key = kinds[name]!();
      const startedMs = performance.now();
      await ask(session, key);
      if (round >= 0) samples.get(name)!.push((performance.now() - startedMs) * 1_000);
    }
  }
  session.destroy();
  const compare = (label: string, a: number[], b: number[]): TimingRow => {
    const [cutA, cutB] = trimmed([a, b]);
    return { label, aUs: median(a), bUs: median(b), t: welch(cutA!, cutB!) };
  };
  const of = (name: string) => samples.get(name)!;
  const base = of("unknown");
  const planted = of("unknown again").map((us) => us + median(base) * PLANTED);
  return [
    compare("an unknown id / the same once more (nothing to tell)", base, of("unknown again")),
    compare("an unknown id / a wrong secret", base, of("wrong secret")),
    compare("an unknown id / a wrong secret of a revoked key", base, of("wrong secret of a revoked key")),
    compare(
      "a wrong secret / a wrong secret of a revoked key",
      of("wrong secret"),
      of("wrong secret of a revoked key"),
    ),
    compare(`an unknown id / the same and ${PLANTED * 100} % (planted: must be told apart)`, base, planted),
  ];
}
