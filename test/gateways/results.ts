import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "@jest/globals";

export function recordColumn(gateway: string, cells: ReadonlyMap<string, string>): void {
  process.stderr.write(`${gateway}: ${JSON.stringify([...cells])}\n`);
}
