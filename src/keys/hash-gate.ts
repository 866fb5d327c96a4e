import { KeyError } from "./errors.ts";

interface HashGateOptions {
  /** Hashes that run at once. */
  concurrency: number;
  /** Calls that may wait for a place. */
  queue: number;
  /** Monotonic milliseconds. */
  clockMs?: () => number;
}

export interface HashGate {
  /**
   * Runs `work` when a place is free. Refuses with OVERLOADED, before anything is done, when the queue is full or
   * when the work could not end by `deadlineMs` (on the gate's clock) at the present pace.
   */
  run<T>(work: () => Promise<T>, deadlineMs: number): Promise<T>;
  readonly running: number;
  readonly waiting: number;
  /** Started so far. */
  readonly runs: number;
}

const FIRST_GUESS_MS = 30;

/**
 * Bounds argon2: each run takes 19 MiB and ~20 ms of a core, so an open door would let a burst of callers take all the
 * memory and time. Admission is where a call is refused: once admitted it is run.
 */
export function createHashGate({ concurrency, queue, clockMs = () => performance.now() }: HashGateOptions): HashGate {
  const waiters: (() => void)[] = [];
  let running = 0;
  let runs = 0;
  let averageMs = FIRST_GUESS_MS;

  async function run<T>(work: () => Promise<T>, deadlineMs: number): Promise<T> {
    const places = Math.floor((waiters.length + running) / concurrency);
    const expectedMs = (places + 1) * averageMs;
    if ((running >= concurrency && waiters.length >= queue) || clockMs() + expectedMs > deadlineMs) {
      throw new KeyError("OVERLOADED", "Too many keys are being hashed at the moment. Try again shortly.", {
        retryAfterMs: Math.ceil(Math.max(expectedMs, 100)),
      });
    }
    if (running >= concurrency) await new Promise<void>((resolve) => waiters.push(resolve));
    else running += 1;
    const startedMs = clockMs();
    runs += 1;
    try {
      return await work();
    } finally {
      averageMs += (clockMs() - startedMs - averageMs) / 8;
      // The place passes on directly, so that a newcomer can't slip in before one who waited.
      const next = waiters.shift();
      if (next === undefined) running -= 1;
      else next();
    }
  }

  return {
    run,
    get running() {
      return running;
    },
    get waiting() {
      return waiters.length;
    },
    get runs() {
      return runs;
    },
  };
}
