import { checked, KeyError } from "./errors.ts";
import { formatKey, ID_LENGTH, randomBase62, SECRET_LENGTH } from "./format.ts";
import { isLive, type KeyRecord, SUPERSEDED, statusAt } from "./key.ts";
import type { CurrentKeys, KeyStore } from "./key-store.ts";
import {
  checkGracePeriod,
  checkLifetime,
  checkName,
  checkReason,
  checkScopes,
  checkUserId,
  type Lifetime,
  type Policy,
  scopesMissing,
  type TimeSpan,
} from "./policy.ts";
import type { SecretKeeper } from "./secret.ts";

/** Who calls, as their user token says. */
export interface Caller {
  userId: string;
  admin: boolean;
}

export interface CreateInput {
  userId?: string | undefined;
  name?: string | undefined;
  scopes: readonly string[];
  lifetime?: Lifetime | undefined;
}

export interface RefreshInput extends CreateInput {
  gracePeriod?: TimeSpan | undefined;
}

export interface Created {
  record: KeyRecord;
  /** The full key. It exists only here. */
  key: string;
}

export interface Refreshed extends Created {
  previous?: KeyRecord | undefined;
  previousKeyRevoked: boolean;
}

export interface Revoked {
  active?: KeyRecord | undefined;
  retiring?: KeyRecord | undefined;
}

/** The management of keys. `deadlineMs` is on the clock of `performance.now()`. */
export interface KeyManager {
  create(caller: Caller, input: CreateInput, deadlineMs: number): Promise<Created>;
  get(caller: Caller, userId: string | undefined, deadlineMs: number): Promise<KeyRecord>;
  refresh(caller: Caller, input: RefreshInput, deadlineMs: number): Promise<Refreshed>;
  revoke(caller: Caller, userId: string | undefined, reason: string, deadlineMs: number): Promise<Revoked>;
}

export interface KeyManagerParts {
  store: KeyStore;
  secrets: SecretKeeper;
  policy: Policy;
  /** The prefix of new keys. */
  prefix: string;
  clock: () => Date;
  randomBytes: (size: number) => Uint8Array;
}

