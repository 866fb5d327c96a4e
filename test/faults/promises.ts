import { changes, isIndeterminate, isRefused, type Operation } from "./operation.ts";

/** What a replica was configured to promise about default calls. */
export interface Bound {
  maxStalenessMs: number;
  outageGraceMs: number;
}

/** A time in which there were no records; on the clocks of a history, from before they went until after they had come back. */
export interface Absence {
  fromUs: number;
  toWallMs: number;
}

/** Whether an answer says, as of a time without records, that there is no such key: then it is right, and tells nothing. */
export function isOfAbsence({ outcome, endedUs, asOfMs }: Operation, absence: Absence | undefined): boolean {
  return absence !== undefined && outcome === "NOT_FOUND" && endedUs >= absence.fromUs && asOfMs! <= absence.toWallMs;
}

/** Times are whole milliseconds, and two clocks are compared. */
const ROUNDING_MS = 5;

interface Life {
  /** When its making began, and was acknowledged. */
  beganUs: number;
  madeUs: number;
  madeWallMs: number;
  /** From here on the key may be ended; Infinity: never. */
  mayEndUs: number;
  /** From here on the key is ended for certain. */
  endedUs: number;
  endedWallMs: number;
  /** Times in which it was suspended for certain, and in which it may `write` no more. */
  suspended: Span[];
  narrow: Span[];
}

/** From an acknowledgement until the next call that may undo it began. */
interface Span {
  fromUs: number;
  fromWallMs: number;
  toUs: number;
}

/** Whether an answer must know of one: it began later than the bound after it, or claims by its `as_of` to know of it. */
function mustKnow(spans: readonly Span[], { beganUs, endedUs, asOfMs }: Operation, boundUs: number): boolean {
  return spans.some(({ fromUs, fromWallMs, toUs }) => {
    return endedUs < toUs && (beganUs > fromUs + boundUs || asOfMs! > fromWallMs);
  });
}

/**
 * What in a history breaks a promise that can be judged call by call, without an order of all:
 * - a key that was given out is known for ever, to every answer that is `as_of` a later time;
 * - no strong call that began after the acknowledgement of a key's end, and no default call that began later than the
 *   replica's bound after it, accepted the key;
 * - no answer that claims by its `as_of` to know of a key's end accepted it;
 * - no `as_of` is older than the replica's bound;
 * - no key was called revoked that nobody had tried to end;
 * - likewise for a key that was suspended, and for a scope that was taken away, as long as nobody had tried to give it back;
 * - nothing was answered but what the contract names for a database that is in trouble, and DB_INCOMPLETE only where what
 *   changes rest on was taken away.
 */
export function brokenPromises(
  history: readonly Operation[],
  bounds: readonly Bound[],
  { takesBase = false }: { takesBase?: boolean } = {},
): string[] {
  const broken: string[] = [];
  const byUser = new Map<string, Operation[]>();
  for (const operation of history) {
    const operations = byUser.get(operation.user);
    if (operations === undefined) byUser.set(operation.user, [operation]);
    else operations.push(operation);
  }
  for (const operations of byUser.values()) {
    const lives = livesIn(operations);
    for (const operation of operations) {
      const say = (what: string) => broken.push(`${what}: ${JSON.stringify(operation)}`);
      const { outcome } = operation;
      if (!EXPECTED.has(outcome) && !(takesBase && outcome === "DB_INCOMPLETE")) say("an answer that nothing explains");
      if (operation.call === "verify") judge(operation, lives.get(operation.key!)!, bounds[operation.replica]!, say);
    }
  }
  return broken;
}

