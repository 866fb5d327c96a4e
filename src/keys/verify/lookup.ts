import { KeyError } from "../errors.ts";
import { DatabaseOverloaded, type RecordSource } from "../ports.ts";
import { type BatchedRead, createBatchedRead, type ReadResult } from "./batched-read.ts";
import type { Freshness } from "./freshness.ts";
import type { Entry, View } from "./view.ts";

interface LookupOptions {
  view: View;
  freshness: Freshness;
  source: RecordSource;
  /** Time without an answer after which the database counts as away. */
  readTimeoutMs: number;
  /** Unix milliseconds. */
  wallMs: () => number;
  /** Monotonic milliseconds. */
  clockMs?: () => number;
}

export interface Found {
  /** Undefined: no record has this id. */
  entry: Entry | undefined;
  /** The answer reflects every write acknowledged up to then; Unix milliseconds. */
  asOfMs: number;
}

export interface KeyLookup {
  /** The record, if the view is fresh and knows. */
  peek(id: string): Found | undefined;
  /**
   * The record, at most as old as the bounds allow. DB_UNAVAILABLE or OVERLOADED when nothing that new can be had: where the
   * database does not answer, a little before `deadlineMs` (of `performance.now()`), so that the caller still hears of it.
   */
  find(id: string, deadlineMs?: number): Promise<Found>;
  /** The record as of now; DB_UNAVAILABLE or OVERLOADED when that can't be proven, in time as with `find`. */
  findStrong(id: string, deadlineMs?: number): Promise<Found>;
  /** True while reads fail. */
  readonly outage: boolean;
}

/** How long a call that nothing else can answer waits for the database, where its caller waits as long. */
const PATIENCE_MS = 2_000;
/** Time that an answer may take to reach a caller; more than what a gateway's door leaves for it. */
const WAY_BACK_MS = 50;

/**
 * The ground that a look-up stands on. A read that fails, or takes longer than `readTimeoutMs`, begins an outage; one that succeeds ends it, or a
 * proof that was sent after the failure and came back.
 *
 * | state | the view | a record in the view is answered | any other |
 * |---|---|---|---|
 * | `fresh` | proven complete within the staleness | at once, as of the proof | by a recent read, as of the proof |
 * | `stale` | not so | by a proven read, as of its beginning | likewise |
 * | `outage` | proven within the grace | at once, as of the proof | by whichever member answers first and has seen the proof; an id that none has: DB_UNAVAILABLE |
 * | `outage past its grace` | not so | by a proven read, if it succeeds after all; else DB_UNAVAILABLE | likewise |
 *
 * A fresh view answers what it knows in an outage too. Reads are shared by all calls that wait for one.
 */
type LookupState = "fresh" | "stale" | "outage" | "outage past its grace";

