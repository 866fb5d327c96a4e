import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough, Writable } from "node:stream";
import { create, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { expect, jest, test } from "@jest/globals";
import { BatchVerifyRequestSchema, VerifyRequestSchema } from "#gen/latchkey/v1/api_key_service_pb";
import { type CallLog, createCallLog } from "../../src/edge/call-log.ts";
import { createFastBatchVerify } from "../../src/edge/doors/fast-verify-many.ts";
import { createFastVerify } from "../../src/edge/doors/verify.ts";
import type { Authenticator } from "../../src/edge/tokens.ts";
import type { FastMethod } from "../../src/fastpath/fast-method.ts";
import { KeyError } from "../../src/keys/errors.ts";
import type { Verification } from "../../src/keys/verify/verify.ts";
import { createLogger } from "../../src/observe/logger.ts";
import { createMetrics, type Metrics } from "../../src/observe/metrics.ts";
import { deferred } from "../support/records.ts";

type Line = { level: string; reason?: string; untold?: number };

function logged(): { lines: Line[]; calls: CallLog; metrics: Metrics } {
  const lines: Line[] = [];
  const output = new Writable({
    write(chunk, _encoding, done) {
      lines.push(JSON.parse(String(chunk)));
      done();
    },
  });
  const metrics = createMetrics();
  return { lines, metrics, calls: createCallLog({ log: createLogger({ level: "info", output }), metrics }) };
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

test("log lines that can't be written are counted, and the log says how many were lost once it can be written again", async () => {
  const metrics = createMetrics();
  const lost = async () => Number(/^latchkey_log_lines_lost_total (\d+)$/m.exec(await metrics.text())?.[1]);
  const before = await lost();
  const folder = mkdtempSync(join(tmpdir(), "latchkey log "));
  const file = join(folder, "log");
  try {
    const fd = openSync("/dev/full", "w");
    const log = createLogger({ level: "info", output: Object.assign(new PassThrough(), { fd }) });
    for (let line = 0; line < 3; line += 1) log.info("lost");
    expect(await lost()).toBe(before + 3);
    closeSync(fd);
    // The lowest number that is free is given out next.
    expect(openSync(file, "w")).toBe(fd);
    log.info("there is room again");
    log.info("and goes on");
    closeSync(fd);
    const written = readFileSync(file, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(written).toMatchObject([
      { msg: "there is room again" },
      { level: "warn", event: "log_lines_lost", lines: 3 },
      { msg: "and goes on" },
    ]);
    expect(await lost()).toBe(before + 3);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("a call that is answered past its deadline is counted as DEADLINE_EXCEEDED, as its caller was told", async () => {
  const { calls, metrics } = logged();
  const authenticator = { service: () => undefined } as unknown as Authenticator;
  const late = deferred<Verification>();
  const valid = { outcome: "valid", entry: undefined, missingScopes: [], asOfMs: 0, nowMs: 0 } as const;
  const verify = createFastVerify({ verify: () => late.promise, authenticator, calls });
  const verifyMany = createFastBatchVerify({ verifyMany: () => late.promise.then(() => []), authenticator, calls });
  const asked = { protocol: "grpc", headers: {}, peer: undefined, json: false } as const;
  const messages: [FastMethod, Uint8Array][] = [
    [verify, toBinary(VerifyRequestSchema, create(VerifyRequestSchema, { key: "lk_x" }))],
    [verifyMany, toBinary(BatchVerifyRequestSchema, create(BatchVerifyRequestSchema, { requests: [{ key: "lk_x" }] }))],
  ];
  const answers = messages.flatMap(([method, message]) =>
    [undefined, 1].map((timeoutMs) => {
      const signal = () => new AbortController().signal;
      return method.answer({ ...asked, message: Buffer.from(message), timeoutMs, signal });
    }),
  );
  await new Promise((resolve) => setTimeout(resolve, 2));
  late.resolve(valid);
  await Promise.all(answers);
  const text = await metrics.text();
  for (const method of ["Verify", "BatchVerify"])
    for (const code of ["ok", "deadline_exceeded"])
      expect(text).toContain(`_count{method="latchkey.v1.ApiKeyService/${method}",code="${code}"} 1\n`);
  expect(text).toContain('latchkey_verify_total{outcome="valid"} 1\n');
});
