import { setTimeout as sleep } from "node:timers/promises";
import {
  type ClientSession,
  type Collection,
  type Filter,
  type MongoClient,
  MongoError,
  MongoErrorLabel,
  type TransactionOptions,
} from "mongodb";
import { deadlineExceeded, KeyError } from "../keys/errors.ts";
import type { Change, CurrentKeys, Decide, KeyStore, KeysAtChange } from "../keys/ports.ts";
import { FIELDS, type KeyRecord, type StoredState } from "../keys/record.ts";
import { USE_EVERY_MS } from "../keys/verify/usage.ts";
import type { View } from "../keys/verify/view.ts";
import { type AuditDocument, toAuditDocument } from "./audit-store.ts";
import type { ClusterTime } from "./cluster-time.ts";
import { OPERATION_TIMEOUT_MS } from "./connection.ts";
import {
  conflict,
  guarded,
  guardedRead,
  isConflict,
  isWorthAnother,
  maybeCommitted,
  remainingMs,
  toKeyError,
} from "./failures.ts";
import { createTurns } from "./in-turn.ts";
import { type KeyDocument, toDocument, toRecord, toStored } from "./records.ts";
import { AUDIT, KEYS, UNIQUE_INDEXES, type UniqueIndex } from "./schema.ts";
import { incomplete, type SchemaCheck } from "./schema-watch.ts";
import { matching } from "./search.ts";
import type { SecretChecks } from "./secret-checks.ts";
import { hasCode } from "./server-errors.ts";

/** Fields of a record that a change may alter. */
const MUTABLE = (Object.keys(FIELDS) as (keyof KeyRecord)[]).filter((name) => FIELDS[name].isMutable);

/** Time that an answer may need on its way to the caller. */
const MAX_WAY_BACK_MS = 100;

/** A change's attempts so far. */
interface Tried<T> {
  /** No attempt begins after this, but the first. */
  retryUntilMs: number;
  started?: boolean;
  /** The failure of the last attempt; undefined: another change came between. */
  failure?: unknown;
  /** The last failure that is known. */
  lastFailure?: unknown;
  /** An attempt came to nothing for another change. */
  contended?: boolean;
  /** A commit has been asked for. */
  committing?: boolean;
  /** A commit failed so, and may have gone through. */
  commitFailure?: unknown;
  /** The last key inserted by an attempt whose commit may have gone through: its own id tells. */
  inserted?: { id: string } & Done<T>;
}

interface Done<T> {
  answer: T;
  /** Every record as it now is. */
  written: KeyRecord[];
}

type Attempt<T> = { done: Done<T> } | { refused: KeyError } | "again";

interface KeyStoreParts {
  client: MongoClient;
  database: string;
  clusterTime: ClusterTime;
  /** Learns of every write before its answer is given. */
  view: Pick<View, "open" | "dropUser">;
  schema: SchemaCheck;
  secretChecks: Pick<SecretChecks, "confirm">;
  clock: () => Date;
}

