import { afterEach, expect, jest, test } from "@jest/globals";
import { type AuditEntry, auditedUserId, cleanUserAgent } from "../../src/keys/audit/entry.ts";
import { type AuditLog, BURST, createAuditLog } from "../../src/keys/audit/log.ts";
import { deferred, stillClock } from "../support/records.ts";

const logs: AuditLog[] = [];
afterEach(() => void jest.useRealTimers());
afterEach(() => Promise.all(logs.splice(0).map((log) => log.stop())));

const denied = (fields: Partial<AuditEntry> = {}): AuditEntry => ({
  ...{ at: new Date(0), action: "Create", result: "denied", reason: "UNAUTHENTICATED", keyIds: [] },
  ...fields,
});
const start = () => {
  const written: AuditEntry[] = [];
  const batches: number[] = [];
  let hold: Promise<void> | undefined;
  const clock = stillClock(5_000_000);
  let fails = false;
  const failures: unknown[] = [];
  const log = createAuditLog({
    async write(entries) {
      batches.push(entries.length);
      await hold;
      if (fails) throw new Error("away");
      written.push(...entries);
    },
    onFailed: (error) => failures.push(error),
    clock: () => new Date(clock.nowMs()),
    nowMs: clock.nowMs,
  });
  logs.push(log);
  return {
    ...{ log, written, batches, failures, pass: clock.pass },
    hang: () => {
      const { promise, resolve } = deferred<void>();
      hold = promise;
      return resolve;
    },
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
    ...{ at: new Date(5_062_000), leftOut: 10_000 - BURST + 8 },
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

test("after the burst a stranger's and a member's denials are written once a second, an admin's ten times", async () => {
  for (const [who, rate] of [
    [{}, 1],
    [{ actor: "m" }, 1],
    [{ actor: "a", actorIsAdmin: true }, 10],
  ] as const) {
    const { log, written, pass } = start();
    for (let call = 0; call < BURST; call += 1) log.note(denied(who));
    pass(3_000);
    for (let call = 0; call < BURST; call += 1) log.note(denied(who));
    await log.flush();
    expect(written).toHaveLength(BURST + 3 * rate);
    // What was saved up is no more than the burst.
    pass(1_000_000);
    for (let call = 0; call < 2 * BURST; call += 1) log.note(denied(who));
    await log.flush();
    expect(written.filter(({ leftOut }) => leftOut === undefined)).toHaveLength(2 * BURST + 3 * rate);
  }
});

test("what is left out is counted by action, result and reason, and nothing else of it is kept", async () => {
  const { log, written } = start();
  for (let call = 0; call < BURST; call += 1) log.note(denied());
  const kinds: Partial<AuditEntry>[] = [
    { action: "Create" },
    { action: "Revoke" },
    { reason: "SCOPE_FORBIDDEN" },
    { result: "answered" },
  ];
  for (let call = 0; call < 3; call += 1) for (const kind of kinds) log.note(denied({ userId: "alice", ...kind }));
  await log.stop();
  const counted = { ...denied(), at: new Date(5_000_000), leftOut: 3 };
  expect(written.slice(BURST)).toEqual(kinds.map((kind) => ({ ...counted, ...kind })));
});

test("counts come once a minute and no sooner, and only when there are some", async () => {
  const { log, written, batches, pass } = start();
  for (let call = 0; call <= BURST; call += 1) log.note(denied());
  pass(59_999);
  await log.flush();
  expect(written.some(({ leftOut }) => leftOut !== undefined)).toBe(false);
  pass(1);
  await log.flush();
  expect(written.at(-1)?.leftOut).toBe(1);
  pass(60_000);
  await log.flush();
  expect(batches).toEqual([BURST, 1]);
});

test("one write at a time, and what comes while it hangs waits, as much as fits", async () => {
  const { log, written, batches, hang, pass } = start();
  const end = hang();
  log.note(denied());
  const flushes = [log.flush(), log.flush()];
  for (let batch = 0; batch < 11; batch += 1) {
    pass(BURST * 1_000);
    for (let call = 0; call < BURST; call += 1) log.note(denied());
    flushes.push(log.flush());
  }
  expect(batches).toEqual([1]);
  expect(log.leftOut).toBe(BURST);
  end();
  await Promise.all(flushes);
  await log.flush();
  expect(batches).toEqual([1, 1_001]);
  expect(written.at(-1)?.leftOut).toBe(BURST);
});

test("a count that could not be written and has no room any more is added to the next, and is not counted twice", async () => {
  const { log, written, fail, pass } = start();
  fail(true);
  for (let call = 0; call < 2 * BURST; call += 1) log.note(denied());
  pass(60_000);
  await log.flush();
  for (let batch = 0; batch < 12; batch += 1) {
    pass(BURST * 1_000);
    for (let call = 0; call < BURST; call += 1) log.note(denied());
    await log.flush();
  }
  fail(false);
  await log.stop();
  const all = 14 * BURST;
  expect(written.reduce((sum, { leftOut = 1 }) => sum + leftOut, 0)).toBe(all);
  expect(log.leftOut + written.filter(({ leftOut }) => leftOut === undefined).length).toBe(all);
});

test("what is noted is written within a second, unasked; after the end no more", async () => {
  jest.useFakeTimers();
  const { log, batches } = start();
  log.note(denied());
  jest.advanceTimersByTime(999);
  expect(batches).toEqual([]);
  jest.advanceTimersByTime(1);
  expect(batches).toEqual([1]);
  await log.stop();
  expect(jest.getTimerCount()).toBe(0);
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
  const cut = `${key} `.repeat(14).length + 22;
  expect(cleanUserAgent(`${" ".repeat(1_024 - cut)}${`${key} `.repeat(15)}`)).not.toContain("000");
  expect(auditedUserId(key)).toBe("[secret]");
  expect([auditedUserId("alice"), auditedUserId("x".repeat(257)), auditedUserId(7)]).toEqual([
    "alice",
    undefined,
    undefined,
  ]);
});
