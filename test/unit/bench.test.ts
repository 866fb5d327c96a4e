import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { expect, test } from "@jest/globals";
import { parseKey } from "../../src/keys/text.ts";
import { parseH2load } from "../bench/loads.ts";
import { readOptions } from "../bench/options.ts";
import { badChecksum, unknownKey, wrongSecret } from "../bench/records.ts";
import { quantile, ratioOf } from "../bench/statistics.ts";

const busy = (answers: number) => ({ answers, seconds: 2, cpuSeconds: 1.9 });

test("a ratio is the median of the rounds' ratios, not the ratio of medians", () => {
  const ratio = ratioOf([busy(90), busy(20), busy(500)], [busy(100), busy(40), busy(250)]);
  expect(ratio).toEqual({ median: 0.9, min: 0.5, max: 2, basis: "answers/s" });
});

test("a server that had less than 90 % of its core is judged by its CPU time", () => {
  const starved = { answers: 50, seconds: 2, cpuSeconds: 1 };
  expect(ratioOf([starved], [busy(95)])).toMatchObject({ median: 1, basis: "answers per CPU-second" });
  expect(ratioOf([busy(95)], [starved])).toMatchObject({ median: 1, basis: "answers per CPU-second" });
  expect(ratioOf([starved], [busy(100)], "answers/s")).toMatchObject({ median: 0.5, basis: "answers/s" });
});

test("a quantile lies between its two nearest values", () => {
  expect(quantile([4, 1, 3, 2], 0.5)).toBe(2.5);
  expect(quantile([1, 2, 3], 1)).toBe(3);
  expect(quantile([], 0.5)).toBeNaN();
});

const output = ({ done = 100, failed = 0, refused = 0, ok = 102, data = 102 * 230 }) => `
finished in 1.00s, 100.00 req/s, 6.09MB/s
requests: 128 total, 128 started, ${done} done, ${done - failed} succeeded, ${failed} failed, 0 errored, 0 timeout
status codes: ${ok} 2xx, 0 3xx, ${refused} 4xx, 0 5xx
traffic: 6.09MB (6389716) total, 71.95KB (73672) headers (space savings 95.76%), 5.37MB (${data}) data
`;

test("h2load's answers are counted, and the bytes of each", () => {
  expect(parseH2load(output({}))).toEqual({ answers: 100, meanBytes: 230 });
  expect(parseH2load(output({ data: 51 * 230 }))).toEqual({ answers: 100, meanBytes: 115 });
});

test("refused or failed answers, or none at all, are no measurement", () => {
  expect(() => parseH2load(output({ failed: 1 }))).toThrow("Not every answer was good");
  expect(() => parseH2load(output({ refused: 1 }))).toThrow("Not every answer was good");
  expect(() => parseH2load(output({ done: 0 }))).toThrow("no answer");
  expect(() => parseH2load("h2load: error")).toThrow("h2load said");
});

test("each kind of garbage is what it says", () => {
  const key = unknownKey();
  const { id, secret } = parseKey(key, ["lk"])!;
  const other = parseKey(wrongSecret(key), ["lk"])!;
  expect(other.id).toBe(id);
  expect(other.secret).not.toBe(secret);
  expect(parseKey(badChecksum(key), ["lk"])).toBeUndefined();
  expect(badChecksum(key)).toHaveLength(key.length);
});

test("a quick run leaves the large figure out unless it is named", () => {
  const figures = ["grpc", "large"];
  expect(readOptions(["--quick"], figures, "/tmp")).toMatchObject({ only: ["grpc"], rounds: 1, outDir: "/tmp" });
  expect(readOptions(["--quick", "--only", "large"], figures, "/tmp")?.only).toEqual(["large"]);
  expect(readOptions([], figures, "/tmp")).toMatchObject({ only: figures, rounds: 5, outDir: "docs/bench" });
});

test("a wrong option is named", () => {
  expect(() => readOptions(["--only", "grcp"], ["grpc"], "/tmp")).toThrow('There is no figure "grcp"');
  expect(() => readOptions(["--rounds", "0"], ["grpc"], "/tmp")).toThrow("--rounds");
});

test("another build is run by the node that is named for it, else by the one that measures", () => {
  const beside = (...args: string[]) => readOptions(args, ["builds"], "/tmp")?.beside;
  expect(beside("--beside", "old", "--beside-node", "node20")).toEqual({ dir: "old", node: "node20" });
  expect(beside("--beside", "old")).toEqual({ dir: "old", node: process.execPath });
  expect(beside()).toBeUndefined();
});

test("the bench shows Go's modules while they come, and what Go can't build", () => {
  const bin = mkdtempSync(join(tmpdir(), "latchkey go "));
  const build = () => {
    const script = `import { buildGo } from ${JSON.stringify(resolve("test/support/go.ts"))}; console.log(buildGo("test", "x"));`;
    const args = ["--experimental-strip-types", "--input-type=module", "--eval", script];
    return spawnSync(process.execPath, args, { encoding: "utf8", env: { PATH: bin } });
  };
  expect(build().stdout).toBe("there is no Go here\n");
  const built = (...lines: string[]) => {
    writeFileSync(join(bin, "go"), ["#!/bin/sh", ...lines, ""].join("\n"), { mode: 0o755 });
    return build();
  };
  const good = built("echo 'go: downloading example.org/module v1.0.0' >&2");
  expect(good).toMatchObject({ stdout: "undefined\n", stderr: expect.stringContaining("go: downloading example.org") });
  const bad = built("echo 'main.go:1: syntax error' >&2", "exit 1");
  expect(bad).toMatchObject({ stdout: "Go could not build it; why stands above\n" });
  expect(bad.stderr).toContain("syntax error");
  rmSync(bin, { recursive: true });
});