export function createKeyManager({ store, secrets, policy, prefix, clock, randomBytes }: KeyManagerParts): KeyManager {
  async function mint(userId: string, deadlineMs: number) {
    const id = randomBase62(ID_LENGTH, randomBytes);
    const secret = randomBase62(SECRET_LENGTH, randomBytes);
    const digests = await secrets.digest(id, secret, deadlineMs);
    return {
      key: formatKey({ prefix, id, secret }),
      record: (fields: Pick<KeyRecord, "name" | "scopes" | "createdAt" | "expiresAt">): KeyRecord => ({
        ...{ id, userId, prefix, ...digests, ...fields },
        state: "active",
        rev: 1,
      }),
    };
  }

  /** What Create and Refresh accept alike. The order of refusals: rights, all fields at once, scope policy. */
  function accept(caller: Caller, input: RefreshInput, { scopesNeeded }: { scopesNeeded: boolean }) {
    const userId = ownerFor(caller, input.userId);
    const now = clock();
    const fields = checked((violations) => {
      checkUserId(userId, violations);
      const name = checkName(input.name, violations);
      const scopes = checkScopes(input.scopes, policy, violations);
      if (scopesNeeded && scopes.length === 0) scopesMissing(violations);
      const lifetimeMs = checkLifetime(input.lifetime, policy, now, violations);
      const graceMs = checkGracePeriod(input.gracePeriod, policy, violations);
      return { name, scopes, lifetimeMs, graceMs };
    });
    mayGrant(caller, fields.scopes);

    /** An explicit `expires_at` is kept to the millisecond; everything else is a span from the moment of creation. */
    const endOf = (createdAt: Date, inheritedMs?: number): Date | undefined => {
      if (input.lifetime?.case === "expiresAt") return new Date(now.getTime() + fields.lifetimeMs!);
      const lifetimeMs = fields.lifetimeMs ?? inheritedMs ?? Number.POSITIVE_INFINITY;
      const boundedMs = Math.min(lifetimeMs, policy.maxTtlMs ?? Number.POSITIVE_INFINITY);
      return boundedMs === Number.POSITIVE_INFINITY ? undefined : new Date(createdAt.getTime() + boundedMs);
    };
    return { userId, now, endOf, ...fields };
  }

  function mayGrant(caller: Caller, scopes: readonly string[]): void {
    const forbidden = caller.admin ? [] : scopes.filter((scope) => !policy.memberScopes.matches(scope));
    if (forbidden.length === 0) return;
    const listed = forbidden.join(", ");
    throw new KeyError("SCOPE_FORBIDDEN", `You may not grant these scopes: ${listed}. Ask an admin to.`, {
      metadata: { scopes: forbidden.join(",") },
    });
  }

  return {
    async create(caller, input, deadlineMs) {
      const { userId, now, name, scopes, endOf } = accept(caller, input, { scopesNeeded: true });
      // A cheap look before the costly hash; the index still decides.
      refuseIfActive(await store.findCurrent(userId, deadlineMs), now);
      const { key, record } = await mint(userId, deadlineMs);
      return store.change(userId, deadlineMs, (current, at) => {
        refuseIfActive(current, at);
        const created = record({ name, scopes, createdAt: at, expiresAt: endOf(at) });
        const expired = current.active && settled(current.active, at);
        return { update: expired ? [expired] : [], insert: created, answer: { record: created, key } };
      });
    },

    async get(caller, requestedUserId, deadlineMs) {
      const userId = ownerFor(caller, requestedUserId);
      checked((violations) => checkUserId(userId, violations));
      const now = clock();
      const { active } = await store.findCurrent(userId, deadlineMs);
      if (active === undefined || !isLive(active, now)) throw noKey();
      return active;
    },

    async refresh(caller, input, deadlineMs) {
      const { userId, name, scopes, graceMs, endOf } = accept(caller, input, { scopesNeeded: false });
      const { key, record } = await mint(userId, deadlineMs);
      return store.change(userId, deadlineMs, ({ active, retiring }, at) => {
        if (scopes.length === 0 && active === undefined) checked(scopesMissing);
        const inheritedMs = active?.expiresAt && active.expiresAt.getTime() - active.createdAt.getTime();
        const created = record({
          name: name ?? active?.name,
          scopes: scopes.length > 0 ? scopes : active!.scopes,
          createdAt: at,
          expiresAt: endOf(at, inheritedMs),
        });
        const previous = active && superseded(active, graceMs, at);
        // The retiring key first: the index allows one retiring key a user.
        const update = retiring ? [superseded(retiring, 0, at)] : [];
        if (previous) update.push(previous);
        return {
          update,
          insert: created,
          answer: { record: created, key, previous, previousKeyRevoked: previous?.state === "revoked" },
        };
      });
    },

    async revoke(caller, requestedUserId, reason, deadlineMs) {
      const userId = ownerFor(caller, requestedUserId);
      checked((violations) => {
        checkUserId(userId, violations);
        checkReason(reason, violations);
      });
      return store.change(userId, deadlineMs, (current, at) => {
        const end = (record: KeyRecord | undefined): KeyRecord | undefined =>
          record && isLive(record, at)
            ? { ...record, state: "revoked", revokedAt: at, revocationReason: reason || undefined }
            : undefined;
        const answer: Revoked = { active: end(current.active), retiring: end(current.retiring) };
        const update = [answer.active, answer.retiring].filter((record) => record !== undefined);
        if (update.length === 0) throw noKey();
        return { update, answer };
      });
    },
  };
}

/** Whose key is meant. An empty `user_id` is nobody's: a bad field, not a matter of rights. */
function ownerFor(caller: Caller, requested: string | undefined): string {
  if (requested === undefined) return caller.userId;
  if (requested !== "" && requested !== caller.userId && !caller.admin) {
    throw new KeyError("ADMIN_REQUIRED", "Only an admin may manage another user's key.");
  }
  return requested;
}

function refuseIfActive({ active }: CurrentKeys, now: Date): void {
  if (active === undefined || !isLive(active, now)) return;
  throw new KeyError("KEY_EXISTS", "An active API key already exists. Revoke it first or use refresh.");
}

function noKey(): KeyError {
  return new KeyError("NO_KEY", "There is no active API key.");
}

/** `record` with what time alone has made of it written down. */
function settled(record: KeyRecord, now: Date): KeyRecord {
  return { ...record, ...statusAt(record, now) };
}

/** `record` after a Refresh at `now`. */
function superseded(record: KeyRecord, graceMs: number, now: Date): KeyRecord {
  if (!isLive(record, now)) return settled(record, now);
  if (graceMs === 0) return { ...record, state: "revoked", revokedAt: now, revocationReason: SUPERSEDED };
  const retiresAtMs = Math.min(now.getTime() + graceMs, record.expiresAt?.getTime() ?? Number.POSITIVE_INFINITY);
  return { ...record, state: "retiring", retiresAt: new Date(retiresAtMs) };
}
