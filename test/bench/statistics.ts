/** One measured interval of an arm. */
export interface Sample {
  /** Answers counted; for calls with many keys, keys. */
  answers: number;
  seconds: number;
  /** CPU time of the server process, user and system, in the same interval. */
  cpuSeconds: number;
  p50Ms?: number;
  p99Ms?: number;
}

export type Basis = "answers/s" | "answers per CPU-second";

export interface Ratio {
  /** Of the ratios of the rounds. */
  median: number;
  min: number;
  max: number;
  basis: Basis;
}

/** A server busier than this share of its core is judged by the clock, one less busy by its own CPU time. */
const BUSY = 0.9;

export function perSecond({ answers, seconds }: Sample): number {
  return answers / seconds;
}

export function perCpuSecond({ answers, cpuSeconds }: Sample): number {
  return answers / cpuSeconds;
}

export function utilisation({ cpuSeconds, seconds }: Sample): number {
  return cpuSeconds / seconds;
}

export function median(values: number[]): number {
  return quantile(values, 0.5);
}

/** Linear between the two nearest; NaN for no values. */
export function quantile(values: number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) * share;
  const below = sorted[Math.floor(at)] ?? Number.NaN;
  const above = sorted[Math.ceil(at)] ?? Number.NaN;
  return below + (above - below) * (at - Math.floor(at));
}

/** Round by round, so that what slows a whole round down cancels out. Both series are judged on one basis. */
export function ratioOf(of: Sample[], over: Sample[], basis?: Basis): Ratio {
  const busy = [of, over].every((samples) => median(samples.map(utilisation)) >= BUSY);
  const judged = basis ?? (busy ? "answers/s" : "answers per CPU-second");
  const rate = judged === "answers/s" ? perSecond : perCpuSecond;
  const ratios = of.map((sample, round) => rate(sample) / rate(over[round]!));
  return { median: median(ratios), min: Math.min(...ratios), max: Math.max(...ratios), basis: judged };
}
