import type { FieldViolation } from "./errors.ts";
import { type Ending, MAX_NAME, MAX_REASON, MAX_SCOPES, MAX_USER_ID, SUPERSEDED } from "./record.ts";

/** The rules of fields and scopes. Field rules collect violations instead of throwing: callers hear of all at once. */
export interface Policy {
  /** Scopes that exist. */
  scopes: ScopePatterns;
  /** Scopes that a caller who is not an admin may grant. */
  memberScopes: ScopePatterns;
  /** Names of metadata that such a caller may set. */
  memberMetadata: ScopePatterns;
  /** The longest lifetime; undefined: keys may live for ever. */
  maxTtlMs?: number | undefined;
  /** The longest grace period. */
  maxGraceMs: number;
}

export interface ScopePatterns {
  matches(scope: string): boolean;
}

/** Seconds and nanoseconds, as in google.protobuf.Timestamp and Duration. */
export interface TimeSpan {
  seconds: bigint;
  nanos: number;
}

export type Lifetime = { case: "expiresAt"; value: TimeSpan } | { case: "ttl"; value: TimeSpan };

const SCOPE = /^[a-z0-9][a-z0-9._:/-]{0,127}$/;
const SCOPE_PATTERN = /^!?(?=[a-z0-9*])[a-z0-9._:/*-]{1,128}$/;
/** 22 characters can carry 128 bits. */
const REQUEST_ID = /^[0-9A-Za-z_-]{22,64}$/;
const MIN_LIFETIME_MS = 1_000;
/** 9999-12-31T23:59:59.999Z, the last instant a google.protobuf.Timestamp can hold. */
export const LAST_INSTANT_MS = 253_402_300_799_999;

/**
 * `patterns`, for example `*`, `billing:*`, `!admin:*`: a scope matches when some plain pattern matches it and no
 * pattern after `!` does. `*` stands for any characters, separators included. Only `!` patterns: all but those.
 * Returns undefined when a pattern is malformed.
 */
export function parseScopePatterns(patterns: readonly string[]): ScopePatterns | undefined {
  // None at all would mean `*`: too much for what may be a slip.
  if (patterns.length === 0 || !patterns.every((pattern) => SCOPE_PATTERN.test(pattern))) return undefined;
  const denied = patterns.filter((pattern) => pattern.startsWith("!")).map((pattern) => glob(pattern.slice(1)));
  const allowed = patterns.filter((pattern) => !pattern.startsWith("!")).map(glob);
  if (allowed.length === 0) allowed.push(glob("*"));
  return {
    matches: (scope) => allowed.some((one) => one.test(scope)) && !denied.some((one) => one.test(scope)),
  };
}

/** No scope, and no name. */
export const NOTHING: ScopePatterns = { matches: () => false };

/** The fault of a text that names or explains something: people and logs read it in one line. */
export function textFaults(text: string, max: number): string[] {
  const faults: string[] = [];
  if (length(text) > max) faults.push(`must have at most ${max} characters, and has ${length(text)}`);
  if (hasControlCharacter(text)) faults.push("must not contain control characters");
  if (!text.isWellFormed()) faults.push("must be well-formed Unicode");
  return faults;
}

/** C0, DEL and C1. */
export function hasControlCharacter(text: string): boolean {
  return /\p{Cc}/u.test(text);
}

function isBlank(text: string): boolean {
  return text.trim() === "";
}

const BLANK = "must not be blank";

function userIdFaults(userId: string): string[] {
  return isBlank(userId) ? [BLANK] : textFaults(userId, MAX_USER_ID);
}

export function isUserId(text: string): boolean {
  return userIdFaults(text).length === 0;
}

export function checkUserId(userId: string, violations: FieldViolation[]): void {
  reportAll("user_id", userIdFaults(userId), violations);
}

/** For a search: records from before control characters were refused are found too. */
export function checkSoughtUserId(userId: string, violations: FieldViolation[]): void {
  if (length(userId) >= 1 && length(userId) <= MAX_USER_ID && userId.isWellFormed()) return;
  const description = `must have 1 to ${MAX_USER_ID} characters, and has ${length(userId)}`;
  violations.push({ field: "user_id", description });
}

function reportAll(field: string, descriptions: readonly string[], violations: FieldViolation[]): void {
  for (const description of descriptions) violations.push({ field, description });
}

export function isRequestId(text: string): boolean {
  return REQUEST_ID.test(text);
}

export function checkRequestId(requestId: string | undefined, violations: FieldViolation[]): void {
  if (requestId === undefined || isRequestId(requestId)) return;
  const description =
    "must have 22 to 64 of the characters 0-9 A-Z a-z _ -, drawn at random for each call, for example a UUID";
  violations.push({ field: "request_id", description });
}

/** The name, trimmed. */
export function checkName(name: string | undefined, violations: FieldViolation[]): string | undefined {
  if (name === undefined) return undefined;
  const trimmed = name.trim();
  const blank = `${BLANK}; leave it out for a key without a name`;
  reportAll("name", isBlank(trimmed) ? [blank] : textFaults(trimmed, MAX_NAME), violations);
  return trimmed;
}

export function isScope(text: string): boolean {
  return SCOPE.test(text);
}

/** The scopes to grant, sorted, without duplicates. */
export function checkScopes(scopes: readonly string[], policy: Policy, violations: FieldViolation[]): string[] {
  checkScopeList("scopes", scopes, violations);
  for (const [index, scope] of scopes.slice(0, MAX_SCOPES).entries()) {
    if (SCOPE.test(scope) && !policy.scopes.matches(scope)) {
      violations.push({ field: `scopes[${index}]`, description: `"${scope}" is not a scope of this service` });
    }
  }
  return [...new Set(scopes)].sort();
}

export function scopesMissing(violations: FieldViolation[]): void {
  violations.push({ field: "scopes", description: "must name at least one scope" });
}

export function checkRequiredScopes(scopes: readonly string[], violations: FieldViolation[]): void {
  checkScopeList("required_scopes", scopes, violations);
}

export function checkEnding({ reason, cause }: Ending, violations: FieldViolation[]): void {
  checkReason(reason, violations);
  if (cause === SUPERSEDED)
    reportAll("cause", [`"${SUPERSEDED}" is reserved for keys that Refresh replaced`], violations);
}

export function checkReason(reason: string, violations: FieldViolation[]): void {
  reportAll("reason", textFaults(reason, MAX_REASON), violations);
  if (reason.trim() !== SUPERSEDED) return;
  reportAll("reason", [`"${SUPERSEDED}" is reserved for keys that Refresh replaced`], violations);
}

/** The lifetime in milliseconds from `now`, or undefined when none was given. */
export function checkLifetime(
  lifetime: Lifetime | undefined,
  policy: Policy,
  now: Date,
  violations: FieldViolation[],
): number | undefined {
  if (lifetime === undefined) return undefined;
  const field = lifetime.case === "ttl" ? "ttl" : "expires_at";
  const report = (description: string) => violations.push({ field, description });
  const ms = toMilliseconds(lifetime.value);
  if (ms === undefined || (lifetime.case === "expiresAt" && lifetime.value.nanos < 0)) {
    report("is not a valid time");
    return undefined;
  }
  const lifetimeMs = lifetime.case === "ttl" ? ms : ms - now.getTime();
  if (lifetimeMs < MIN_LIFETIME_MS) {
    report(lifetime.case === "ttl" ? "must be at least 1 s" : "must be at least 1 s in the future");
  } else if (now.getTime() + lifetimeMs > LAST_INSTANT_MS) {
    report("must not lie after the year 9999");
  } else if (policy.maxTtlMs !== undefined && lifetimeMs > policy.maxTtlMs) {
    report(`must not be more than ${policy.maxTtlMs / 1_000} s away, the longest lifetime allowed here`);
  }
  return lifetimeMs;
}

/** The grace period in milliseconds; 0 when none was given. */
export function checkGracePeriod(grace: TimeSpan | undefined, policy: Policy, violations: FieldViolation[]): number {
  if (grace === undefined) return 0;
  const report = (description: string) => violations.push({ field: "grace_period", description });
  const graceMs = toMilliseconds(grace);
  if (graceMs === undefined) report("is not a valid duration");
  else if (grace.seconds < 0n || grace.nanos < 0) report("must not be negative");
  else if (graceMs > policy.maxGraceMs) {
    report(`must be at most ${policy.maxGraceMs / 1_000} s, the longest grace period allowed here`);
  }
  return graceMs ?? 0;
}

function checkScopeList(field: string, scopes: readonly string[], violations: FieldViolation[]): void {
  if (scopes.length > MAX_SCOPES) {
    violations.push({ field, description: `must hold at most ${MAX_SCOPES} scopes, and holds ${scopes.length}` });
  }
  for (const [index, scope] of scopes.slice(0, MAX_SCOPES).entries()) {
    if (SCOPE.test(scope)) continue;
    violations.push({
      field: `${field}[${index}]`,
      description: "must have 1 to 128 of the characters a-z 0-9 . _ : / - and begin with a letter or digit",
    });
  }
}

/** Whole milliseconds, rounded down; undefined when seconds and nanos don't make a valid value. */
function toMilliseconds({ seconds, nanos }: TimeSpan): number | undefined {
  const mixedSigns = (seconds > 0n && nanos < 0) || (seconds < 0n && nanos > 0);
  if (mixedSigns || Math.abs(nanos) > 999_999_999) return undefined;
  return Number(seconds) * 1_000 + Math.floor(nanos / 1_000_000);
}

function glob(pattern: string): RegExp {
  return new RegExp(
    `^${pattern
      .split("*")
      .map((part) => part.replace(/[.]/g, "\\$&"))
      .join(".*")}$`,
  );
}

/** Characters as people count them: code points, not UTF-16 units. */
function length(text: string): number {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}
