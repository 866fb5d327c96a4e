import { describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import type { FieldViolation } from "../../src/keys/errors.ts";
import {
  checkGracePeriod,
  checkLifetime,
  checkName,
  checkReason,
  checkRequestId,
  checkRequiredScopes,
  checkScopes,
  checkUserId,
  isRequestId,
  parseScopePatterns,
  scopesMissing,
  type TimeSpan,
} from "../../src/keys/policy.ts";

const everything = parseScopePatterns(["*"])!;
const policy = { scopes: everything, memberScopes: everything, memberMetadata: everything, maxGraceMs: 604_800_000 };
const NOW = new Date("2026-01-01T00:00:00.000Z");

/** What a check returned, and the fields it complained of. */
function seen<T>(check: (violations: FieldViolation[]) => T): {
  value: T;
  fields: string[];
  violations: FieldViolation[];
} {
  const violations: FieldViolation[] = [];
  const value = check(violations);
  return { value, fields: [...new Set(violations.map(({ field }) => field))], violations };
}

// Strings of every kind, with what the rules are about more often than chance would have it.
const text = fc.oneof(
  fc.string({ unit: "binary", maxLength: 600 }),
  fc.string({ unit: "grapheme", minLength: 120, maxLength: 140 }),
  fc
    .array(fc.constantFrom(" ", "\t", "\u0000", "\u0085", "\ud800", "\udc00", "a", "é", "😀", "superseded"))
    .map((parts) => parts.join("")),
  fc.constantFrom(
    "",
    " superseded ",
    "x".repeat(128),
    "😀".repeat(128),
    "x".repeat(129),
    "x".repeat(512),
    "x".repeat(513),
  ),
);
const goodScope = fc
  .tuple(fc.constantFrom(..."az09"), fc.string({ unit: fc.constantFrom(..."abz019._:/-"), maxLength: 127 }))
  .map((parts) => parts.join(""));
const scope = fc.oneof(
  goodScope,
  text,
  fc.constantFrom("", "A", "-a", "a*", "a b", "ä", "a".repeat(128), "a".repeat(129)),
);
const isScope = (one: string) =>
  one.length <= 128 &&
  [...one].every((char, index) => (index === 0 ? /[a-z0-9]/ : /[a-z0-9._:/-]/).test(char)) &&
  one !== "";
const points = (one: string) => Array.from(one).length;
/** C0, DEL and C1. */
const hasControls = (one: string) => [...one].some((char) => char < " " || (char >= "\u007f" && char <= "\u009f"));
const span = fc.record<TimeSpan>({
  seconds: fc.oneof(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), fc.bigInt({ min: -3n, max: 3n })),
  nanos: fc.oneof(fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }), fc.constantFrom(0, 999_999_999, -1, 1)),
});

