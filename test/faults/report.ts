import { table } from "../support/trust-page.ts";
import type { Figures, Round } from "./round.ts";

/** What all rounds of one fault came to. */
export interface Row {
  fault: string;
  rounds: number;
  /** Of all rounds together. */
  sums: Pick<Figures, "operations" | "indeterminate" | "goodAsked" | "goodFailed">;
  /** The worst of any round. */
  worst: Pick<Figures, "goodSlowestMs" | "writePauseMs" | "recoveryMs">;
  /** Promises that were broken, and histories that no order explains. */
  broken: number;
}

export function rowsOf(rounds: readonly (Pick<Round, "fault" | "figures"> & { broken: number })[]): Row[] {
  const rows = new Map<string, Row>();
  for (const { fault, figures, broken } of rounds) {
    const row = rows.get(fault) ?? {
      ...{ fault, rounds: 0, broken: 0 },
      sums: { operations: 0, indeterminate: 0, goodAsked: 0, goodFailed: 0 },
      worst: { goodSlowestMs: 0, writePauseMs: 0, recoveryMs: 0 },
    };
    rows.set(fault, row);
    row.rounds += 1;
    row.broken += broken;
    for (const name of ["operations", "indeterminate", "goodAsked", "goodFailed"] as const)
      row.sums[name] += figures[name];
    for (const name of ["goodSlowestMs", "writePauseMs", "recoveryMs"] as const)
      row.worst[name] = Math.max(row.worst[name], figures[name]);
  }
  return [...rows.values()];
}

export function faultTable(rows: readonly Row[]): string {
  const seconds = (ms: number) => `${(ms / 1_000).toFixed(1)} s`;
  return table(
    [
      "fault",
      "runs",
      "operations",
      "of them without an answer",
      "promises broken",
      "good keys not accepted, of asked",
      "slowest of them",
      "longest pause of changes",
      "whole again after",
    ],
    rows.map(({ fault, rounds, sums, worst, broken }) => [
      ...[fault, rounds, sums.operations, sums.indeterminate, broken],
      ...[`${sums.goodFailed} of ${sums.goodAsked}`, seconds(worst.goodSlowestMs)],
      ...[seconds(worst.writePauseMs), seconds(worst.recoveryMs)],
    ]),
  );
}
