import { KeyError } from "../errors.ts";
import type { KeyRecord } from "../record.ts";
import type { Entry, View } from "./view.ts";

interface BatchedReadOptions {
  view: View;
  /** Reads the records with these ids, in any order; absent ones are left out. Must give up when `signal` aborts. */
  read(ids: readonly string[], signal: AbortSignal): Promise<KeyRecord[]>;
  /** Time after which a read no longer holds up the next. Default: `timeoutMs`. */
  lateMs?: number;
  /** Longest wait from the call to the answer. */
  timeoutMs: number;
  /** Unix milliseconds. */
  wallMs: () => number;
}

export interface ReadResult {
  /** Undefined: no record has this id. */
  entry: Entry | undefined;
  /** When the read began, in Unix milliseconds. */
  beganMs: number;
}

/**
 * Fails with whatever the read failed with, with a ReadTimeout, or with OVERLOADED. `onLate` is called when the read has
 * gone on for `lateMs`: what it waited before it began does not count.
 */
export type BatchedRead = (id: string, onLate?: () => void) => Promise<ReadResult>;

/** No answer in time. What it means is for the caller of the read to say. */
export class ReadTimeout extends Error {
  override readonly name = "ReadTimeout";
}

/** Two at once: one is on its way while the other is collected. More would only split them into smaller ones. */
const CONCURRENT = 2;
const MAX_BATCH = 256;
/** Late reads at once; beyond this, each holds its place until it ends. */
const MAX_LATE = 16;
/** A read overtaken by events this often is of a record that changes all the time. */
const MAX_ATTEMPTS = 5;
/** Calls that may wait. A flood of ids never seen before fills this and no more: the rest is refused. */
const MAX_WAITING = 10_000;

/**
 * For each id that was looked up in vain, the next read waits as long: a flood of ids that nobody has takes no more of the
 * process than 10,000 of them a second do, and a good key that is not in memory waits for a batch of them at most.
 */
const VAIN_MS = 0.1;

interface WaitingCall {
  resolve: (result: ReadResult) => void;
  reject: (error: unknown) => void;
  onLate: (() => void) | undefined;
  attempts: number;
}

interface Batch {
  calls: Map<string, WaitingCall[]>;
  timer: NodeJS.Timeout;
  abort: AbortController;
}

/**
 * Collects calls into reads of many records. A call is never answered by a read that began before it, so that the answer
 * reflects all that was acknowledged before the call.
 */
export function createBatchedRead({ view, read, lateMs, timeoutMs, wallMs }: BatchedReadOptions): BatchedRead {
  // One for all: the driver keeps the error of a read for as long as the connection that was opened for it, and the stack of
  // an error keeps what it was made in.
  const noAnswer = new ReadTimeout(`no answer within ${timeoutMs} ms`);
  const queue: Batch[] = [];
  let running = 0;
  let late = 0;
  let waiting = 0;
  let scheduled = false;
  let notBeforeMs = 0;

  const schedule = () => {
    if (scheduled || running >= CONCURRENT || queue.length === 0) return;
    scheduled = true;
    const start = () => {
      scheduled = false;
      while (running < CONCURRENT && queue.length > 0) void run(queue.shift()!);
    };
    const waitMs = notBeforeMs - performance.now();
    if (waitMs >= 1) setTimeout(start, waitMs);
    // After all that this turn of the loop has read from sockets: one read serves it all.
    else setImmediate(start);
  };

  const openBatch = (): Batch => {
    const abort = new AbortController();
    const giveUp = () => abort.abort(noAnswer);
    // Timers come first in a turn of the loop: after a turn that took long, the answer may be there and not yet read.
    const timer = setTimeout(() => setImmediate(giveUp), timeoutMs);
    const batch: Batch = { calls: new Map(), timer, abort };
    abort.signal.addEventListener("abort", () => {
      const index = queue.indexOf(batch);
      if (index >= 0) queue.splice(index, 1);
      fail(batch, abort.signal.reason);
    });
    queue.push(batch);
    return batch;
  };

  const fail = (batch: Batch, error: unknown) => {
    clearTimeout(batch.timer);
    for (const calls of batch.calls.values()) for (const { reject } of calls) reject(error);
    batch.calls.clear();
  };

  const enqueue = (id: string, call: WaitingCall) => {
    const last = queue.at(-1);
    const batch = last !== undefined && last.calls.size < MAX_BATCH ? last : openBatch();
    const calls = batch.calls.get(id);
    if (calls === undefined) batch.calls.set(id, [call]);
    else calls.push(call);
    schedule();
  };

  async function run(batch: Batch): Promise<void> {
    running += 1;
    let ownsPlace = true;
    const giveBack = () => {
      if (ownsPlace) running -= 1;
      ownsPlace = false;
      schedule();
    };
    let isLate = false;
    const lateTimer = setTimeout(() => {
      for (const calls of batch.calls.values()) for (const { onLate } of calls) onLate?.();
      if (late >= MAX_LATE) return;
      isLate = true;
      late += 1;
      giveBack();
    }, lateMs ?? timeoutMs);
    const window = view.open();
    const beganMs = wallMs();
    const { signal } = batch.abort;
    // The calls are answered when the time is up, even where the driver still waits on a dead connection.
    const timedOut = new Promise<never>((_, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason));
    });
    try {
      const records = await Promise.race([read([...batch.calls.keys()], signal), timedOut]);
      const found = new Map(records.map((record) => [record.id, record]));
      const vain = batch.calls.size - found.size;
      notBeforeMs = Math.max(notBeforeMs, performance.now()) + vain * VAIN_MS;
      for (const [id, calls] of batch.calls) {
        const record = found.get(id);
        const entry = record && window.keep(record);
        const overtaken = record === undefined ? !window.keepUnknown(id) : entry === undefined;
        for (const call of calls) {
          if (!overtaken) call.resolve({ entry, beganMs });
          else if (call.attempts < MAX_ATTEMPTS) enqueue(id, { ...call, attempts: call.attempts + 1 });
          else call.reject(keptChanging());
        }
      }
      clearTimeout(batch.timer);
      batch.calls.clear();
    } catch (error) {
      fail(batch, error);
    } finally {
      window.close();
      clearTimeout(lateTimer);
      if (isLate) late -= 1;
      giveBack();
    }
  }

  return (id, onLate) => {
    if (waiting >= MAX_WAITING) {
      return Promise.reject(
        new KeyError("OVERLOADED", "Too many keys are being looked up at the moment. Try again shortly.", {
          retryAfterMs: 100,
        }),
      );
    }
    waiting += 1;
    const answer = new Promise<ReadResult>((resolve, reject) => enqueue(id, { resolve, reject, onLate, attempts: 1 }));
    const done = () => {
      waiting -= 1;
    };
    answer.then(done, done);
    return answer;
  };
}

function keptChanging(): KeyError {
  return new KeyError("CONFLICT", "The key's record kept changing while it was read. Try again.", {
    retryAfterMs: 100,
  });
}
