import { checked, type FieldViolation } from "./errors.ts";
import { checkMetadata, checkMetadataSize, metadataName, toMetadata } from "./metadata.ts";
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

/** A field of a record that its maker chooses, and that a rotation passes on. */
interface ChosenField<Given, Stored> {
  /** As it would be stored; tells what is wrong. */
  check(given: Given | undefined, policy: Policy, violations: FieldViolation[]): Stored;
  /** As a key is to have it that follows one with `before`. */
  inherited(stored: Stored, before: Stored, mayChoose: (name: string) => boolean): Stored;
  /** Equal for calls that ask for the same; what was given need not be good. */
  asked(given: Given | undefined): unknown;
}

function field<Given, Stored>(rules: ChosenField<Given, Stored>): ChosenField<Given, Stored> {
  return rules;
}

/** A new one comes last. */
const CHOSEN = {
  name: field<string, string | undefined>({
    check: (name, _policy, violations) => checkName(name, violations),
    inherited: (name, before) => name ?? before,
    asked: (name) => name?.trim(),
  }),
  scopes: field<readonly string[], string[]>({
    check: (scopes = [], policy, violations) => checkScopes(scopes, policy, violations),
    inherited: (scopes, before) => (scopes.length > 0 ? scopes : before),
    asked: (scopes) => [...new Set(scopes)].sort(),
  }),
  metadata: field<Readonly<Record<string, string>>, string[] | undefined>({
    check(map = {}, _policy, violations) {
      checkMetadata(map, violations);
      const entries = toMetadata(map);
      checkMetadataSize(entries, violations);
      return entries.length === 0 ? undefined : entries;
    },
    inherited(entries, before = [], mayChoose) {
      // Those that another has set stay.
      const kept = entries === undefined ? before : before.filter((entry) => !mayChoose(metadataName(entry)));
      const all = [...kept, ...(entries ?? [])].sort();
      return all.length === 0 ? undefined : all;
    },
    asked: (map = {}) => (Object.keys(map).length === 0 ? undefined : Object.entries(map).sort()),
  }),
};
const NAMES = Object.keys(CHOSEN) as (keyof typeof CHOSEN)[];

/** The chosen fields as they are stored. */
export type Chosen = { [Name in keyof typeof CHOSEN]: ReturnType<(typeof CHOSEN)[Name]["check"]> };
type Given = { [Name in keyof typeof CHOSEN]?: Parameters<(typeof CHOSEN)[Name]["check"]>[0] };

/** A key as Create and Refresh are asked for it. */
export interface KeyInput extends Given {
  userId?: string | undefined;
  lifetime?: Lifetime | undefined;
  /** Of Refresh alone. */
  gracePeriod?: TimeSpan | undefined;
  /** The same call again, with the same id, has the same answer. */
  requestId?: string | undefined;
}

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
  const chosen = fromNames((name) => rulesOf(name).check(input[name], policy, violations));
  if (scopesNeeded && chosen.scopes.length === 0) scopesMissing(violations);
  const lifetimeMs = checkLifetime(input.lifetime, policy, now, violations);
  return { chosen, lifetimeMs, graceMs: checkGracePeriod(input.gracePeriod, policy, violations) };
}

/** `chosen`, and what of it was not given as `before` has it. `mayChoose`: whether the caller may set metadata of a name. */
export function inherited(
  chosen: Chosen,
  before: Partial<Chosen> | undefined,
  mayChoose: (name: string) => boolean,
): Chosen {
  if (before === undefined) return chosen;
  const all = fromNames((name) => rulesOf(name).inherited(chosen[name], before[name], mayChoose));
  checked((violations) => checkMetadataSize(all.metadata ?? [], violations));
  return all;
}

/**
 * All that was asked for, for a digest. Chosen fields count as they would be stored; times as they were said. A call that says
 * nothing of a later field has the digest that it had before there was one: a release must know the calls of the one before.
 */
export function askedFor(input: KeyInput): unknown[] {
  const span = (value: TimeSpan | undefined) => value && [String(value.seconds), value.nanos];
  const { lifetime, gracePeriod } = input;
  const [name, scopes, ...later] = NAMES.map((field) => rulesOf(field).asked(input[field]));
  const times = [lifetime?.case, span(lifetime?.value), span(gracePeriod)];
  const given = later.map((value, index) => [NAMES[index + 2], value]).filter(([, value]) => value !== undefined);
  return [name, scopes, ...times, ...given];
}

function rulesOf(name: keyof Chosen): ChosenField<unknown, unknown> {
  return CHOSEN[name] as ChosenField<unknown, unknown>;
}

function fromNames(read: (name: keyof Chosen) => unknown): Chosen {
  return Object.fromEntries(NAMES.map((name) => [name, read(name)])) as Chosen;
}
