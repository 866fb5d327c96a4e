import { Writable } from "node:stream";
import { describe, expect, test } from "@jest/globals";
import { createIdentity, identityHeaders } from "../../src/edge/answer.ts";
import { createCallLog } from "../../src/edge/call-log.ts";
import { createDecide, type Denial } from "../../src/edge/gateway/decide.ts";
import { headersToRemove, noteHeader, noteQuery, nothingPresented } from "../../src/edge/gateway/presented-key.ts";
import type { Authenticator } from "../../src/edge/tokens.ts";
import { type ErrorReason, KeyError } from "../../src/keys/errors.ts";
import type { VerifyKey } from "../../src/keys/verify/verify.ts";
import type { Entry } from "../../src/keys/verify/view.ts";
import { createLogger } from "../../src/observe/logger.ts";
import { createMetrics } from "../../src/observe/metrics.ts";
import { recordOf } from "../support/records.ts";

const SOURCES = {
  ...{ bearer: true, headers: ["x-api-key"], queries: ["key"], prefixes: ["lk_"] },
  identity: createIdentity(["plan", "note"]),
};

interface Line {
  level: string;
  reason?: string;
  method?: string;
}

function decided(verify: VerifyKey, admitted: () => Promise<void> | undefined = () => undefined) {
  const lines: Line[] = [];
  const output = new Writable({
    write(chunk, _encoding, done) {
      lines.push(JSON.parse(String(chunk)));
      done();
    },
  });
  const calls = createCallLog({ log: createLogger({ level: "info", output }), metrics: createMetrics() });
  const authenticator = { service: admitted } as unknown as Authenticator;
  const decide = createDecide(SOURCES, { verify, authenticator, calls, answerMs: 100, anonymous: undefined }, "s", "m");
  const presented = { ...nothingPresented(), key: "a key", count: 1 };
  const ask = async (timeoutMs?: number, requiredScopes: readonly string[] | undefined = []) =>
    (await decide({
      presented,
      requiredScopes,
      gatewayToken: undefined,
      peer: undefined,
      timeoutMs,
      requestId: undefined,
    })) as Denial;
  return { ask, lines };
}

const failing = (error: unknown) => decided(() => Promise.reject(error));

test("a key that lacks 64 long scopes is refused within the 4 KiB of headers that gateways take: ten of them, and their number", async () => {
  const missingScopes = Array.from({ length: 64 }, (_, index) => `s${index}`.padEnd(128, "x"));
  const verification = { entry: undefined, missingScopes, asOfMs: 0, nowMs: 0 };
  const { ask } = decided(() => ({ ...verification, outcome: "insufficient_scope" }));
  const { body, headers } = await ask();
  expect(JSON.parse(body)).toMatchObject({ missingScopes: missingScopes.slice(0, 10), missingScopesInAll: 64 });
  expect(headers["www-authenticate"]).toContain(`scope="${missingScopes.slice(0, 10).join(" ")}"`);
  // The body stands in a header once more.
  expect(JSON.stringify(headers).length + body.length).toBeLessThan(4_096);
});

describe("what can't be answered", () => {
  const cases: [ErrorReason, number, boolean][] = [
    ["OVERLOADED", 429, false],
    ["DB_UNAVAILABLE", 503, true],
    ["CONFLICT", 503, true],
    ["DEADLINE_EXCEEDED", 503, true],
    ["DB_ERROR", 503, true],
    ["INTERNAL_ERROR", 503, false],
    ["INVALID_ARGUMENT", 503, false],
    ["UNAUTHENTICATED", 503, false],
  ];
  test.each(cases)("%s is %i, and an outage: %p", async (reason, status, outage) => {
    const denial = await failing(new KeyError(reason, "A sentence.")).ask();
    expect(denial).toMatchObject({ allowed: false, status, outage, headers: { "retry-after": "1" } });
    expect(JSON.parse(denial.body)).toMatchObject({ reason });
  });

  test("a defect says nothing of its cause", async () => {
    const { ask, lines } = failing(new TypeError("the secret is xyzzy"));
    const { body, ...denial } = await ask();
    expect(denial).toMatchObject({ status: 503, outage: false });
    expect(JSON.parse(body)).toMatchObject({ reason: "INTERNAL_ERROR", message: expect.not.stringContaining("xyzzy") });
    expect(lines).toMatchObject([{ level: "error", reason: "INTERNAL_ERROR" }]);
  });

  test("what is thrown at once is answered as what is thrown later", async () => {
    const { ask } = decided(() => {
      throw new KeyError("OVERLOADED", "Busy.", { retryAfterMs: 2_001 });
    });
    expect(await ask()).toMatchObject({ status: 429, headers: { "retry-after": "3" } });
  });

  test("it is told before the gateway's patience ends", async () => {
    const { ask } = decided(() => new Promise(() => {}));
    const { body, ...denial } = await ask(30);
    expect(denial).toMatchObject({ status: 503, outage: true });
    expect(JSON.parse(body)).toMatchObject({ reason: "DEADLINE_EXCEEDED" });
  });

  test("a gateway that names no time is answered in the one that is configured", async () => {
    const { ask } = decided(() => new Promise(() => {}));
    const unnamed = ask().then((answer) => ({ which: "unnamed", answer }));
    const named = ask(3_000).then((answer) => ({ which: "named", answer }));
    const { which, answer } = await Promise.race([named, unnamed]);
    expect(which).toBe("unnamed");
    expect(JSON.parse(answer.body)).toMatchObject({ reason: "DEADLINE_EXCEEDED" });
    await named;
  });

  test("a gateway that is not admitted is refused before its key is looked at, and operators are warned once a second", async () => {
    let verified = 0;
    const refusal = new KeyError("UNAUTHENTICATED", "No token was sent.");
    const { ask, lines } = decided(
      () => {
        verified += 1;
        return new Promise(() => {});
      },
      () => Promise.reject(refusal),
    );
    for (let call = 0; call < 20; call += 1) {
      const { body, status } = await ask();
      expect(status).toBe(503);
      expect(body).not.toContain("No token");
    }
    expect(verified).toBe(0);
    const told = lines.filter(({ level, reason }) => level === "warn" && reason === "UNAUTHENTICATED").length;
    // More than one only where this took more than a second.
    expect(told).toBeGreaterThanOrEqual(1);
    expect(told).toBeLessThan(20);
  });
});

