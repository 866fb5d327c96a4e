import { afterEach, expect, test } from "@jest/globals";
import { type AuditEntry, auditedUserId, cleanUserAgent } from "../../src/keys/audit.ts";
import { type AuditLog, BURST, createAuditLog } from "../../src/keys/audit-log.ts";
import { stillClock } from "../support/records.ts";

const logs: AuditLog[] = [];
afterEach(() => Promise.all(logs.splice(0).map((log) => log.stop())));

const denied = (fields: Partial<AuditEntry> = {}): AuditEntry => ({
  ...{ at: new Date(0), action: "Create", result: "denied", reason: "UNAUTHENTICATED", keyIds: [] },
  ...fields,
});
const start = () => {
  const written: AuditEntry[] = [];
  const clock = stillClock();
  let fails = false;
  const failures: unknown[] = [];
  const log = createAuditLog({
    async write(entries) {
      if (fails) throw new Error("away");
      written.push(...entries);
    },
    onFailed: (error) => failures.push(error),
    clock: () => new Date(clock.nowMs()),
    nowMs: clock.nowMs,
  });
  logs.push(log);
  return {
    ...{ log, written, failures, pass: clock.pass },
    fail: (yes: boolean) => {
      fails = yes;
    },
  };
};

test("a flood of denials is written up to the burst, then one a second; the rest is counted in one entry a minute", async () => {
  const { log, written, pass } = start();
  for (let call = 0; call < 10_000; call += 1) log.note(denied());
  await log.flush();
  expect(written).toHaveLength(BURST);
  expect(log.leftOut).toBe(10_000 - BURST);
  pass(2_000);
  for (let call = 0; call < 10; call += 1) log.note(denied());
  await log.flush();
  expect(written).toHaveLength(BURST + 2);
  pass(60_000);
  await log.flush();
  expect(written.at(-1)).toEqual({
    ...{ action: "Create", result: "denied", reason: "UNAUTHENTICATED", keyIds: [] },
    ...{ at: new Date(62_000), leftOut: 10_000 - BURST + 8 },
  });
  expect(written).toHaveLength(BURST + 3);
});

test("strangers' floods leave room for members and admins, and members' for admins", async () => {
  const { log, written } = start();
  for (const who of [{}, { actor: "m" }, { actor: "a", actorIsAdmin: true }])
    for (let call = 0; call < 2 * BURST; call += 1) log.note(denied(who));
  await log.flush();
  expect(written).toHaveLength(3 * BURST);
});

test("while the database is away entries wait, as many as fit, and the others are counted", async () => {
  const { log, written, failures, fail, pass } = start();
  fail(true);
  for (let minute = 0; minute < 12; minute += 1) {
    for (let call = 0; call < BURST; call += 1) log.note(denied());
    await log.flush();
    pass(BURST * 1_000);
  }
  expect(failures).toHaveLength(12);
  expect(log.leftOut).toBeGreaterThanOrEqual(200);
  fail(false);
  await log.flush();
  expect(written.length).toBeLessThanOrEqual(1_001);
  await log.stop();
  const counted = written.reduce((sum, { leftOut = 1 }) => sum + leftOut, 0);
  expect(counted).toBe(12 * BURST);
});

test("the end writes what is held, and the counts", async () => {
  const { log, written } = start();
  for (let call = 0; call <= BURST; call += 1) log.note(denied());
  await log.stop();
  expect(written).toHaveLength(BURST + 1);
  expect(written.at(-1)?.leftOut).toBe(1);
});

test("what a caller says of itself is cut, and loses what looks like a key or a token", () => {
  const key = "lk_0000000000000000_00000000000000000000000000000000000000000002E6xys";
  expect(cleanUserAgent(`curl/8 ${key}`)).toBe("curl/8 [secret]");
  expect(cleanUserAgent("x eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln y")).toBe("x [secret] y");
  expect(cleanUserAgent("x".repeat(1_000))).toHaveLength(256);
  expect(auditedUserId(key)).toBe("[secret]");
  expect([auditedUserId("alice"), auditedUserId("x".repeat(257)), auditedUserId(7)]).toEqual([
    "alice",
    undefined,
    undefined,
  ]);
});