export function createLookup(options: LookupOptions): KeyLookup {
  const { view, freshness, source, readTimeoutMs, wallMs, clockMs = () => performance.now() } = options;
  const patienceMs = Math.max(readTimeoutMs, PATIENCE_MS);
  const common = { view, lateMs: readTimeoutMs, timeoutMs: patienceMs, wallMs };
  const readRecent = createBatchedRead({ ...common, read: source.readRecent });
  const readProven = createBatchedRead({ ...common, read: source.readProven });
  const readFromSecondary = createBatchedRead({ ...common, read: source.readFromSecondary });
  let failedMs = Number.NEGATIVE_INFINITY;
  let failure: unknown;
  let probing = false;

  const stateNow = (): LookupState => {
    if (failedMs > freshness.provenMs) return freshness.isWithinGrace() ? "outage" : "outage past its grace";
    return freshness.isFresh() ? "fresh" : "stale";
  };
  const isOutage = () => stateNow().startsWith("outage");

  async function attempt(read: BatchedRead, id: string, onLate?: () => void): Promise<ReadResult> {
    try {
      const result = await read(id, onLate);
      failedMs = Number.NEGATIVE_INFINITY;
      return result;
    } catch (error) {
      if (!(error instanceof KeyError)) {
        failedMs = clockMs();
        failure = error;
      }
      throw error;
    }
  }

  /** A read, and the same in time: undefined when it fails or takes so long that the database counts as away. */
  function ask(read: BatchedRead, id: string) {
    let late = () => {};
    const isLate = new Promise<undefined>((resolve) => {
      late = () => {
        failedMs = clockMs();
        resolve(undefined);
      };
    });
    const answer = attempt(read, id, late);
    const failed = (error: unknown) => {
      if (error instanceof KeyError) throw error;
      return undefined;
    };
    return { answer, inTime: Promise.race([answer.catch(failed), isLate]) };
  }

  /** In an outage nobody who has an answer waits for the database; one read at a time finds out whether it is over. */
  function probe(id: string): void {
    if (probing) return;
    probing = true;
    void attempt(readProven, id)
      .catch(() => undefined)
      .finally(() => {
        probing = false;
      });
  }

  /** `answer`, or DB_UNAVAILABLE while its caller still waits. */
  function before<T>(deadlineMs: number, answer: Promise<T>): Promise<T> {
    const leftMs = Math.max(0, deadlineMs - clockMs());
    const waitMs = Math.max(leftMs - WAY_BACK_MS, leftMs / 2);
    if (waitMs >= patienceMs) return answer;
    return new Promise<T>((resolve, reject) => {
      const timer = setTimeout(() => reject(unavailable()), waitMs);
      answer.then(resolve, reject).finally(() => clearTimeout(timer));
    });
  }

  /** As of the last proof, by a read that need not prove more. */
  async function fromMember(read: BatchedRead, id: string): Promise<Found> {
    const { asOfMs, provenMs } = freshness;
    const { entry } = await read(id);
    // An id is not called unknown: its record may have been made since, and to refuse a good key is worse than to wait.
    if (entry === undefined || !freshness.isWithinGrace(provenMs)) throw unavailable();
    return { entry, asOfMs };
  }

  /**
   * The best record to be had: from memory; from a secondary, which may be the very member that is frozen; from the primary, which may
   * go on without a majority to prove anything by; or from it with proof after all, where it was only slow.
   */
  async function findInOutage(id: string, deadlineMs: number, answer?: Promise<Found>): Promise<Found> {
    const good = freshness.isWithinGrace();
    const entry = good ? view.get(id) : undefined;
    if (entry !== undefined) {
      if (answer === undefined) probe(id);
      return { entry, asOfMs: freshness.asOfMs };
    }
    const late = answer ?? attempt(readProven, id).then(asOfItsBegin);
    const members = good && !view.isUnknown(id) ? [readFromSecondary, readRecent] : [];
    const found = Promise.any([late, ...members.map((read) => fromMember(read, id))]).catch((failures) => {
      const causes: unknown[] = failures.errors;
      throw (
        causes.find((cause) => cause instanceof KeyError && cause.reason !== "DB_UNAVAILABLE") ??
        unavailable(causes.find((cause) => cause instanceof DatabaseOverloaded) ?? causes[0])
      );
    });
    return before(deadlineMs, found);
  }

  function peek(id: string): Found | undefined {
    if (!freshness.isFresh()) return undefined;
    const entry = view.get(id);
    // Asked of every id, so that the clock does not tell which are known.
    const unknown = view.isUnknown(id);
    return entry !== undefined || unknown ? { entry, asOfMs: freshness.asOfMs } : undefined;
  }

  async function find(id: string, deadlineMs = Number.POSITIVE_INFINITY): Promise<Found> {
    const known = peek(id);
    if (known !== undefined) return known;
    const state = stateNow();
    if (state !== "fresh" && state !== "stale") return findInOutage(id, deadlineMs);
    const fresh = state === "fresh";
    const { asOfMs, provenMs } = freshness;
    const { answer, inTime } = ask(fresh ? readRecent : readProven, id);
    const asked = answer.then((result) => {
      if (!fresh) return asOfItsBegin(result);
      // It may have taken so long that what it rests on is too old.
      if (freshness.isFresh(provenMs) || freshness.isWithinGrace(provenMs)) return { entry: result.entry, asOfMs };
      return attempt(readProven, id).then(asOfItsBegin);
    });
    asked.catch(() => {});
    return (await inTime) === undefined ? findInOutage(id, deadlineMs, asked) : asked;
  }

  return {
    peek,
    find,
    async findStrong(id, deadlineMs = Number.POSITIVE_INFINITY) {
      if (isOutage()) {
        probe(id);
        throw unavailable(failure);
      }
      try {
        return asOfItsBegin(await before(deadlineMs, attempt(readProven, id)));
      } catch (error) {
        throw error instanceof KeyError ? error : unavailable(error);
      }
    },
    get outage() {
      return isOutage();
    },
  };
}

function asOfItsBegin({ entry, beganMs }: ReadResult): Found {
  return { entry, asOfMs: beganMs };
}

function unavailable(cause?: unknown): KeyError {
  if (cause instanceof DatabaseOverloaded) {
    return new KeyError(
      "OVERLOADED",
      "The database has too much to do at the moment, and no answer as new as asked for is at hand. Try again shortly.",
      { retryAfterMs: 1_000, cause },
    );
  }
  return new KeyError(
    "DB_UNAVAILABLE",
    "The database can't be reached at the moment, and no answer as new as asked for is at hand. Try again shortly.",
    { retryAfterMs: 1_000, cause },
  );
}
