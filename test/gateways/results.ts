import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "@jest/globals";
import { digestOf, type Gateway } from "./gateways.ts";
import { RUN_OF, tableIn } from "./tables.ts";

/** A column of the table: what was run, and what was seen. */
export interface Column {
  gateway: string;
  release: string;
  /** Day of the run. */
  on: string;
  /** `digestOf` its files, as they were run. */
  files: string;
  /** By row. */
  cells: Record<string, string>;
}

/** Of another release than the column's: how many rows were run, and those in which it differs. */
export interface OtherRelease extends Omit<Column, "cells"> {
  cases: number;
  differs: string;
}

/**
 * Holds what was seen of a gateway, by row, against its column of the table in the README; where GATEWAY_RESULTS names a
 * folder, leaves it there instead, for `npm run gateways -- --write` and `npm run matrix` to make the tables of.
 */
export function recordColumn(gateway: Gateway, release: string, seen: ReadonlyMap<string, string>): void {
  const folder = process.env.GATEWAY_RESULTS;
  const cells = Object.fromEntries(seen);
  if (folder === undefined) {
    const asked = Object.entries(columnOf(gateway.name).cells).filter(([, cell]) => cell !== "");
    expect(Object.fromEntries(asked)).toEqual(cells);
    return;
  }
  mkdirSync(folder, { recursive: true });
  const column: Column = {
    ...{ gateway: gateway.name, release, on: new Date().toISOString().slice(0, 10) },
    ...{ files: digestOf(gateway), cells },
  };
  writeFileSync(join(folder, `${gateway.name}.json`), JSON.stringify(column));
}

export function columnOf(gateway: string): Column {
  const [head, ...rows] = tableIn("matrix");
  const column = head!.indexOf(gateway);
  const cells = Object.fromEntries(rows.map((row) => [row[0]!, row[column] ?? ""]));
  const said = (row: string) => {
    const value = cells[row] ?? "";
    delete cells[row];
    return value;
  };
  return { gateway, release: said(RUN_OF.release), on: said(RUN_OF.on), files: said(RUN_OF.files), cells };
}

export function otherReleases(): OtherRelease[] {
  const [, ...rows] = tableIn("releases");
  return rows.map(([gateway = "", release = "", on = "", files = "", cases, differs = ""]) => ({
    ...{ gateway, release, on, files, differs, cases: Number(cases) },
  }));
}