function judge(asked: Operation, life: Life, { maxStalenessMs, outageGraceMs }: Bound, say: (what: string) => void) {
  const { outcome, strong, beganUs, endedUs, beganWallMs, asOfMs } = asked;
  if (asOfMs === undefined) return;
  const boundMs = strong ? 0 : Math.max(maxStalenessMs, outageGraceMs);
  if (beganWallMs - asOfMs > boundMs + ROUNDING_MS) say("an answer older than the bound");
  if (LETS_IN.has(outcome) && mustKnow(life.suspended, asked, boundMs * 1_000)) say("accepted though suspended");
  if (outcome === "VALID" && mustKnow(life.narrow, asked, boundMs * 1_000))
    say("a scope that was taken away was accepted");
  if (LETS_IN.has(outcome) || outcome === "SUSPENDED") {
    if (beganUs > life.endedUs + boundMs * 1_000) say("accepted too late");
    if (asOfMs > life.endedWallMs) say("accepted as of a time after the key's end");
  }
  if (outcome === "NOT_FOUND" && asOfMs >= life.madeWallMs) say("a key that was given out is lost");
  if (outcome === "REVOKED" && endedUs < life.mayEndUs) say("a good key was called revoked");
}

/** Of a key that is as good as its scopes let it be. */
const LETS_IN = new Set(["VALID", "INSUFFICIENT_SCOPE"]);

const EXPECTED = new Set([
  ...["OK", "KEY_EXISTS", "NO_KEY", "KEY_SUSPENDED", "ETAG_MISMATCH"],
  ...["VALID", "REVOKED", "NOT_FOUND", "SUSPENDED", "INSUFFICIENT_SCOPE"],
  ...["CONFLICT", "OVERLOADED", "DB_UNAVAILABLE", "DEADLINE_EXCEEDED"],
  // Of the caller's own side: the connection broke, or its patience ended.
  ...["Unavailable", "DeadlineExceeded", "Canceled", "Aborted"],
]);

/** Spans that acknowledged calls of a key began, and that `undoes` may end. */
function spansOf(
  operations: readonly Operation[],
  id: string,
  begins: "suspend" | "update",
  undoes: (operation: Operation) => boolean,
): Span[] {
  const possible = operations.filter((operation) => undoes(operation) && !isRefused(operation));
  return operations
    .filter(({ call, outcome, made, retiring, wide }) => {
      return call === begins && outcome === "OK" && (made === id || retiring === id) && wide !== true;
    })
    .map(({ beganUs, endedUs, endedWallMs }) => {
      const ends = possible
        .filter((other) => (isIndeterminate(other) ? Number.POSITIVE_INFINITY : other.endedUs) >= beganUs)
        .map((other) => other.beganUs);
      return { fromUs: endedUs, fromWallMs: endedWallMs, toUs: Math.min(Number.POSITIVE_INFINITY, ...ends) };
    });
}

/** Of every key whose making was acknowledged. */
function livesIn(operations: readonly Operation[]): Map<string, Life> {
  const lives = new Map<string, Life>();
  for (const { call, outcome, made, beganUs, endedUs, endedWallMs } of operations) {
    if (outcome !== "OK" || (call !== "create" && call !== "refresh")) continue;
    lives.set(made!, {
      ...{ beganUs, madeUs: endedUs, madeWallMs: endedWallMs },
      ...{
        mayEndUs: Number.POSITIVE_INFINITY,
        endedUs: Number.POSITIVE_INFINITY,
        endedWallMs: Number.POSITIVE_INFINITY,
      },
      suspended: spansOf(operations, made!, "suspend", ({ call }) => call === "resume"),
      narrow: spansOf(operations, made!, "update", ({ call, wide }) => call === "update" && wide === true),
    });
  }
  for (const operation of operations.filter(changes)) {
    const { call, outcome, beganUs, endedUs, endedWallMs, made, previous, grace } = operation;
    for (const [id, life] of lives) {
      if ((call !== "refresh" && call !== "revoke") || id === made) continue;
      const over = isIndeterminate(operation) ? Number.POSITIVE_INFINITY : endedUs;
      if (!isRefused(operation) && over >= life.beganUs) life.mayEndUs = Math.min(life.mayEndUs, beganUs);
      // A Refresh leaves the new key and, with a grace, the one before it; a Revoke leaves none, and NO_KEY says so too.
      const leaves = call === "refresh" && grace && id === previous;
      const cleared = outcome === "OK" || (call === "revoke" && outcome === "NO_KEY");
      if (!cleared || leaves || life.madeUs >= beganUs || endedUs >= life.endedUs) continue;
      life.endedUs = endedUs;
      life.endedWallMs = endedWallMs;
    }
  }
  return lives;
}
