import type { AuditEntry, AuditResult } from "./audit/entry.ts";
import type { Fingerprint, KeyRecord, KeyState, RevocationCause } from "./record.ts";

/** A user's keys that are stored as active or retiring; whether they have run out since is the reader's to judge. */
export interface CurrentKeys {
  active?: KeyRecord | undefined;
  retiring?: KeyRecord | undefined;
}

export interface KeysAtChange extends CurrentKeys {
  /** Further active or retiring keys: only where a unique index was lost for a time. */
  surplus?: readonly KeyRecord[];
  /** The key that was made by the request id in question, in whatever state. */
  requested?: KeyRecord | undefined;
  /** Ended keys that an admin suspended. */
  held?: readonly KeyRecord[];
}

/** The key that a request id made. */
interface RequestedKey {
  record: KeyRecord;
  /** The key that it replaced. */
  previous?: KeyRecord | undefined;
}

/** A search for keys; each field narrows it. */
export interface KeyFilter {
  userId?: string | undefined;
  /** At the moment of the search. */
  state?: KeyState | undefined;
  /** The shown prefix of a key, or its beginning. */
  prefix?: string | undefined;
  /** Some part of the name, in any case. */
  name?: string | undefined;
  revocationCause?: RevocationCause | undefined;
  /** Entries of metadata as they are stored; a key must have all. */
  metadata?: readonly string[] | undefined;
}

/** Records to write, and the answer once they are written. */
export interface Change<T> {
  /** Records as they shall be, with the `rev` they were read with. Written in this order, before `insert`. */
  update: KeyRecord[];
  insert?: KeyRecord;
  answer: T;
  /** Written with it, in the same transaction. */
  audit?: AuditEntry;
}

export type Decide<T> = (current: KeysAtChange, now: Date) => Change<T>;

/**
 * Where records are managed; Verify reads them through `lookup.ts`. Every method fails with a KeyError: DB_UNAVAILABLE (a change may still have been made),
 * OVERLOADED (nothing was done), DB_INCOMPLETE, DB_ERROR, DEADLINE_EXCEEDED. `deadlineMs` is on the clock of `performance.now()`.
 */
export interface KeyStore {
  /** Fails with DB_INCOMPLETE while something is known to be missing that new keys rest on. Asks nobody: for the time before costly work. */
  assertComplete(): void;

  /**
   * The user's current keys. Must reflect every write acknowledged before the call; at some moment during the call
   * there was no other active or retiring key than those returned.
   */
  findCurrent(userId: string, deadlineMs: number): Promise<CurrentKeys>;

  /** The key that was made by a request id, given by its digest. As strong as `findCurrent`. */
  findRequested(userId: string, requestDigest: string, deadlineMs: number): Promise<RequestedKey | undefined>;

  /**
   * Reads the user's current keys and writes what `decide` makes of them, as one transaction: all of it, or nothing.
   * `decide` must be pure; it is called again when another change came between, with a later `now`. A KeyError that it
   * throws is a refusal: nothing is written, and it is passed on only once a read as strong as `findCurrent`'s led to
   * it too. Must never leave two active keys, or two retiring ones, of one user, whoever else writes. CONFLICT when
   * others kept changing the same user's keys until the deadline. Must write nothing that starts after `deadlineMs`.
   * A change that leaves a key active, retiring or with a request must fail with DB_INCOMPLETE unless, from before its writes to
   * its commit, the database was able to refuse a second such key; one that only ends keys must not.
   * With `requestDigest`, `decide` is also given the key that this request id made. Must never leave two of one user.
   */
  change<T>(userId: string, deadlineMs: number, decide: Decide<T>, requestDigest?: string): Promise<T>;

  /** A record in whatever state. As strong as `findCurrent`. */
  findById(id: string, deadlineMs: number): Promise<KeyRecord | undefined>;

  /** Records by id, after the id `after`. What was changed while pages were read may be in them or not. */
  list(
    filter: KeyFilter,
    after: string | undefined,
    limit: number,
    now: Date,
    deadlineMs: number,
  ): Promise<KeyRecord[]>;

  /** Replaces a record's fingerprint unless another change came between. */
  setFingerprint(
    record: Pick<KeyRecord, "id" | "userId" | "rev">,
    fingerprint: Fingerprint,
    deadlineMs: number,
  ): Promise<void>;

  /** Writes when keys were last used, in Unix milliseconds by id; at most once a minute a key, whoever else notes uses. */
  noteUses(used: ReadonlyMap<string, number>): Promise<void>;
}

/** A read was refused before it began: the database has too much to do. */
export class DatabaseOverloaded extends Error {
  override readonly name = "DatabaseOverloaded";
}

/**
 * Reads of records by id, for Verify. Each fails when the database does not answer, with DatabaseOverloaded when it says that it
 * can't at the moment; what that means, `verify/lookup.ts` decides.
 */
export interface RecordSource {
  /** At least as new as every event and every write of this process seen so far. */
  readRecent(ids: readonly string[], signal: AbortSignal): Promise<KeyRecord[]>;
  /** Reflects every write that anyone had acknowledged before the call. A primary cut off from its majority can't answer. */
  readProven(ids: readonly string[], signal: AbortSignal): Promise<KeyRecord[]>;
  /** As `readRecent`, from a secondary: for when there is no primary. */
  readFromSecondary(ids: readonly string[], signal: AbortSignal): Promise<KeyRecord[]>;
}

export interface StoredAuditEntry extends AuditEntry {
  /** Later entries have greater ids. */
  id: string;
}

export interface AuditFilter {
  actor?: string | undefined;
  userId?: string | undefined;
  keyId?: string | undefined;
  action?: string | undefined;
  result?: AuditResult | undefined;
  /** From this time on. */
  since?: Date | undefined;
  /** Before this time. */
  until?: Date | undefined;
}

/** Every method fails with a KeyError, as those of KeyStore. */
export interface AuditStore {
  /** Entries whose write failed may be written again: none of these very entries will be there twice. */
  write(entries: readonly AuditEntry[]): Promise<void>;
  /** Newest first, older than the entry `before`. */
  list(filter: AuditFilter, before: string | undefined, limit: number, deadlineMs: number): Promise<StoredAuditEntry[]>;
}
