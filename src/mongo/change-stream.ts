import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { type Db, MongoServerError, type Timestamp } from "mongodb";
import type { StoredState } from "../keys/record.ts";
import type { Moment } from "../keys/verify/freshness.ts";
import type { ClusterTime } from "./cluster-time.ts";
import { HEARTBEATS, KEYS } from "./schema.ts";
import { hasCode } from "./server-errors.ts";

/** A change of a record, by whatever process. */
export interface KeyEvent {
  id: string;
  /** The record's `rev` after the change; Infinity when the record is gone. */
  rev: number;
  /** Set when the change set it. */
  state?: StoredState | undefined;
  /** Orders the events of all processes alike: events of one transaction share it. */
  clusterTime: bigint;
}

interface WatchSink {
  /** Events are followed from a moment before now on, and may have been missed before. Called before the first. */
  restarted(clusterTime: bigint): void;
  changed(event: KeyEvent): void;
  /** Every write acknowledged before `moment` has been reported by `changed`. */
  proven(moment: Moment, clusterTime: bigint): void;
}

interface WatchOptions {
  db: Db;
  clusterTime: ClusterTime;
  /** Unix milliseconds. */
  wallMs: () => number;
  /** Without a proof for this long, the stream is given up for another. */
  maxStalenessMs: number;
  sink: WatchSink;
  /** The stream ended and will be opened again. For the log. */
  onInterrupted?: (error: unknown) => void;
}

export interface Watch {
  /** Streams opened so far. */
  readonly opened: number;
  stop(): Promise<void>;
}

/** Heartbeats in a staleness: one may be late, one lost, and there is still a proof in time. */
const BEATS = 4;
const MAX_BACKOFF_MS = 5_000;
const FAREWELL_MS = 500;
/** How long the server holds a request for events when there are none: less than the socket may be silent. */
const MAX_AWAIT_MS = 1_000;

interface WatchedEvent {
  _id: unknown;
  operationType: string;
  clusterTime?: Timestamp;
  ns?: { coll?: string };
  documentKey?: { _id: string };
  fullDocument?: { rev?: number; state?: StoredState; beat?: number };
  updateDescription?: { updatedFields?: { rev?: number; state?: StoredState; beat?: number } };
}

/**
 * Follows every change of records by a change stream, for as long as the process lives, and proves how far it has come: a
 * heartbeat, written with majority write concern, that comes back on the stream has behind it all that was acknowledged
 * before it was sent. An idle stream proves nothing: a cursor on a primary that was cut off goes on without an error.
 */
