/** One call as a history has it. Keys are named by their ids: a history holds no secret. */
export interface Operation {
  user: string;
  /** Who called: each makes one call at a time. */
  client: number;
  /** Index of the replica that was asked. */
  replica: number;
  call: "create" | "refresh" | "revoke" | "update" | "suspend" | "resume" | "get" | "verify";
  /** Monotonic microseconds, and Unix milliseconds. */
  beganUs: number;
  endedUs: number;
  beganWallMs: number;
  endedWallMs: number;
  /** OK, an outcome of Verify, or the reason (else the code) of an RPC error. */
  outcome: string;
  /** Of Verify: the key that was asked about. */
  key?: string;
  strong?: boolean;
  /** Of Verify: Unix milliseconds. */
  asOfMs?: number;
  /** Of Create, Refresh, Get, Update, Suspend and Resume: the key that was made, or that is there. */
  made?: string;
  /** Of Refresh: whether the old key stays good until the next change. */
  grace?: boolean;
  /** Of Refresh: the old key. */
  previous?: string;
  /** Of Revoke: the active key, and the retiring one, that it ended. Of Suspend and Resume: the retiring one too. */
  ended?: string;
  retiring?: string;
  /** Of Update: the id and the name that the key had when its etag was read, the name that it was given, and whether it may still `write`. */
  base?: string;
  name?: string;
  wide?: boolean;
}

/** What is known only from an answer. */
export type Answer = Pick<Operation, "outcome"> & Partial<Operation>;

const REFUSED = ["KEY_EXISTS", "NO_KEY", "KEY_SUSPENDED", "ETAG_MISMATCH"];
const CERTAIN = new Set(["OK", ...REFUSED]);
const NOTHING_WRITTEN = new Set(["CONFLICT", "OVERLOADED", "DB_INCOMPLETE"]);

export function changes({ call }: Operation): boolean {
  return call !== "get" && call !== "verify";
}

/** Whether a change may or may not have been made, now or later. */
export function isIndeterminate(operation: Operation): boolean {
  return changes(operation) && !CERTAIN.has(operation.outcome) && !NOTHING_WRITTEN.has(operation.outcome);
}

/** Whether what was asked for was certainly not done. */
export function isRefused({ outcome }: Operation): boolean {
  return REFUSED.includes(outcome) || NOTHING_WRITTEN.has(outcome);
}

export function nowUs(): number {
  return Math.round(performance.now() * 1_000);
}
