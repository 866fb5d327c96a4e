import { randomBytes } from "node:crypto";
import { type Collection, type Db, type Filter, MongoBulkWriteError } from "mongodb";
import type { AuditEntry } from "../keys/audit/entry.ts";
import type { AuditStore, StoredAuditEntry } from "../keys/ports.ts";
import { guarded, guardedRead, remainingMs } from "./failures.ts";
import { AUDIT } from "./schema.ts";
import { isCode } from "./server-errors.ts";

export interface AuditDocument extends AuditEntry {
  /** Begins with the time, so that ids are in its order. */
  _id: string;
}

export function createAuditStore(db: Db): AuditStore {
  const entries: Collection<AuditDocument> = db.collection(AUDIT);
  /** Entries that were written, or may have been: one that is written again keeps its id. */
  const tried = new WeakMap<AuditEntry, AuditDocument>();
  const documentOf = (entry: AuditEntry): AuditDocument => {
    const document = tried.get(entry) ?? toAuditDocument(entry);
    tried.set(entry, document);
    return document;
  };
  return {
    write: (batch) =>
      guarded(Number.POSITIVE_INFINITY, async () => {
        if (batch.length === 0) return;
        await entries.insertMany(batch.map(documentOf), { ordered: false }).catch((error: unknown) => {
          if (!isAllWritten(error)) throw error;
        });
      }),

    list: ({ actor, userId, keyId, action, result, since, until }, before, limit, deadlineMs) =>
      guardedRead(deadlineMs, async () => {
        const ids: Filter<AuditDocument>[] = [];
        if (before !== undefined) ids.push({ _id: { $lt: before } });
        if (since !== undefined) ids.push({ _id: { $gte: idAt(since) } });
        if (until !== undefined) ids.push({ _id: { $lt: idAt(until) } });
        const filter: Filter<AuditDocument> = {
          ...present<object>({ actor, userId, keyIds: keyId, action, result }),
          ...(ids.length > 0 && { $and: ids }),
        };
        const found = entries.find(filter, { maxTimeMS: remainingMs(deadlineMs) });
        return (await found.sort({ _id: -1 }).limit(limit).toArray()).map(toEntry);
      }),
  };
}

/** All that was refused had been written before. */
function isAllWritten(error: unknown): boolean {
  if (!(error instanceof MongoBulkWriteError) || error.result.getWriteConcernError() !== undefined) return false;
  return [error.writeErrors].flat().every(({ code }) => isCode(code, "DuplicateKey"));
}

export function toAuditDocument(entry: AuditEntry): AuditDocument {
  return { _id: idAt(entry.at) + randomBytes(8).toString("hex"), ...present(entry) };
}

function toEntry({ _id, ...entry }: AuditDocument): StoredAuditEntry {
  return { id: _id, ...entry };
}

function idAt(time: Date): string {
  return Math.max(0, time.getTime()).toString(16).padStart(12, "0");
}

function present<T extends object>(fields: T): T {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T;
}
