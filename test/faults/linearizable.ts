import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { buildGo } from "../support/go.ts";
import type { Operation } from "./operation.ts";

/** What the checker found of one user's history. */
export interface Verdict {
  user: string;
  operations: number;
  /** `unknown`: it took too long to decide. */
  result: "ok" | "illegal" | "unknown";
  /** What no order explains, and a file with a picture of it. */
  stuck?: string;
  where?: string;
}

export type Decide = (history: readonly Operation[]) => Promise<Verdict[]>;

/** Builds `checker/`, which needs Go and, the first time, its module proxy. A string says why it can't be. */
export function buildChecker(): Decide | string {
  const binary = join(mkdtempSync(join(tmpdir(), "latchkey checker ")), "checker");
  const fault = buildGo("test/faults/checker", binary);
  if (fault !== undefined) return fault;
  const plots = mkdtempSync(join(tmpdir(), "latchkey histories "));
  return async (history) => {
    const checker = spawn(binary, ["-plots", plots], { stdio: ["pipe", "pipe", "pipe"] });
    const closed = once(checker, "close");
    const [found, complaint] = [text(checker.stdout), text(checker.stderr)];
    checker.stdin.end(history.map((operation) => `${JSON.stringify(operation)}\n`).join(""));
    const [code] = await closed;
    const verdicts = (await found)
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line) as Verdict);
    if (code !== 0 && verdicts.every(({ result }) => result === "ok")) throw new Error(await complaint);
    return verdicts;
  };
}
