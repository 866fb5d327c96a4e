import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "@jest/globals";
import { FOLDER } from "./gateways.ts";

/**
 * Holds what was seen of a gateway, by row, against its column of the table in the README; where GATEWAY_RESULTS names a
 * folder, leaves it there instead, for `npm run gateways -- --write` to make the table of.
 */
export function recordColumn(gateway: string, seen: ReadonlyMap<string, string>): void {
  const folder = process.env.GATEWAY_RESULTS;
  if (folder !== undefined) {
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, `${gateway}.json`), JSON.stringify([...seen]));
    return;
  }
  expect(columnOf(gateway)).toEqual(Object.fromEntries(seen));
}

function columnOf(gateway: string): Record<string, string> {
  const readme = readFileSync(join(FOLDER, "README.md"), "utf8");
  const table = readme.split(/<!-- \/?matrix -->/)[1] ?? "";
  const [head, , ...rows] = table
    .trim()
    .split("\n")
    .map((line) => line.split("|").map((cell) => cell.trim()));
  const column = head?.indexOf(gateway) ?? -1;
  return Object.fromEntries(rows.map((cells) => [cells[1]!, cells[column]!]));
}
