import { closeSync, openSync } from "node:fs";
import { PassThrough, Writable } from "node:stream";
import { Code, ConnectError } from "@connectrpc/connect";
import { expect, jest, test } from "@jest/globals";
import { KeyError } from "../../src/keys/errors.ts";
import { type CallLog, createCallLog } from "../../src/rpc/call-log.ts";
import { createLogger, createMetrics } from "../../src/telemetry.ts";

type Line = { level: string; reason?: string; untold?: number };

function logged(): { lines: Line[]; calls: CallLog } {
  const lines: Line[] = [];
  const output = new Writable({
    write(chunk, _encoding, done) {
      lines.push(JSON.parse(String(chunk)));
      done();
    },
  });
  return { lines, calls: createCallLog({ log: createLogger({ level: "info", output }), metrics: createMetrics() }) };
}
const call = { service: "s", method: "m", startedMs: 0, requestId: "00000000" };

test("in an outage one call a second is told as an error, and each other refusal of ours always", () => {
  const { lines, calls } = logged();
  for (let count = 0; count < 100; count += 1) {
    calls.refused(call, new KeyError("DB_UNAVAILABLE", "away"));
    calls.itemFailed(new KeyError("DB_UNAVAILABLE", "away"));
  }
  calls.refused(call, new Error("a defect"));
  calls.refused(call, new Error("another"));
  const told = lines.map(({ level, reason }) => `${level} ${reason}`);
  expect(told.filter((line) => line === "error INTERNAL_ERROR")).toHaveLength(2);
  // More than one only where this took more than a second.
  const outages = told.filter((line) => line === "error DB_UNAVAILABLE").length;
  expect(outages).toBeGreaterThanOrEqual(1);
  expect(outages).toBeLessThan(20);
});

test("of a flood of refusals a hundred a second are logged, and how many were not", () => {
  const { lines, calls } = logged();
  const clock = jest.spyOn(performance, "now");
  try {
    clock.mockReturnValue(5_000);
    for (let count = 0; count < 150; count += 1) calls.refused(call, new KeyError("UNAUTHENTICATED", "no"));
    for (let count = 0; count < 150; count += 1) calls.refused(call, new ConnectError("no", Code.Unimplemented));
    expect(lines.map(({ untold }) => untold)).toEqual(Array(100).fill(undefined));
    calls.refused(call, new Error("a defect"));
    clock.mockReturnValue(6_000);
    calls.refused(call, new KeyError("UNAUTHENTICATED", "no"));
    calls.refused(call, new KeyError("UNAUTHENTICATED", "no"));
    expect(lines.slice(100).map(({ level, untold }) => [level, untold])).toEqual([
      ["error", undefined],
      ["info", 200],
      ["info", undefined],
    ]);
  } finally {
    clock.mockRestore();
  }
});

test("a log whose disk is full loses lines, and nothing else", () => {
  const fd = openSync("/dev/full", "w");
  const log = createLogger({ level: "info", output: Object.assign(new PassThrough(), { fd }) });
  for (let line = 0; line < 3; line += 1) expect(() => log.info("lost")).not.toThrow();
  closeSync(fd);
});
