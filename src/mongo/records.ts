import {
  Binary,
  type Db,
  type Document,
  type ReadPreferenceMode,
  type RunCommandOptions,
  type Timestamp,
} from "mongodb";
import { DatabaseOverloaded, type RecordSource } from "../keys/ports.ts";
import type { Fingerprint, KeyRecord } from "../keys/record.ts";
import type { ClusterTime } from "./cluster-time.ts";
import { HEARTBEATS, KEYS } from "./schema.ts";
import { incomplete, type SchemaCheck } from "./schema-watch.ts";
import { isOverloaded } from "./server-errors.ts";

/** A record as it is stored: absent fields are absent, the fingerprint's MAC is binary. */
export interface KeyDocument extends Omit<KeyRecord, "id" | "fingerprint"> {
  _id: string;
  fingerprint?: { pepper: string; mac: Binary };
}

/**
 * Reads by id; while the collection is gone, DB_INCOMPLETE for what is not found: nobody knows whether it is good. All are majority reads with `afterClusterTime`: a plain majority read of a primary that was cut off answers
 * with old data and no error. They are raw commands, which the driver neither retries nor alters.
 */
export function createRecordSource(
  db: Db,
  clusterTime: ClusterTime,
  { recordsGone }: Pick<SchemaCheck, "recordsGone">,
): RecordSource {
  async function ask(command: Document, options: RunCommandOptions): Promise<Document> {
    return db.command(command, options).catch((error: unknown) => {
      throw isOverloaded(error)
        ? new DatabaseOverloaded("the database did not begin to read", { cause: error })
        : error;
    });
  }

  async function read(
    ids: readonly string[],
    signal: AbortSignal,
    after: Timestamp | undefined,
    readPreference: ReadPreferenceMode,
  ): Promise<KeyRecord[]> {
    const command = {
      find: KEYS,
      filter: { _id: ids.length === 1 ? ids[0] : { $in: ids } },
      batchSize: ids.length,
      singleBatch: true,
      readConcern: { level: "majority", ...(after && { afterClusterTime: after }) },
    };
    const answer = await ask(command, { readPreference, signal });
    const found: KeyDocument[] = answer.cursor.firstBatch;
    if (found.length < ids.length && recordsGone()) throw incomplete("there is no collection of records");
    return found.map(toRecord);
  }

  return {
    readRecent: (ids, signal) => read(ids, signal, clusterTime.latest, "primary"),
    readFromSecondary: (ids, signal) => read(ids, signal, clusterTime.latest, "secondary"),

    // A linearizable read proves that the primary still is one; the database allows it for a single document only.
    async readProven(ids, signal) {
      const proof = await ask(
        { find: HEARTBEATS, filter: { _id: "" }, limit: 1, singleBatch: true, readConcern: { level: "linearizable" } },
        { readPreference: "primary", signal },
      );
      clusterTime.advance(proof.operationTime);
      return read(ids, signal, proof.operationTime, "primary");
    },
  };
}

export function toDocument({ id, fingerprint, ...fields }: KeyRecord): KeyDocument {
  return {
    _id: id,
    ...(Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as typeof fields),
    ...(fingerprint && { fingerprint: toStored(fingerprint) }),
  };
}

export function toStored({ pepper, mac }: Fingerprint): NonNullable<KeyDocument["fingerprint"]> {
  return { pepper, mac: new Binary(mac) };
}

export function toRecord({ _id, fingerprint, ...fields }: KeyDocument): KeyRecord {
  return {
    id: _id,
    ...fields,
    // A copy: the driver's buffer is part of the whole answer, which would stay in memory with it.
    fingerprint: fingerprint && { pepper: fingerprint.pepper, mac: Uint8Array.from(fingerprint.mac.buffer) },
  };
}
