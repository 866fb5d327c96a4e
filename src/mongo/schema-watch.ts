import { setTimeout as sleep } from "node:timers/promises";
import type { Db } from "mongodb";
import { KeyError } from "../keys/errors.ts";
import { OPERATION_TIMEOUT_MS } from "./connection.ts";
import {
  ensureSchema,
  findFaults,
  findUniqueFaults,
  SchemaConflict,
  type SchemaFaults,
  type SchemaOptions,
  type Surplus,
} from "./schema.ts";

export interface SchemaWatchOptions extends SchemaOptions {
  db: Db;
  /** Runs `mend` with the same database by a client whose operations may take as long as they need, until `signal` ends them. */
  patiently: (mend: (db: Db) => Promise<void>, signal: AbortSignal) => Promise<void>;
  /** A loss or change is noticed within this time while MongoDB answers. */
  maxStalenessMs: number;
  /** `missing`: the loss in words; undefined: all stands again. Called at each change of the words. */
  onChange: (missing: string | undefined, surplus: readonly Surplus[]) => void;
  /** Something was made again; `empty`: the collection of records itself, without any. For the log. */
  onMended: (mended: { what: readonly string[]; empty: boolean }) => void;
  /** Could not be looked at, or made again, for reasons other than a conflict. For the log. */
  onFailed: (error: unknown) => void;
  /** How long the records may be gone before an empty collection is made in their place. Default: 5 s. */
  remakeAfterMs?: number;
}

/** The base of changes in the database, beside the records themselves. */
export interface SchemaCheck {
  /** The loss or change in words, and what to do; undefined: none that is known of. */
  missing(): string | undefined;
  /** Whether there was no collection of records when it was looked at last. */
  recordsGone(): boolean;
  /** Looks now. */
  look(): void;
  /**
   * Fails with DB_INCOMPLETE unless every unique index is in force, in its exact definition, at some moment during the call.
   * Called in a transaction that has read the collection, it says so for that transaction up to its commit: its locks hold
   * off whatever would drop or alter an index.
   */
  confirm(): Promise<void>;
  /** Fails with DB_INCOMPLETE where, at some moment during the call, there was no collection of records. */
  confirmRecords(): Promise<void>;
}

export interface SchemaWatch extends SchemaCheck {
  stop(): Promise<void>;
}

/** A restore drops, and makes again, within this time: an empty collection made in between would stand in its way. */
const REMAKE_AFTER_MS = 5_000;

/** While the records are gone keys are not called unknown: that they are back is noticed soon, however long the staleness may be. */
const WHILE_GONE_MS = 500;

/** Pauses between attempts to make it again, ever longer: each time MongoDB reads all records. */
const FIRST_RETRY_MS = 1_000;
const MAX_RETRY_MS = 15_000;

/** Resolves after the first look. */
export async function watchSchema(options: SchemaWatchOptions): Promise<SchemaWatch> {
  const { db, patiently, maxStalenessMs, onChange, onMended, onFailed, remakeAfterMs = REMAKE_AFTER_MS } = options;
  const everyMs = maxStalenessMs / 2;
  const stopping = new AbortController();
  let missing: string | undefined;
  let conflict: SchemaConflict | undefined;
  let goneSinceMs: number | undefined;
  let mending: Promise<void> | undefined;
  let mendFromMs = 0;
  let failures = 0;
  let asked = false;
  let wake = () => {};

  function report({ gone, grave }: SchemaFaults): void {
    const words = grave.length === 0 ? undefined : [`${grave.join("; ")}.`, gone ? WHEN_GONE : conflict?.message];
    const now = words?.filter((part) => part !== undefined).join(" ");
    if (now === missing) return;
    missing = now;
    onChange(now, now === undefined ? [] : (conflict?.surplus ?? []));
  }

  async function mend({ gone, grave, slight }: SchemaFaults): Promise<void> {
    try {
      await patiently((patient) => ensureSchema(patient, options), stopping.signal);
      failures = 0;
      onMended({ what: [...grave, ...slight], empty: gone });
    } catch (error) {
      if (stopping.signal.aborted) return;
      if (error instanceof SchemaConflict) conflict = error;
      if (!(error instanceof SchemaConflict) || grave.length === 0) onFailed(error);
      mendFromMs = performance.now() + Math.min(FIRST_RETRY_MS * 2 ** failures, MAX_RETRY_MS);
      failures += 1;
    }
  }

  async function look(): Promise<void> {
    const faults = await findFaults(db, options, maxStalenessMs);
    const nowMs = performance.now();
    goneSinceMs = faults.gone ? (goneSinceMs ?? nowMs) : undefined;
    if (faults.grave.length === 0) conflict = undefined;
    report(faults);
    if (faults.grave.length + faults.slight.length === 0) {
      failures = 0;
      mendFromMs = 0;
      return;
    }
    const isTime = nowMs >= mendFromMs && (goneSinceMs === undefined || nowMs - goneSinceMs >= remakeAfterMs);
    if (!isTime || mending !== undefined) return;
    mending = mend(faults).finally(() => {
      mending = undefined;
      lookSoon();
    });
  }

  function lookSoon(): void {
    asked = true;
    wake();
  }

  async function lookForEver(): Promise<void> {
    while (!stopping.signal.aborted) {
      await new Promise<void>((resolve) => {
        const againMs = goneSinceMs === undefined ? everyMs : Math.min(everyMs, WHILE_GONE_MS);
        const timer = setTimeout(resolve, asked ? 0 : againMs);
        wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      asked = false;
      // That MongoDB does not answer is noticed, and logged, elsewhere.
      if (!stopping.signal.aborted) await look().catch(() => {});
    }
  }

  function refuse(faults: readonly string[]): never {
    lookSoon();
    throw incomplete(faults.join("; "));
  }

  await Promise.race([look().catch(() => {}), sleep(maxStalenessMs, undefined, { ref: false })]);
  const looking = lookForEver();

  return {
    missing: () => missing,
    recordsGone: () => goneSinceMs !== undefined,
    look: lookSoon,
    async confirm() {
      const { grave } = await findUniqueFaults(db, OPERATION_TIMEOUT_MS);
      if (grave.length > 0) refuse(grave);
    },
    async confirmRecords() {
      const { gone, grave } = await findUniqueFaults(db, OPERATION_TIMEOUT_MS);
      if (gone) refuse(grave);
    },
    async stop() {
      stopping.abort();
      wake();
      await Promise.all([looking, mending]);
    },
  };
}

const WHEN_GONE =
  "Restore it. Until then no key is made, changed or looked at; where nobody does within a few seconds, it is made again, empty.";

/** The error of a call; what is missing is for operators. */
export function incomplete(fault: string): KeyError {
  return new KeyError(
    "DB_INCOMPLETE",
    "The database lacks something that keys rest on. Nothing was written. Try again shortly; operators find what it is in the log, and in /readyz.",
    { retryAfterMs: 1_000, cause: new Error(fault) },
  );
}
