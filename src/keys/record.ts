import { KEY_ID_PATTERN } from "./text.ts";

/** A MAC of the secret under one of the service's peppers. */
export interface Fingerprint {
  /** The pepper's id in the ring. */
  pepper: string;
  /** HMAC-SHA-256, 32 bytes. */
  mac: Uint8Array;
}

/** The call that a key was made by, where the call may be repeated. */
export interface KeyRequest {
  /** SHA-256 of the request id, base64url. */
  id: string;
  /** SHA-256 of what was asked for, base64url. */
  arguments: string;
  /** The id of the request key that the secret was derived under. */
  ringId: string;
  /** The id of the key that it replaced. */
  previousId?: string | undefined;
  /** That key stopped working at once. */
  previousRevoked?: boolean | undefined;
}

/** A key as it is stored. One record a key; it is never deleted by a caller. */
export interface KeyRecord {
  id: string;
  userId: string;
  name?: string | undefined;
  /** The whole key prefix it was minted with, for example `lk`. */
  prefix: string;
  scopes: string[];
  /** As stored. `statusAt` says what holds at a moment. */
  state: StoredState;
  createdAt: Date;
  expiresAt?: Date | undefined;
  /** When Update set the end: a lifetime that is passed on counts from then. */
  endSetAt?: Date | undefined;
  retiresAt?: Date | undefined;
  revokedAt?: Date | undefined;
  revocationReason?: string | undefined;
  revocationCause?: RevocationCause | undefined;
  lastUsedAt?: Date | undefined;
  /** `name=value`, sorted; see `metadata.ts`. */
  metadata?: string[] | undefined;
  /** Set while the key is suspended, and kept when it ends so. */
  suspended?: Suspension | undefined;
  /** Updates that may be repeated, the oldest first. */
  updates?: RememberedUpdate[] | undefined;
  /** The credential of record, of one of HASH_KINDS. */
  secretHash: string;
  fingerprint?: Fingerprint | undefined;
  /** No more than one record a user has it for one request id. */
  request?: KeyRequest | undefined;
  /** One more at each write. */
  rev: number;
}

export const STATES = ["active", "retiring", "revoked", "expired"] as const;
export type StoredState = (typeof STATES)[number];
/** As callers see them: a suspended key is stored as active or retiring. */
export const KEY_STATES = [...STATES, "suspended"] as const;
export type KeyState = (typeof KEY_STATES)[number];

/** Why a key was revoked, for machines; `superseded` is for Refresh alone. */
export const CAUSES = ["leaked", "superseded", "owner_left", "no_longer_used", "policy", "administrative"] as const;
export type RevocationCause = (typeof CAUSES)[number];

interface RememberedUpdate {
  /** SHA-256 of the request id and of what was asked for, base64url. */
  id: string;
  arguments: string;
  at: Date;
}

/** A field that Update changed, as people read it; empty: there is none. */
export interface FieldChange {
  field: string;
  old: string;
  new: string;
}

interface Suspension {
  at: Date;
  /** Only an admin may resume the key; where it ended, no other key of the user is made before. */
  byAdmin: boolean;
  reason?: string | undefined;
}

interface StoredField {
  /** As MongoDB's $jsonSchema has it. */
  schema: object;
  isRequired?: true;
  /** A change of a key may alter it; times of use and fingerprints have writes of their own. */
  isMutable?: true;
  /** Callers don't see it, or not as a change of the key. */
  isInternal?: true;
}

/** Characters as people count them: code points. */
export const MAX_USER_ID = 256;
export const MAX_NAME = 128;
export const MAX_REASON = 512;
export const MAX_SCOPES = 64;
export const MAX_METADATA_ENTRIES = 16;

const DATE = { bsonType: "date" };
const DIGEST = { bsonType: "string", pattern: "^[0-9A-Za-z_-]{43}$" };

/** Kinds of hashes that a record may hold, by how they begin; `hashes.ts` proves a secret by each. */
export const HASH_KINDS = { argon2id: "$argon2id$" } as const;
export type HashKind = keyof typeof HASH_KINDS;
const HASH_PATTERN = Object.values(HASH_KINDS)
  .map((start) => `^${start.replaceAll("$", "\\$")}`)
  .join("|");

