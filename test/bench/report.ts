import type { Series } from "./arms.ts";
import type { Findings } from "./figures/figure.ts";
import type { Machine } from "./machine.ts";
import { type Row, round } from "./rows.ts";
import { median, perCpuSecond, perSecond, utilisation } from "./statistics.ts";

export interface Taken extends Findings {
  name: string;
  title: string;
  /** Why it could not be taken. */
  failure?: string;
}

export interface Report {
  machine: Machine;
  rounds: number;
  secondsPerRound: number;
  figures: Taken[];
}

export function machineLine({ machine, rounds, secondsPerRound }: Report): string {
  const { cpu, cores, memoryGiB, kernel, node, mongodb, load, date, pinned } = machine;
  const where = pinned ? "server on core 0, load and MongoDB on core 1" : "not pinned: figures mean little";
  return `${cpu}, ${cores} cores, ${memoryGiB} GiB, Linux ${kernel} · Node ${node} · MongoDB ${mongodb} · ${load} · ${where} · ${rounds} rounds of ${secondsPerRound} s · ${date}`;
}

/** Two Markdown tables: what was to be reached, and what each arm did. */
export function toMarkdown(report: Report): string {
  const rows = report.figures.flatMap(({ rows }) => rows);
  const figures = table(
    ["figure", "to reach", "found", "", "remarks"],
    rows.map(({ label, reach, found, reached, note = "" }) => [label, reach, found, verdict(reached), note]),
  );
  const arms = table(
    ["arm", "answers/s", "per CPU-second", "core used"],
    report.figures.flatMap(({ series }) => series.map(summary)),
  );
  const failures = report.figures.flatMap(({ name, failure }) =>
    failure === undefined ? [] : [`${name} could not be taken: ${failure}`],
  );
  return [machineLine(report), figures, arms, ...failures].join("\n\n");
}

function summary({ name, samples }: Series): string[] {
  return [
    name,
    round(median(samples.map(perSecond))),
    round(median(samples.map(perCpuSecond))),
    `${Math.round(median(samples.map(utilisation)) * 100)} %`,
  ];
}

function verdict(reached: Row["reached"]): string {
  return reached === undefined ? "" : reached ? "reached" : "not reached";
}

function table(head: string[], rows: string[][]): string {
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((row) => row[column]!.length)));
  const line = (cells: string[]) => `| ${cells.map((cell, column) => cell.padEnd(widths[column]!)).join(" | ")} |`;
  return [line(head), `|${widths.map((width) => "-".repeat(width + 2)).join("|")}|`, ...rows.map(line)].join("\n");
}
