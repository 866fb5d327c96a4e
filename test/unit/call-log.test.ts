import { Writable } from "node:stream";
import { expect, test } from "@jest/globals";
import { KeyError } from "../../src/keys/errors.ts";
import { createCallLog } from "../../src/rpc/call-log.ts";
import { createLogger, createMetrics } from "../../src/telemetry.ts";

test("in an outage one call a second is told as an error, and each other refusal of ours always", () => {
  const lines: { level: string; reason: string }[] = [];
  const output = new Writable({
    write(chunk, _encoding, done) {
      lines.push(JSON.parse(String(chunk)));
      done();
    },
  });
  const calls = createCallLog({ log: createLogger({ level: "info", output }), metrics: createMetrics() });
  const call = { service: "s", method: "m", startedMs: performance.now(), requestId: "00000000" };
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