export function createKeyStore(parts: KeyStoreParts): KeyStore {
  const { client, database, clusterTime, view, schema, secretChecks, clock } = parts;
  const keys: Collection<KeyDocument> = client.db(database).collection(KEYS);
  const audit: Collection<AuditDocument> = client.db(database).collection(AUDIT);
  const inTurn = createTurns();

  // A linearizable read proves that the primary still is one: a cut-off primary can't answer it.
  async function readOne(filter: object, deadlineMs: number): Promise<KeyRecord | undefined> {
    const found = await keys.findOne(filter, {
      readConcern: { level: "linearizable" },
      maxTimeMS: remainingMs(deadlineMs),
    });
    return found ? toRecord(found) : undefined;
  }

  // Retiring first: a key only turns retiring in the transaction that makes another active. Read in this order, two
  // misses mean that there was a moment without either.
  async function readCurrent(userId: string, deadlineMs: number): Promise<CurrentKeys> {
    // That there is no key says nothing where there are no records at all, be it from the beginning or at the end.
    const thereAre = schema.confirmRecords();
    thereAre.catch(() => {});
    const retiring = await readOne({ userId, state: "retiring" }, deadlineMs);
    const active = await readOne({ userId, state: "active" }, deadlineMs);
    await thereAre;
    if (active === undefined) await schema.confirmRecords();
    return { active, retiring };
  }

  /** Of ended keys that an admin suspended, one: it stands for all. */
  async function readHeld(userId: string, deadlineMs: number): Promise<KeyRecord[]> {
    const ended = { $nin: ["active", "retiring"] as StoredState[] };
    const held = await readOne({ userId, "suspended.byAdmin": true, state: ended }, deadlineMs);
    return held === undefined ? [] : [held];
  }

  async function attempt<T>(
    userId: string,
    deadlineMs: number,
    decide: Decide<T>,
    tried: Tried<T>,
    requestDigest: string | undefined,
  ): Promise<Attempt<T>> {
    return client.withSession(async (session) => {
      const once = async (): Promise<Attempt<T>> => {
        // The driver tries a transaction again for two minutes; the call's deadline is what ends it.
        if (tried.started && performance.now() >= tried.retryUntilMs) throw inVain(tried, deadlineMs);
        if (performance.now() >= deadlineMs) throw deadlineExceeded();
        tried.started = true;
        tried.failure = undefined;
        const now = clock();
        const current = await readInTransaction(userId, requestDigest, session, remainingMs(deadlineMs));
        if (tried.inserted !== undefined && current.active?.id === tried.inserted.id) return { done: tried.inserted };
        const change = decideOrRefuse(current, now, decide);
        if (change instanceof KeyError) return { refused: change };
        const written = change.update.map((record) => ({ ...record, rev: record.rev + 1 }));
        if (change.insert !== undefined) {
          written.push(change.insert);
          tried.inserted = { id: change.insert.id, answer: change.answer, written };
        }
        const isWritten = await writeJudged(userId, change, session, deadlineMs).catch((error: unknown) => {
          if (!isConflict(error)) throw error;
          tried.failure = error;
          tried.contended = true;
          return false;
        });
        if (!isWritten) {
          // Left to the driver, the next attempt would wait for up to half a second, whatever the deadline.
          await session.abortTransaction();
          return "again";
        }
        // The last moment at which nothing is written yet.
        if (performance.now() >= deadlineMs) throw deadlineExceeded();
        return { done: { answer: change.answer, written } };
      };
      const committed = async (): Promise<Attempt<T>> => {
        try {
          const outcome = await once();
          if (outcome !== "again") await commit(session, tried);
          return outcome;
        } catch (error) {
          tried.failure = error;
          tried.lastFailure = error;
          throw error;
        }
      };
      const options: TransactionOptions = {
        readConcern: { level: "majority" },
        writeConcern: { w: "majority" },
        readPreference: "primary",
        maxCommitTimeMS: OPERATION_TIMEOUT_MS,
      };
      const outcome = await session.withTransaction(committed, options).catch((error: unknown) => {
        throw tried.commitFailure === undefined ? error : maybeCommitted(tried.commitFailure);
      });
      clusterTime.advance(session.operationTime);
      return outcome;
    });
  }

  /**
   * Tried again until the deadline, where the driver would go on for two minutes: only an answer tells whether the change was
   * made, and a transaction that stays open holds up the next ones.
   */
  async function commit(session: ClientSession, tried: Tried<unknown>): Promise<void> {
    tried.committing = true;
    for (let attempts = 1; ; attempts += 1) {
      try {
        return await session.commitTransaction();
      } catch (error) {
        // It was not made: the driver begins the transaction anew.
        if (error instanceof MongoError && error.hasErrorLabel(MongoErrorLabel.TransientTransactionError)) throw error;
        const isFinal = toKeyError(error, Number.POSITIVE_INFINITY).retryAfterMs === undefined;
        if (isFinal || performance.now() >= tried.retryUntilMs) {
          tried.commitFailure = error;
          throw error;
        }
        await sleep(Math.min(backOffMs(attempts), Math.max(0, tried.retryUntilMs - performance.now())));
      }
    }
  }

  /**
   * As `write`; fails with DB_INCOMPLETE unless each unique index that the change rests on is in force, in its exact
   * definition, from here to the commit. The transaction has read the collection: while it is open, MongoDB holds off whatever
   * would drop or alter an index, or take the collection away. A hint fails where there is no such index, or none that is
   * ready; but not where there is no such collection, nor where another index has the name.
   */
  async function writeJudged(
    userId: string,
    change: Change<unknown>,
    session: ClientSession,
    deadlineMs: number,
  ): Promise<boolean> {
    const rests = indexesFor(change);
    if (rests.length === 0) return write(userId, change, session, deadlineMs);
    const [confirmed, written] = await Promise.allSettled([
      Promise.all([schema.confirm(), confirmSecrets(change.insert)]),
      (async () => {
        for (const index of rests) await readByIndex(userId, index, session, deadlineMs);
        return write(userId, change, session, deadlineMs);
      })(),
    ]);
    if (confirmed.status === "rejected") throw confirmed.reason;
    if (written.status === "rejected") throw written.reason;
    return written.value;
  }

  async function confirmSecrets({ fingerprint, request }: Partial<KeyRecord> = {}): Promise<void> {
    if (fingerprint !== undefined) await secretChecks.confirm("pepper", fingerprint.pepper);
    if (request !== undefined) await secretChecks.confirm("request key", request.ringId);
  }

  async function readByIndex(
    userId: string,
    index: UniqueIndex,
    session: ClientSession,
    deadlineMs: number,
  ): Promise<void> {
    const filter: Filter<KeyDocument> = { userId, ...UNIQUE_INDEXES[index].partialFilterExpression };
    const options = { session, hint: index, projection: { _id: 1 }, maxTimeMS: remainingMs(deadlineMs) };
    await keys.findOne(filter, options).catch((error: unknown) => {
      if (!hasCode(error, "BadValue")) throw error;
      schema.look();
      throw incomplete(`the index "${index}" is not in force`);
    });
  }

  /** False: another change was faster. */
  async function write(
    userId: string,
    { update, insert, audit: entry }: Change<unknown>,
    session: ClientSession,
    deadlineMs: number,
  ): Promise<boolean> {
    // First, so that an attempt that comes to nothing is the proof that its entry does too.
    if (entry !== undefined) await audit.insertOne(toAuditDocument(entry), { session });
    for (const record of update) {
      const { matchedCount } = await keys.updateOne(
        { _id: record.id, userId, rev: record.rev },
        { ...assignments(record), $inc: { rev: 1 } },
        { session, maxTimeMS: remainingMs(deadlineMs) },
      );
      if (matchedCount === 0) return false;
    }
    if (insert !== undefined) await keys.insertOne(toDocument(insert), { session });
    return true;
  }

  /** Runs a write, and has the view show what it wrote before the caller learns of it. */
  async function seen<T>(userId: string, make: () => Promise<Done<T>>): Promise<T> {
    const window = view.open();
    try {
      const { answer, written } = await make();
      for (const record of written) window.keep(record);
      return answer;
    } catch (error) {
      const { reason } = toKeyError(error, Number.POSITIVE_INFINITY);
      if (reason === "DB_UNAVAILABLE" || reason === "DB_ERROR") view.dropUser(userId);
      throw error;
    } finally {
      window.close();
    }
  }

  async function readInTransaction(
    userId: string,
    requestDigest: string | undefined,
    session: ClientSession,
    maxTimeMS: number,
  ): Promise<KeysAtChange> {
    // One clause an index: together they would be a scan of all keys.
    const clauses: Filter<KeyDocument>[] = [
      { userId, state: "active" },
      { userId, state: "retiring" },
      { userId, "suspended.byAdmin": true },
    ];
    if (requestDigest !== undefined) clauses.push({ userId, "request.id": requestDigest });
    const found = await keys.find({ $or: clauses }, { session, maxTimeMS }).toArray();
    const records = found.map(toRecord);
    const [active, ...moreActive] = records.filter((record) => record.state === "active");
    const [retiring, ...moreRetiring] = records.filter((record) => record.state === "retiring");
    return {
      ...{ active, retiring, surplus: [...moreActive, ...moreRetiring], held: records.filter(isHeld) },
      ...(requestDigest !== undefined && { requested: records.find(({ request }) => request?.id === requestDigest) }),
    };
  }

  return {
    assertComplete() {
      const missing = schema.missing();
      if (missing !== undefined) throw incomplete(missing);
    },

    findCurrent: (userId, deadlineMs) => guardedRead(deadlineMs, () => readCurrent(userId, deadlineMs)),

    findRequested: (userId, requestDigest, deadlineMs) =>
      guardedRead(deadlineMs, async () => {
        const record = await readOne({ userId, "request.id": requestDigest }, deadlineMs);
        const previousId = record?.request?.previousId;
        const previous = previousId && (await readOne({ _id: previousId, userId }, deadlineMs));
        return record && { record, previous: previous || undefined };
      }),

    // Changes of one user's keys through this process wait for each other here, so that they don't abort each other in
    // the database; those of other processes do, and are tried again.
    change: <T>(userId: string, deadlineMs: number, decide: Decide<T>, requestDigest?: string) => {
      const retryUntilMs = endOfRetries(deadlineMs);
      const tried: Tried<T> = { retryUntilMs };
      const make = async (): Promise<Done<T>> => {
        for (let attempts = 1, overloads = 1; ; attempts += 1) {
          const outcome = await attempt(userId, deadlineMs, decide, tried, requestDigest).catch(async (error) => {
            if (!(await isWorthAnother(error, overloads, retryUntilMs))) throw error;
            overloads += 1;
            return "again" as const;
          });
          if (outcome !== "again" && "done" in outcome) return outcome.done;
          if (outcome !== "again") {
            // A refusal is an answer about the database: it must rest on a read that a cut-off primary can't give.
            const now = clock();
            const [current, held] = await Promise.all([readCurrent(userId, deadlineMs), readHeld(userId, deadlineMs)]);
            const confirmed = decideOrRefuse({ ...current, held }, now, decide);
            if (confirmed instanceof KeyError) throw confirmed;
          }
          await sleep(Math.min(backOffMs(attempts), Math.max(0, retryUntilMs - performance.now())));
          if (performance.now() >= retryUntilMs) throw inVain(tried, deadlineMs);
        }
      };
      return guarded(
        deadlineMs,
        () => inTurn(userId, () => seen(userId, make)),
        () => {
          if (!tried.committing) {
            if (tried.contended) return conflict(tried.failure);
            return tried.lastFailure === undefined ? deadlineExceeded() : toKeyError(tried.lastFailure, deadlineMs);
          }
          view.dropUser(userId);
          return maybeCommitted(tried.commitFailure);
        },
      );
    },

    findById: (id, deadlineMs) =>
      guardedRead(deadlineMs, async () => {
        const found = await readOne({ _id: id }, deadlineMs);
        if (found === undefined) await schema.confirmRecords();
        return found;
      }),

    list: (filter, after, limit, now, deadlineMs) =>
      guardedRead(deadlineMs, async () => {
        await schema.confirmRecords();
        const found = keys.find(matching(filter, after, now), { maxTimeMS: remainingMs(deadlineMs) });
        const records = (await found.sort({ _id: 1 }).limit(limit).toArray()).map(toRecord);
        if (records.length === 0) await schema.confirmRecords();
        return records;
      }),

    setFingerprint: ({ id, userId, rev }, fingerprint, deadlineMs) =>
      guarded(deadlineMs, async () => {
        await confirmSecrets({ fingerprint });
        await keys.updateOne(
          { _id: id, userId, rev },
          { $set: { fingerprint: toStored(fingerprint) }, $inc: { rev: 1 } },
          { maxTimeMS: remainingMs(deadlineMs) },
        );
      }),

    // Uses leave `rev` alone: they change nothing that Verify says. Other processes note them too, so a use is only written
    // when the last one known is old; and a lost one costs nothing, so nobody waits for a majority.
    // Those of one second are written as one: an operation a key would be as much again to build, send and keep.
    async noteUses(used) {
      const bySecond = new Map<number, { ids: string[]; lastMs: number }>();
      for (const [id, usedMs] of used) {
        const second = Math.floor(usedMs / 1_000);
        const together = bySecond.get(second) ?? { ids: [], lastMs: 0 };
        bySecond.set(second, together);
        together.ids.push(id);
        together.lastMs = Math.max(together.lastMs, usedMs);
      }
      const updates = [...bySecond.values()].map(({ ids, lastMs }) => ({
        updateMany: {
          filter: {
            _id: { $in: ids },
            $or: [{ lastUsedAt: { $exists: false } }, { lastUsedAt: { $lt: new Date(lastMs - USE_EVERY_MS) } }],
          },
          update: { $set: { lastUsedAt: new Date(lastMs) } },
        },
      }));
      await keys.bulkWrite(updates, { ordered: false, writeConcern: { w: 1 } });
    },
  };
}