const identityOf = (fields: object) =>
  identityHeaders(SOURCES.identity, { ...recordOf("0123456789abcdef"), ...fields } as unknown as Entry);

test("identity headers hold visible ASCII alone, are never empty, and can be read back", () => {
  const userId = "zoë %,\u0000\n😀\ud800";
  const headers = identityOf({ userId, name: "Köln, 100%", scopes: ["read", "billing:write"] });
  for (const value of Object.values(headers)) expect(value).toMatch(/^[\x20-\x7e]+$/);
  expect(decodeURIComponent(headers["x-latchkey-user"]!)).toBe(userId.toWellFormed());
  expect(decodeURIComponent(headers["x-latchkey-name"]!)).toBe("Köln, 100%");
  expect(headers["x-latchkey-user"]).not.toMatch(/[, ]/);
  expect(headers["x-latchkey-scopes"]).toBe("read billing:write");
});

test("each entry of metadata that gateways are told has its header, whether the key has it or not, and no other", () => {
  const headers = identityOf({ metadata: "note=a b, ü\nplan=x=y\nsecret=z" });
  expect([headers["x-latchkey-meta-plan"], headers["x-latchkey-meta-note"]]).toEqual(["x=y", "a%20b%2C%20%C3%BC"]);
  expect(identityOf({ metadata: "note=" })).toMatchObject({ "x-latchkey-meta-plan": "-", "x-latchkey-meta-note": "-" });
  expect(identityOf({ metadata: "plan=-" })["x-latchkey-meta-plan"]).toBe("%2D");
  expect(Object.keys(headers)).not.toContain("x-latchkey-meta-secret");
  const presented = nothingPresented();
  for (const name of ["X-Latchkey-Meta-Plan", "x-latchkey-meta_plan", "x-latchkey-meta-secret"])
    noteHeader(presented, SOURCES, name, "forged");
  const removed = headersToRemove(presented, SOURCES);
  expect(removed).toEqual(
    expect.arrayContaining(["x_latchkey_meta_plan", "x-latchkey-meta_plan", "x-latchkey-meta-secret"]),
  );
  expect(removed).not.toContain("x-latchkey-meta-plan");
});

test("a user whose id is - is told from nobody", () => {
  expect(identityOf({ userId: "-" })["x-latchkey-user"]).toBe("%2D");
});

test("no name is -, and a name that is - is not", () => {
  expect(identityOf({})["x-latchkey-name"]).toBe("-");
  expect(identityOf({ name: "-" })["x-latchkey-name"]).toBe("%2D");
  expect(identityOf({ name: "--" })["x-latchkey-name"]).toBe("--");
});

test("what passes for an identity header is removed in every spelling, and what does not is left", () => {
  const presented = nothingPresented();
  const forged = [
    ...["X_Latchkey_User", "x-latchkey_user", "X-LATCHKEY_KEY-ID", "x.latchkey.user", "x-latchkey-admin"],
    ...["x-latchkey-gateway-token", "x_latchkey-required_scopes"],
  ];
  const others = [
    "x-latchkey",
    "x-latchkey-",
    "xx-latchkey-user",
    "latchkey-user",
    "x-latchkeyuser",
    "x-forwarded-for",
  ];
  for (const name of [...forged, ...others, "X-Latchkey-User", "x-latchkey-key-id"])
    noteHeader(presented, SOURCES, name, "root");
  const removed = headersToRemove(presented, SOURCES);
  expect(removed).toEqual(expect.arrayContaining(forged.map((name) => name.toLowerCase())));
  // Those that are overwritten must not be removed afterwards.
  for (const name of [...others, "x-latchkey-user", "x-latchkey-key-id"]) expect(removed).not.toContain(name);
  expect(new Set(removed).size).toBe(removed.length);
});

test("of the query, a parameter counts by its decoded name, and is removed as it was spelled", () => {
  const presented = nothingPresented();
  noteQuery(presented, SOURCES, "/p?k%65y=lk%5Fa&other=1#?key=b");
  expect(presented).toMatchObject({ key: "lk_a", count: 1, queryNames: ["k%65y"] });
  noteQuery(presented, { ...SOURCES, queries: [] }, "/p?key=c");
  expect(presented.count).toBe(1);
});