describe("whatever comes in, a check answers with the field's name or takes it", () => {
  test("name: trimmed, 1 to 128 characters as people count them, no control characters, well-formed", () => {
    fc.assert(
      fc.property(text, (name) => {
        const { value, fields } = seen((violations) => checkName(name, violations));
        const trimmed = name.trim();
        const good = points(trimmed) >= 1 && points(trimmed) <= 128 && trimmed.isWellFormed() && !hasControls(trimmed);
        expect({ value, fields }).toEqual({ value: trimmed, fields: good ? [] : ["name"] });
      }),
    );
  });

  test("user_id: 1 to 256 characters, not blank, no control characters, kept as it is", () => {
    fc.assert(
      fc.property(text, (userId) => {
        const good = userId.trim() !== "" && points(userId) <= 256 && userId.isWellFormed() && !hasControls(userId);
        expect(seen((violations) => checkUserId(userId, violations)).fields).toEqual(good ? [] : ["user_id"]);
      }),
    );
  });

  test("reason: at most 512 characters, no control characters, well-formed, and not the reserved word however it is padded", () => {
    fc.assert(
      fc.property(text, (reason) => {
        const isReserved = reason.trim() === "superseded";
        const good = points(reason) <= 512 && reason.isWellFormed() && !hasControls(reason) && !isReserved;
        expect(seen((violations) => checkReason(reason, violations)).fields).toEqual(good ? [] : ["reason"]);
      }),
    );
  });

  test("scopes: each bad one is named by its place, at most 64 are taken, and the good ones come back once, sorted", () => {
    fc.assert(
      fc.property(fc.array(scope, { maxLength: 70 }), (scopes) => {
        const { value, fields } = seen((violations) => checkScopes(scopes, policy, violations));
        const bad = scopes.slice(0, 64).flatMap((one, index) => (isScope(one) ? [] : [`scopes[${index}]`]));
        expect(fields).toEqual(scopes.length > 64 ? ["scopes", ...bad] : bad);
        expect(value).toEqual([...new Set(scopes)].sort());
        const required = seen((violations) => checkRequiredScopes(scopes, violations)).fields;
        expect(required).toEqual(fields.map((field) => `required_${field}`));
      }),
    );
  });

  test("a well-formed scope that does not exist here is a bad field", () => {
    const narrow = { ...policy, scopes: parseScopePatterns(["billing:*"])! };
    fc.assert(
      fc.property(
        fc.oneof(
          goodScope,
          goodScope.map((one) => `billing:${one}`.slice(0, 128)),
        ),
        (one) => {
          const { fields } = seen((violations) => checkScopes([one], narrow, violations));
          expect(fields).toEqual(one.startsWith("billing:") ? [] : ["scopes[0]"]);
        },
      ),
    );
  });

  test("ttl and expires_at: at least 1 s away, not after the year 9999, valid as protobuf has it, rounded down to 1 ms", () => {
    fc.assert(
      fc.property(fc.constantFrom("ttl" as const, "expiresAt" as const), span, (kind, value) => {
        const answer = seen((violations) => checkLifetime({ case: kind, value }, policy, NOW, violations));
        const nanos = value.seconds * 1_000_000_000n + BigInt(value.nanos);
        const mixed = (value.seconds > 0n && value.nanos < 0) || (value.seconds < 0n && value.nanos > 0);
        const valid = Math.abs(value.nanos) <= 999_999_999 && !mixed && !(kind === "expiresAt" && value.nanos < 0);
        const from = kind === "ttl" ? 0n : BigInt(NOW.getTime());
        const ms = (nanos < 0n ? -1n : nanos / 1_000_000n) - from;
        const good = valid && ms >= 1_000n && ms + BigInt(NOW.getTime()) <= 253_402_300_799_999n;
        expect(answer.fields).toEqual(good ? [] : [kind === "ttl" ? "ttl" : "expires_at"]);
        if (good) expect(answer.value).toBe(Number(ms));
      }),
      { numRuns: 1_000 },
    );
  });

  test("grace_period: 0 to the longest allowed", () => {
    fc.assert(
      fc.property(span, (value) => {
        const nanos = value.seconds * 1_000_000_000n + BigInt(value.nanos);
        const valid = Math.abs(value.nanos) <= 999_999_999 && value.seconds >= 0n && value.nanos >= 0;
        const good = valid && nanos / 1_000_000n <= BigInt(policy.maxGraceMs);
        const answer = seen((violations) => checkGracePeriod(value, policy, violations));
        expect(answer.fields).toEqual(good ? [] : ["grace_period"]);
        if (good) expect(answer.value).toBe(Number(nanos / 1_000_000n));
      }),
      { numRuns: 1_000 },
    );
  });

  test("no complaint quotes what was sent, but for a well-formed scope", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme", minLength: 12, maxLength: 20 }), (filler) => {
        const bad = `\u0000${filler}\ud800`;
        const { violations } = seen((all) => {
          checkName(bad, all);
          checkUserId(bad, all);
          checkReason(bad, all);
          checkScopes([bad], policy, all);
        });
        expect(violations.length).toBeGreaterThanOrEqual(4);
        for (const { description } of violations) expect(description).not.toContain(filler);
      }),
    );
  });
});

test("absent name, lifetime and grace period are no complaint", () => {
  const { value, fields } = seen((violations) => [
    checkName(undefined, violations),
    checkLifetime(undefined, policy, NOW, violations),
    checkGracePeriod(undefined, policy, violations),
  ]);
  expect({ value, fields }).toEqual({ value: [undefined, undefined, 0], fields: [] });
});

test("a pattern matches as a plain reading of it does, and ! takes away", () => {
  const matches = (pattern: string, one: string): boolean => {
    if (pattern === "") return one === "";
    if (pattern[0] !== "*") return one[0] === pattern[0] && matches(pattern.slice(1), one.slice(1));
    return Array.from({ length: one.length + 1 }, (_, skip) => skip).some((skip) =>
      matches(pattern.slice(1), one.slice(skip)),
    );
  };
  const few = fc
    .string({ unit: fc.constantFrom("a", "b", ".", ":", "*"), minLength: 1, maxLength: 5 })
    .filter((one) => /^[ab*]/.test(one));
  const one = fc.string({ unit: fc.constantFrom("a", "b", ".", ":"), minLength: 1, maxLength: 6 });
  fc.assert(
    fc.property(
      fc.array(few, { minLength: 1, maxLength: 3 }),
      fc.array(few, { maxLength: 2 }),
      one,
      (allowed, denied, scopeAsked) => {
        const patterns = parseScopePatterns([...allowed, ...denied.map((pattern) => `!${pattern}`)])!;
        expect(patterns.matches(scopeAsked)).toBe(
          allowed.some((pattern) => matches(pattern, scopeAsked)) &&
            !denied.some((pattern) => matches(pattern, scopeAsked)),
        );
      },
    ),
    { numRuns: 1_000 },
  );
});