/** How each field of a record is stored. Whoever changes it gives the schema another version. */
export const FIELDS: Readonly<Record<keyof KeyRecord, StoredField>> = {
  id: { schema: { bsonType: "string", pattern: KEY_ID_PATTERN }, isRequired: true },
  userId: { schema: { bsonType: "string", minLength: 1, maxLength: MAX_USER_ID }, isRequired: true },
  name: { schema: { bsonType: "string", minLength: 1, maxLength: MAX_NAME }, isMutable: true },
  prefix: { schema: { bsonType: "string", minLength: 1, maxLength: 32 }, isRequired: true },
  scopes: {
    schema: { bsonType: "array", minItems: 1, maxItems: MAX_SCOPES, items: { bsonType: "string" } },
    isRequired: true,
    isMutable: true,
  },
  state: { schema: { enum: STATES }, isRequired: true, isMutable: true },
  createdAt: { schema: DATE, isRequired: true },
  expiresAt: { schema: DATE, isMutable: true },
  endSetAt: { schema: DATE, isMutable: true, isInternal: true },
  retiresAt: { schema: DATE, isMutable: true },
  revokedAt: { schema: DATE, isMutable: true },
  revocationReason: { schema: { bsonType: "string", maxLength: MAX_REASON }, isMutable: true },
  revocationCause: { schema: { enum: CAUSES }, isMutable: true },
  lastUsedAt: { schema: DATE, isInternal: true },
  metadata: {
    schema: {
      ...{ bsonType: "array", minItems: 1, maxItems: MAX_METADATA_ENTRIES },
      items: { bsonType: "string", pattern: "^[0-9a-z-]{1,64}=" },
    },
    isMutable: true,
  },
  suspended: {
    schema: {
      bsonType: "object",
      required: ["at", "byAdmin"],
      properties: { at: DATE, byAdmin: { bsonType: "bool" }, reason: { bsonType: "string", maxLength: MAX_REASON } },
    },
    isMutable: true,
  },
  secretHash: { schema: { bsonType: "string", pattern: HASH_PATTERN }, isRequired: true, isInternal: true },
  fingerprint: {
    schema: {
      bsonType: "object",
      required: ["pepper", "mac"],
      properties: { pepper: { bsonType: "string" }, mac: { bsonType: "binData" } },
    },
    isInternal: true,
  },
  updates: {
    schema: {
      bsonType: "array",
      items: {
        bsonType: "object",
        required: ["id", "arguments", "at"],
        properties: { id: DIGEST, arguments: DIGEST, at: DATE },
      },
    },
    isMutable: true,
    isInternal: true,
  },
  request: {
    schema: {
      bsonType: "object",
      required: ["id", "arguments", "ringId"],
      properties: {
        id: DIGEST,
        arguments: DIGEST,
        ringId: { bsonType: "string" },
        previousId: { bsonType: "string" },
        previousRevoked: { bsonType: "bool" },
      },
    },
    isMutable: true,
    isInternal: true,
  },
  rev: { schema: { bsonType: ["int", "long", "double"], minimum: 1 }, isRequired: true, isInternal: true },
};

type HeldValue<Value> = Value extends Date ? number : Value extends string[] ? readonly string[] : Value;
type Held = Omit<KeyRecord, "secretHash" | "fingerprint" | "request" | "updates" | "endSetAt" | "metadata" | "state">;

/**
 * A record without what proves its secret, as it is held in memory. Times are Unix milliseconds: a Date takes six times the memory.
 * Metadata are one text, a line an entry: no entry holds a line break, and an array of them takes twice the memory.
 */
export type HeldRecord = {
  [Name in keyof Held]-?: HeldValue<NonNullable<Held[Name]>> | (undefined extends Held[Name] ? undefined : never);
} & { metadata: string | undefined; state: KeyState };

/** The fields that say whether a key may be used. Times are Dates, or Unix milliseconds. */
export interface Lifecycle<Time extends Date | number = Date> {
  /** As it is stored, or as it was found to be: for what time alone makes of it, these are one. */
  state: KeyState;
  suspended?: Suspension | undefined;
  expiresAt?: Time | undefined;
  retiresAt?: Time | undefined;
  revokedAt?: Time | undefined;
  revocationReason?: string | undefined;
  revocationCause?: RevocationCause | undefined;
}

export type Status<Time extends Date | number = Date> = Pick<
  Lifecycle<Time>,
  "state" | "revokedAt" | "revocationReason" | "revocationCause"
>;

/** The reason of keys that Refresh replaced. Callers can't send it. */
export const SUPERSEDED = "superseded";
export const BY_REFRESH = { revocationReason: SUPERSEDED, revocationCause: SUPERSEDED } as const;

/** Why somebody ends a key. */
export interface Ending {
  /** In words; may be empty. */
  reason: string;
  cause?: RevocationCause | undefined;
}

/** The state of `record` at `now`: an explicit revocation outranks expiry, expiry the end of a grace period, and that a suspension. */
export function statusAt<Time extends Date | number>(record: Lifecycle<Time>, now: Date | number): Status<Time> {
  if (record.state === "revoked") {
    const { revokedAt, revocationReason, revocationCause } = record;
    // From before there were causes.
    const isSuperseded = revocationCause === undefined && revocationReason === SUPERSEDED;
    return {
      state: "revoked",
      revokedAt,
      revocationReason,
      revocationCause: isSuperseded ? SUPERSEDED : revocationCause,
    };
  }
  if (isPast(record.expiresAt, now)) return { state: "expired" };
  const { state } = record;
  if ((state === "retiring" || state === "suspended") && isPast(record.retiresAt, now)) {
    return { state: "revoked", revokedAt: record.retiresAt, ...BY_REFRESH };
  }
  return { state: stateWithoutTime(record) };
}

/** The state while no time of the record has passed. */
export function stateWithoutTime({ state, suspended }: Lifecycle<Date | number>): KeyState {
  return suspended !== undefined && isCurrent(state) ? "suspended" : state;
}

function isCurrent(state: KeyState): boolean {
  return state === "active" || state === "retiring";
}

/** True until the key has ended, be it suspended or not. */
export function isLive(record: KeyRecord, now: Date): boolean {
  const { state } = statusAt(record, now);
  return isCurrent(state) || state === "suspended";
}

/** `record` as it is once somebody ended it. */
export function revoked(record: KeyRecord, { reason, cause }: Ending, now: Date): KeyRecord {
  const why = { revocationReason: reason || undefined, revocationCause: cause };
  return { ...record, state: "revoked", revokedAt: now, ...why };
}

/** The beginning by which people tell keys apart: no bit of the secret is in it. */
export function displayPrefix(record: Pick<KeyRecord, "prefix" | "id">): string {
  return `${record.prefix}_${record.id.slice(0, 8)}`;
}

function isPast(end: Date | number | undefined, now: Date | number): boolean {
  return end !== undefined && end <= now;
}