export function watchKeys({
  db,
  clusterTime,
  maxStalenessMs,
  wallMs,
  sink,
  onInterrupted = () => {},
}: WatchOptions): Watch {
  const process = randomUUID();
  const beats = new Map<number, Moment>();
  let beat = 0;
  let lastSignMs = performance.now();
  let giveUp: (reason: Error) => void = () => {};
  let resumeToken: unknown;
  let startAt: Timestamp | undefined;
  let opened = 0;
  const stopping = new AbortController();

  /** Returns the time of the write in the database. */
  async function sendBeat(): Promise<Timestamp> {
    beat += 1;
    const mine = beat;
    beats.set(mine, { wallMs: wallMs(), monotonicMs: performance.now() });
    beats.delete(mine - 10 * BEATS);
    const command = {
      update: HEARTBEATS,
      updates: [{ q: { _id: process }, u: { $set: { beat: mine, at: new Date() } }, upsert: true }],
      writeConcern: { w: "majority" },
    };
    // One that is older than the staleness would prove nothing any more.
    const answer = await db.command(command, { signal: AbortSignal.timeout(maxStalenessMs) });
    return answer.operationTime;
  }

  function take(event: WatchedEvent): void {
    resumeToken = event._id;
    clusterTime.advance(event.clusterTime);
    const time = event.clusterTime?.toBigInt() ?? 0n;
    const fields = event.fullDocument ?? event.updateDescription?.updatedFields;
    if (event.ns?.coll === HEARTBEATS) {
      const moment = fields?.beat === undefined ? undefined : beats.get(fields.beat);
      if (moment === undefined) return;
      lastSignMs = performance.now();
      sink.proven(moment, time);
    } else if (event.ns?.coll === KEYS && event.documentKey !== undefined) {
      const rev =
        event.operationType === "delete" ? Number.POSITIVE_INFINITY : (fields?.rev ?? Number.POSITIVE_INFINITY);
      sink.changed({ id: event.documentKey._id, rev, state: fields?.state, clusterTime: time });
    } else {
      // The collection or the database was dropped or renamed: nothing that is known holds.
      resumeToken = undefined;
      startAt = undefined;
      throw new Error(`the records were taken away (${event.operationType})`);
    }
  }

  async function follow(): Promise<void> {
    if (resumeToken === undefined && startAt === undefined) {
      startAt = await sendBeat();
      clusterTime.advance(startAt);
      sink.restarted(startAt.toBigInt());
    }
    const from = resumeToken === undefined ? { startAtOperationTime: startAt! } : { resumeAfter: resumeToken };
    stopping.signal.throwIfAborted();
    const maxAwaitTimeMS = Math.min(Math.ceil(maxStalenessMs / BEATS), MAX_AWAIT_MS);
    const stream = db.watch(pipeline(process), { ...from, maxAwaitTimeMS });
    opened += 1;
    let live = true;
    const read = async () => {
      while (live) {
        const event = (await stream.next()) as WatchedEvent;
        if (live) take(event);
      }
    };
    try {
      await new Promise<never>((_, reject) => {
        giveUp = reject;
        read().catch(reject);
      });
    } finally {
      live = false;
      // Not waited for: a cursor on a server that does not answer can't be closed.
      stream.close().catch(() => {});
    }
  }

  async function followForEver(): Promise<void> {
    for (let failures = 0; !stopping.signal.aborted; failures += 1) {
      const beganMs = performance.now();
      try {
        await follow();
      } catch (error) {
        if (stopping.signal.aborted) return;
        onInterrupted(error);
        if (isHistoryLost(error)) {
          resumeToken = undefined;
          startAt = undefined;
        }
      }
      if (lastSignMs > beganMs) failures = 0;
      const backoffMs = Math.min(50 * 2 ** failures, MAX_BACKOFF_MS) * (0.5 + Math.random() / 2);
      await sleep(backoffMs, undefined, { signal: stopping.signal }).catch(() => {});
      lastSignMs = performance.now();
    }
  }

  const timer = setInterval(() => {
    sendBeat().catch(() => {});
    if (performance.now() - lastSignMs <= maxStalenessMs) return;
    lastSignMs = performance.now();
    giveUp(new NoProofError(`no proof of freshness within ${maxStalenessMs} ms`));
  }, maxStalenessMs / BEATS);
  const followed = followForEver();

  return {
    get opened() {
      return opened;
    },
    async stop() {
      clearInterval(timer);
      stopping.abort();
      giveUp(new Error("stopped"));
      const removed = db.collection<{ _id: string }>(HEARTBEATS).deleteOne({ _id: process });
      const left = Promise.all([followed, removed.catch(() => {})]);
      await Promise.race([left, sleep(FAREWELL_MS, undefined, { ref: false })]);
    },
  };
}

/**
 * Events of records that change what Verify says, and this process's own heartbeats. Left out are the notes of a use: every
 * other write of the service sets `rev`, and what is changed by hand need not.
 */
function pipeline(process: string): object[] {
  const ofKeys = {
    "ns.coll": KEYS,
    $or: [
      { operationType: { $ne: "update" } },
      { "updateDescription.updatedFields.rev": { $exists: true } },
      { "updateDescription.updatedFields.lastUsedAt": { $exists: false } },
    ],
  };
  const ofHeartbeats = { "ns.coll": HEARTBEATS, "documentKey._id": process, operationType: { $ne: "delete" } };
  // Another collection is renamed over the records, as by `$out`: of what was there before, nothing else is heard.
  const ofReplacement = { operationType: "rename", "to.coll": KEYS };
  const fields = ["rev", "state", "beat"].flatMap((name) => [
    `fullDocument.${name}`,
    `updateDescription.updatedFields.${name}`,
  ]);
  const kept = ["operationType", "clusterTime", "ns", "documentKey._id", ...fields];
  return [
    {
      $match: {
        $or: [ofKeys, ofHeartbeats, ofReplacement, { operationType: { $in: ["dropDatabase", "invalidate"] } }],
      },
    },
    { $project: Object.fromEntries(kept.map((field) => [field, 1])) },
  ];
}

/** The server can't go on from where the stream was: its history is gone, or the token is not its own. */
function isHistoryLost(error: unknown): boolean {
  if (hasCode(error, "CappedPositionLost", "InvalidResumeToken", "ChangeStreamFatalError", "ChangeStreamHistoryLost"))
    return true;
  return error instanceof MongoServerError && error.hasErrorLabel("NonResumableChangeStreamError");
}

/** The stream may be silent or dead: no heartbeat of this process came back in time. */
class NoProofError extends Error {
  override readonly name = "NoProofError";
}