test("a malformed pattern is not taken, and only ! patterns leave all others", () => {
  for (const bad of ["", "!", "A", "a b", "ä", "!!a", "a!", "x".repeat(129)])
    expect(parseScopePatterns(["a", bad])).toBeUndefined();
  const others = parseScopePatterns(["!admin:*"])!;
  expect(["read", "admin", "admin:a:b"].map((one) => others.matches(one))).toEqual([true, true, false]);
});

test("each complaint says what would be right", () => {
  const bounded = { ...policy, scopes: parseScopePatterns(["read"])!, maxTtlMs: 10_000, maxGraceMs: 5_000 };
  const { violations } = seen((all) => {
    for (const userId of ["😀".repeat(257), " ", "a\n", "\udc00"]) checkUserId(userId, all);
    checkRequestId("r".repeat(21), all);
    for (const name of ["", "😀".repeat(129), "a\u0000", "\ud800"]) checkName(name, all);
    checkScopes(["write", "-a", ...Array(63).fill("read")], bounded, all);
    scopesMissing(all);
    for (const reason of ["x".repeat(513), "a\u0000", "\ud800", " superseded"]) checkReason(reason, all);
    for (const seconds of [0n, 11n, 253_402_300_800n]) {
      checkLifetime({ case: "ttl", value: { seconds, nanos: 0 } }, bounded, NOW, all);
    }
    for (const seconds of [0n, 253_402_300_800n]) {
      checkLifetime({ case: "expiresAt", value: { seconds, nanos: 0 } }, bounded, NOW, all);
    }
    checkLifetime({ case: "ttl", value: { seconds: 1n, nanos: -1 } }, bounded, NOW, all);
    for (const seconds of [-1n, 6n]) checkGracePeriod({ seconds, nanos: 0 }, bounded, all);
    checkGracePeriod({ seconds: 0n, nanos: 1_000_000_000 }, bounded, all);
  });
  expect(violations.map(({ field, description }) => `${field}: ${description}`)).toEqual([
    "user_id: must have at most 256 characters, and has 257",
    "user_id: must not be blank",
    "user_id: must not contain control characters",
    "user_id: must be well-formed Unicode",
    "request_id: must have 22 to 64 of the characters 0-9 A-Z a-z _ -, drawn at random for each call, for example a UUID",
    "name: must not be blank; leave it out for a key without a name",
    "name: must have at most 128 characters, and has 129",
    "name: must not contain control characters",
    "name: must be well-formed Unicode",
    "scopes: must hold at most 64 scopes, and holds 65",
    "scopes[1]: must have 1 to 128 of the characters a-z 0-9 . _ : / - and begin with a letter or digit",
    'scopes[0]: "write" is not a scope of this service',
    "scopes: must name at least one scope",
    "reason: must have at most 512 characters, and has 513",
    "reason: must not contain control characters",
    "reason: must be well-formed Unicode",
    'reason: "superseded" is reserved for keys that Refresh replaced',
    "ttl: must be at least 1 s",
    "ttl: must not be more than 10 s away, the longest lifetime allowed here",
    "ttl: must not lie after the year 9999",
    "expires_at: must be at least 1 s in the future",
    "expires_at: must not lie after the year 9999",
    "ttl: is not a valid time",
    "grace_period: must not be negative",
    "grace_period: must be at most 5 s, the longest grace period allowed here",
    "grace_period: is not a valid duration",
  ]);
});

test("lifetimes and grace periods are taken up to their bounds", () => {
  const bounded = { ...policy, maxTtlMs: 10_000, maxGraceMs: 5_000 };
  const { fields } = seen((all) => {
    for (const seconds of [1n, 10n]) checkLifetime({ case: "ttl", value: { seconds, nanos: 0 } }, bounded, NOW, all);
    checkLifetime({ case: "expiresAt", value: { seconds: 253_402_300_799n, nanos: 999_999_999 } }, policy, NOW, all);
    checkGracePeriod({ seconds: 5n, nanos: 0 }, bounded, all);
  });
  expect(fields).toEqual([]);
});

test("a request id has 22 to 64 letters, digits, _ and -", () => {
  for (const good of ["r".repeat(22), "aZ09_-".repeat(4), "r".repeat(64)]) expect(isRequestId(good)).toBe(true);
  for (const bad of ["r".repeat(21), "r".repeat(65), `${"r".repeat(22)}.`, `.${"r".repeat(22)}`]) {
    expect(isRequestId(bad)).toBe(false);
  }
  expect(seen((all) => checkRequestId(undefined, all)).fields).toEqual([]);
});
