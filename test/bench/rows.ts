import type { Series } from "./arms.ts";
import { type Basis, type Ratio, ratioOf } from "./statistics.ts";

/** One line of the result: what was found, beside what is to be reached. */
export interface Row {
  label: string;
  reach: string;
  found: string;
  /** Undefined where nothing is to be reached, or nothing was found. */
  reached?: boolean | undefined;
  ratio?: Ratio;
  /** For the plot: 1 is just reached, more is better. */
  share?: number;
  note?: string;
}

export function ratioRow(label: string, of: Series, over: Series, reach?: number, basis?: Basis): Row {
  const ratio = ratioOf(of.samples, over.samples, basis);
  const row: Row = {
    ...{ label, ratio, reach: reach === undefined ? "–" : `≥ ${reach} ×` },
    found: `${round(ratio.median)} × (${round(ratio.min)}–${round(ratio.max)})`,
    note: `by ${ratio.basis}`,
  };
  return reach === undefined ? row : { ...row, reached: ratio.median >= reach, share: ratio.median / reach };
}

export function atMostRow(label: string, value: number, limit: number, unit: string, note?: string): Row {
  return {
    ...{ label, reach: `≤ ${limit} ${unit}`, found: `${round(value)} ${unit}`, reached: value <= limit },
    ...{ share: Math.min(limit / Math.max(value, 1e-9), 100), ...(note !== undefined && { note }) },
  };
}

export function skippedRow(label: string, reach: string, reason: string): Row {
  return { label, reach, found: "–", note: `skipped: ${reason}` };
}

/** Three digits that count. */
export function round(value: number): string {
  return Math.abs(value) >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}