/** The unique indexes that must judge a change; none for one that only ends keys. */
function indexesFor({ insert, update }: Change<unknown>): UniqueIndex[] {
  const states = [...update, ...(insert === undefined ? [] : [insert])].map(({ state }) => state);
  const rests: UniqueIndex[] = [];
  if (states.includes("active")) rests.push("one_active_key_per_user");
  if (states.includes("retiring")) rests.push("one_retiring_key_per_user");
  if (insert?.request !== undefined) rests.push("one_key_per_request");
  return rests;
}

function isHeld({ state, suspended }: KeyRecord): boolean {
  return suspended?.byAdmin === true && state !== "active" && state !== "retiring";
}

function decideOrRefuse<T>(
  current: KeysAtChange,
  now: Date,
  decide: (current: KeysAtChange, now: Date) => T,
): T | KeyError {
  try {
    return decide(current, now);
  } catch (error) {
    if (error instanceof KeyError) return error;
    throw error;
  }
}

/** Time is up, and every attempt came to nothing. */
function inVain({ failure }: Tried<unknown>, deadlineMs: number): KeyError {
  return failure === undefined ? conflict(undefined) : toKeyError(failure, deadlineMs);
}

/** CONFLICT is to reach callers who wait no longer than the deadline: retries end a little before it. */
function endOfRetries(deadlineMs: number): number {
  const leftMs = Math.max(0, deadlineMs - performance.now());
  return deadlineMs - Math.min(MAX_WAY_BACK_MS, leftMs / 10);
}

/** The pause before another attempt, in milliseconds, by the driver's own rule for transactions. */
function backOffMs(attempts: number): number {
  return Math.random() * Math.min(5 * 1.5 ** (attempts - 1), 500);
}

/** Sets what a change may alter, and takes away what is no longer there. */
function assignments(record: KeyRecord): { $set: Partial<KeyDocument>; $unset?: Record<string, ""> } {
  const present = MUTABLE.filter((field) => record[field] !== undefined);
  const absent = MUTABLE.filter((field) => record[field] === undefined);
  return {
    $set: Object.fromEntries(present.map((field) => [field, record[field]])),
    ...(absent.length > 0 && { $unset: Object.fromEntries(absent.map((field) => [field, ""])) }),
  };
}
