import type { FieldViolation } from "./errors.ts";
import {
  checkGracePeriod,
  checkLifetime,
  checkName,
  checkRequestId,
  checkScopes,
  checkUserId,
  type Lifetime,
  type Policy,
  scopesMissing,
  type TimeSpan,
} from "./policy.ts";
import type { KeyRecord } from "./record.ts";

/** A key as Create and Refresh are asked for it. */
export interface KeyInput {
  userId?: string | undefined;
  name?: string | undefined;
  scopes: readonly string[];
  lifetime?: Lifetime | undefined;
  /** Of Refresh alone. */
  gracePeriod?: TimeSpan | undefined;
  /** The same call again, with the same id, has the same answer. */
  requestId?: string | undefined;
}

/** The fields of a record that its maker chooses, and that a rotation passes on. */
export type Chosen = Pick<KeyRecord, "name" | "scopes">;

interface ChosenField<Name extends keyof Chosen> {
  /** As it would be stored; tells what is wrong. */
  check(input: KeyInput, policy: Policy, violations: FieldViolation[]): Chosen[Name];
  /** False: Refresh passes on the one of the key before. */
  isGiven(value: Chosen[Name]): boolean;
  /** Equal for calls that ask for the same; the input need not be good. */
  asked(input: KeyInput): unknown;
}

/** A new one comes last. */
const CHOSEN: { [Name in keyof Chosen]-?: ChosenField<Name> } = {
  name: {
    check: ({ name }, _policy, violations) => checkName(name, violations),
    isGiven: (name) => name !== undefined,
    asked: ({ name }) => name?.trim(),
  },
  scopes: {
    check: ({ scopes }, policy, violations) => checkScopes(scopes, policy, violations),
    isGiven: (scopes) => scopes.length > 0,
    asked: ({ scopes }) => [...new Set(scopes)].sort(),
  },
};
const NAMES = Object.keys(CHOSEN) as (keyof Chosen)[];

/** An input as it would be used. Whether it may be, the violations say. */
interface Accepted {
  chosen: Chosen;
  lifetimeMs: number | undefined;
  graceMs: number;
}

interface InputRules {
  /** The owner, be it the caller or another. */
  userId: string;
  /** There may be no key before to inherit them from. */
  scopesNeeded: boolean;
  policy: Policy;
  now: Date;
}

/** Checks all fields at once. */
export function checkInput(
  input: KeyInput,
  { userId, scopesNeeded, policy, now }: InputRules,
  violations: FieldViolation[],
): Accepted {
  checkUserId(userId, violations);
  checkRequestId(input.requestId, violations);
  const chosen = fromNames((name) => CHOSEN[name].check(input, policy, violations));
  if (scopesNeeded && chosen.scopes.length === 0) scopesMissing(violations);
  const lifetimeMs = checkLifetime(input.lifetime, policy, now, violations);
  return { chosen, lifetimeMs, graceMs: checkGracePeriod(input.gracePeriod, policy, violations) };
}

/** `chosen`, and what of it was not given as `before` has it. */
export function inherited(chosen: Chosen, before: Chosen | undefined): Chosen {
  if (before === undefined) return chosen;
  return fromNames(
    (name) => ((CHOSEN[name] as ChosenField<never>).isGiven(chosen[name] as never) ? chosen : before)[name],
  );
}

/**
 * All that was asked for, for a digest. Chosen fields count as they would be stored; times as they were said. A call that says
 * nothing of a later field has the digest that it had before there was one: a release must know the calls of the one before.
 */
export function askedFor(input: KeyInput): unknown[] {
  const span = (value: TimeSpan | undefined) => value && [String(value.seconds), value.nanos];
  const { lifetime, gracePeriod } = input;
  const [name, scopes, ...later] = NAMES.map((field) => CHOSEN[field].asked(input));
  const times = [lifetime?.case, span(lifetime?.value), span(gracePeriod)];
  const given = later.map((value, index) => [NAMES[index + 2], value]).filter(([, value]) => value !== undefined);
  return [name, scopes, ...times, ...given];
}

function fromNames(read: (name: keyof Chosen) => unknown): Chosen {
  return Object.fromEntries(NAMES.map((name) => [name, read(name)])) as Chosen;
}
