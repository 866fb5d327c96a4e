import { type Caller, changedBy, noKey, ownerFor } from "./caller.ts";
import { checked, invalid, KeyError, listed } from "./errors.ts";
import { type Chosen, checkInput, inherited, type KeyInput } from "./input.ts";
import {
  checkEnding,
  checkUserId,
  isRequestId,
  isUserId,
  LAST_INSTANT_MS,
  type Policy,
  scopesMissing,
} from "./policy.ts";
import type { CurrentKeys, Decide, KeyStore, KeysAtChange } from "./ports.ts";
import { BY_REFRESH, type Ending, isLive, type KeyRecord, type KeyRequest, revoked, statusAt } from "./record.ts";
import { type Asked, askedBy, isRemembered, type RequestSecrets, reused } from "./request-id.ts";
import type { SecretKeeper } from "./secret.ts";
import { type Changed, keySuspended, refuseIfHeld, resume, suspend } from "./suspension.ts";
import { formatKey, ID_LENGTH, randomBase62, redacted, SECRET_LENGTH } from "./text.ts";
import { rememberedUpdate, type Updated, type UpdateInput, update } from "./update.ts";

/** Why an answer that repeats an earlier one is without the key. */
export type Withheld = "ended" | "request_key_gone";

interface Created {
  record: KeyRecord;
  /** The full key. It exists only here. Absent: `withheld` tells why. */
  key?: string | undefined;
  withheld?: Withheld | undefined;
  /** The key had been made by an earlier call. */
  isRepeat?: boolean;
}

interface Refreshed extends Created {
  previous?: KeyRecord | undefined;
  previousKeyRevoked: boolean;
}

export interface Revoked {
  active?: KeyRecord | undefined;
  retiring?: KeyRecord | undefined;
  surplus: KeyRecord[];
}

/** The management of keys. `deadlineMs` is on the clock of `performance.now()`. */
export interface KeyManager {
  create(caller: Caller, input: KeyInput, deadlineMs: number): Promise<Created>;
  get(caller: Caller, userId: string | undefined, deadlineMs: number): Promise<KeyRecord>;
  refresh(caller: Caller, input: KeyInput, deadlineMs: number): Promise<Refreshed>;
  revoke(caller: Caller, userId: string | undefined, ending: Ending, deadlineMs: number): Promise<Revoked>;
  update(caller: Caller, input: UpdateInput, deadlineMs: number): Promise<Updated>;
  suspend(caller: Caller, userId: string | undefined, reason: string, deadlineMs: number): Promise<Changed>;
  resume(caller: Caller, userId: string | undefined, deadlineMs: number): Promise<Changed>;
}

interface KeyManagerParts {
  store: KeyStore;
  secrets: SecretKeeper;
  /** Undefined: calls can't be repeated, and request ids are refused. */
  requests?: RequestSecrets | undefined;
  policy: Policy;
  /** The prefix of new keys. */
  prefix: string;
  clock: () => Date;
  randomBytes: (size: number) => Uint8Array;
}

export function createKeyManager(parts: KeyManagerParts): KeyManager {
  const { store, secrets, requests, policy, prefix, clock, randomBytes } = parts;
  /** Calls with a request id. */
  const underWay = new Map<string, Promise<unknown>>();

  async function mint(userId: string, asked: Asked | undefined, deadlineMs: number) {
    store.assertComplete();
    const id = randomBase62(ID_LENGTH, randomBytes);
    const secret =
      (asked && requests!.derive(asked, id, requests!.current)) ?? randomBase62(SECRET_LENGTH, randomBytes);
    const digests = await secrets.digest(id, secret, deadlineMs);
    const request = asked && { id: asked.digest, arguments: asked.arguments, ringId: requests!.current };
    return {
      key: formatKey({ prefix, id, secret }),
      record: (
        fields: Chosen & Pick<KeyRecord, "createdAt" | "expiresAt" | "updates">,
        replaced?: Pick<KeyRequest, "previousId" | "previousRevoked">,
      ): KeyRecord => ({
        ...{ id, userId, prefix, ...digests, ...fields },
        ...(request && { request: { ...request, ...replaced } }),
        state: "active",
        rev: 1,
      }),
    };
  }

  /** Undefined: it can't be a repeat. Bad fields are for `accept` to tell, together with all others. */
  function askedAgain(method: "Create" | "Refresh", caller: Caller, input: KeyInput): Asked | undefined {
    const userId = ownerFor(caller, input.userId);
    const { requestId } = input;
    if (requests === undefined || requestId === undefined) return undefined;
    return isUserId(userId) && isRequestId(requestId) ? askedBy(method, userId, requestId, input) : undefined;
  }

  /** The answer of the same call before, if there was one; its other fields need not be good any more. */
  async function earlier(asked: Asked, deadlineMs: number): Promise<Refreshed | undefined> {
    const found = await store.findRequested(asked.userId, asked.digest, deadlineMs);
    const now = clock();
    if (found === undefined || !isRemembered(found.record, now)) return undefined;
    const { record, previous } = found;
    const { request } = record;
    if (request!.arguments !== asked.arguments) throw reused(record.id);
    const answer = { record, previous, previousKeyRevoked: request!.previousRevoked ?? false, isRepeat: true };
    if (!isLive(record, now) || record.suspended !== undefined) return { ...answer, withheld: "ended" };
    const secret = requests!.derive(asked, record.id, request!.ringId);
    // A request key that goes by the same id and is another one would make another secret.
    const { proven } =
      secret === undefined ? { proven: false } : await secrets.prove(record.id, secret, record, deadlineMs);
    if (!proven) return { ...answer, withheld: "request_key_gone" };
    return { ...answer, key: formatKey({ prefix: record.prefix, id: record.id, secret: secret! }) };
  }

  /** Makes a key unless the same call made it before, or does so at the same time. */
  async function once<T extends Refreshed | Created>(
    asked: Asked | undefined,
    deadlineMs: number,
    make: () => Promise<T | "made by another">,
  ): Promise<T | Refreshed> {
    if (asked === undefined) return (await make()) as T;
    const name = `${asked.digest} ${asked.userId}`;
    // Equal calls through this process cost one hash together; the index decides between processes.
    for (;;) {
      const before = await earlier(asked, deadlineMs);
      if (before !== undefined) return before;
      const other = underWay.get(name);
      if (other === undefined) break;
      await other.catch(() => {});
    }
    const making = make().catch((error: unknown) => {
      // Perhaps by the very same call.
      if (error instanceof KeyError && error.reason === "KEY_EXISTS") return error;
      throw error;
    });
    underWay.set(name, making);
    const made = await making.finally(() => underWay.delete(name));
    if (!(made instanceof KeyError) && made !== "made by another") return made;
    const meanwhile = await earlier(asked, deadlineMs);
    if (meanwhile !== undefined) return meanwhile;
    throw made instanceof KeyError ? made : new KeyError("CONFLICT", "Try again.", { retryAfterMs: 100 });
  }

  /** Checks that Create and Refresh share. The order of refusals: rights, all fields at once, scope policy. */
  function accept(caller: Caller, input: KeyInput, { scopesNeeded }: { scopesNeeded: boolean }) {
    const userId = ownerFor(caller, input.userId);
    mayDescribe(caller, Object.keys(input.metadata ?? {}));
    const now = clock();
    const { requestId } = input;
    const rules = { userId, scopesNeeded, policy, now };
    const { chosen, lifetimeMs, graceMs } = checked((violations) => checkInput(input, rules, violations));
    mayGrant(caller, chosen.scopes);
    if (requestId !== undefined && requests === undefined) {
      throw new KeyError("REQUEST_ID_UNSUPPORTED", "This service has no request keys: leave request_id out.");
    }

    /** An explicit `expires_at` is kept to the millisecond; everything else is a span from the moment of creation. */
    const endOf = (createdAt: Date, inheritedMs?: number): Date | undefined => {
      if (input.lifetime?.case === "expiresAt") {
        const end = new Date(now.getTime() + lifetimeMs!);
        // Hashing may have waited for its turn.
        if (end <= createdAt) throw invalid([{ field: "expires_at", description: "passed while the key was made" }]);
        return end;
      }
      const spanMs = lifetimeMs ?? inheritedMs ?? Number.POSITIVE_INFINITY;
      const boundedMs = Math.min(spanMs, policy.maxTtlMs ?? Number.POSITIVE_INFINITY);
      if (boundedMs === Number.POSITIVE_INFINITY) return undefined;
      // An inherited lifetime begins anew, and may lead beyond what an answer can hold.
      return new Date(Math.min(createdAt.getTime() + boundedMs, LAST_INSTANT_MS));
    };
    return { userId, now, chosen, graceMs, endOf };
  }

  /** Whether a caller may set metadata of a name. */
  function maySet({ admin }: Caller): (name: string) => boolean {
    return admin ? () => true : (name) => policy.memberMetadata.matches(name);
  }

  function mayDescribe(caller: Caller, names: readonly string[]): void {
    const reserved = names.filter((name) => !maySet(caller)(name));
    if (reserved.length === 0) return;
    throw new KeyError("ADMIN_REQUIRED", `Only an admin may set these metadata: ${inWords(reserved)}.`);
  }

  function mayGrant(caller: Caller, scopes: readonly string[]): void {
    const forbidden = caller.admin ? [] : scopes.filter((scope) => !policy.memberScopes.matches(scope));
    if (forbidden.length === 0) return;
    const { shown, others } = listed(forbidden);
    throw new KeyError("SCOPE_FORBIDDEN", `You may not grant these scopes: ${inWords(forbidden)}. Ask an admin to.`, {
      metadata: { scopes: shown.join(","), ...(others > 0 && { scopes_forbidden: String(forbidden.length) }) },
    });
  }

  return {
    async create(caller, input, deadlineMs) {
      const asked = askedAgain("Create", caller, input);
      return once<Created>(asked, deadlineMs, async () => {
        const { userId, now, chosen, endOf } = accept(caller, input, { scopesNeeded: true });
        // A cheap look before the costly hash; the index still decides.
        refuseIfActive(await store.findCurrent(userId, deadlineMs), now);
        const { key, record } = await mint(userId, asked, deadlineMs);
        const decide: Decide<Created | "made by another"> = (stored, at) => {
          const { current, forgotten, isRepeat } = withoutOldRequest(stored, at);
          if (isRepeat) return { update: [], answer: "made by another" };
          refuseIfActive(current, at);
          refuseIfHeld(stored);
          refuseIfUpdated(stored, asked, at);
          const created = record({ ...chosen, createdAt: at, expiresAt: endOf(at) });
          const update = current.active ? [settled(current.active, at)] : [];
          const answer = { record: created, key };
          const change = changedBy(caller, "Create", userId, at, {
            ...{ update: including(update, forgotten), insert: created, answer },
          });
          // Written as it is, so that a Suspend at the same time, which writes it too, comes before or after.
          const { retiring } = current;
          const isIn = retiring === undefined || change.update.some(({ id }) => id === retiring.id);
          return isIn ? change : { ...change, update: [...change.update, retiring] };
        };
        return store.change(userId, deadlineMs, decide, asked?.digest);
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
      const asked = askedAgain("Refresh", caller, input);
      return once<Refreshed>(asked, deadlineMs, async () => {
        const { userId, chosen, graceMs, endOf } = accept(caller, input, { scopesNeeded: false });
        const { key, record } = await mint(userId, asked, deadlineMs);
        const decide: Decide<Refreshed | "made by another"> = (stored, at) => {
          const { current, forgotten, isRepeat } = withoutOldRequest(stored, at);
          if (isRepeat) return { update: [], answer: "made by another" };
          const { active, retiring } = current;
          if (active?.suspended !== undefined && isLive(active, at)) throw keySuspended();
          refuseIfHeld(stored);
          refuseIfUpdated(stored, asked, at);
          if (chosen.scopes.length === 0 && active === undefined) checked(scopesMissing);
          const endSetAt = active?.endSetAt ?? active?.createdAt;
          const inheritedMs = active?.expiresAt && active.expiresAt.getTime() - endSetAt!.getTime();
          const previous = active && superseded(active, graceMs, at);
          const previousKeyRevoked = previous?.state === "revoked";
          const { updates } = active ?? {};
          const created = record(
            {
              ...{ ...inherited(chosen, active, maySet(caller)), createdAt: at, expiresAt: endOf(at, inheritedMs) },
              ...(updates && { updates }),
            },
            previous && { previousId: previous.id, previousRevoked: previousKeyRevoked },
          );
          // The retiring key first: the index allows one retiring key a user.
          const update = retiring ? [superseded(retiring, 0, at)] : [];
          if (previous) update.push(previous);
          const answer = { record: created, key, previous, previousKeyRevoked };
          return changedBy(caller, "Refresh", userId, at, {
            ...{ update: including(update, forgotten), insert: created, answer },
          });
        };
        return store.change(userId, deadlineMs, decide, asked?.digest);
      });
    },

    async revoke(caller, requestedUserId, ending, deadlineMs) {
      const userId = ownerFor(caller, requestedUserId);
      checked((violations) => {
        checkUserId(userId, violations);
        checkEnding(ending, violations);
      });
      return store.change(userId, deadlineMs, (current, at) => {
        const end = (record: KeyRecord | undefined): KeyRecord | undefined =>
          record && isLive(record, at) ? revoked(record, ending, at) : undefined;
        const ended = (current.surplus ?? []).map(end).filter((record) => record !== undefined);
        const answer: Revoked = { active: end(current.active), retiring: end(current.retiring), surplus: ended };
        const update = [answer.active, answer.retiring, ...ended].filter((record) => record !== undefined);
        if (update.length === 0) throw noKey();
        return changedBy(caller, "Revoke", userId, at, { update, answer }, ending);
      });
    },

    update: (...asked) => update({ store, policy, clock, mayGrant, mayDescribe, maySet }, ...asked),
    suspend: (...asked) => suspend(store, ...asked),
    resume: (...asked) => resume(store, ...asked),
  };
}

/** A request id is one call's, whichever method that was. */
function refuseIfUpdated({ active, retiring }: KeysAtChange, asked: Asked | undefined, now: Date): void {
  const record = [active, retiring].find((one) => one && rememberedUpdate(one, asked?.digest, now) !== undefined);
  if (record !== undefined) throw reused(record.id);
}

function refuseIfActive({ active }: CurrentKeys, now: Date): void {
  if (active === undefined || !isLive(active, now)) return;
  throw new KeyError("KEY_EXISTS", "An active API key already exists. Revoke it first or use refresh.");
}

function inWords(texts: readonly string[]): string {
  const { shown, others } = listed(texts.map((text) => redacted(text.slice(0, 128))));
  return shown.join(", ") + (others === 0 ? "" : ` and ${others} more`);
}

/** The keys of a user as a call with a request id finds them: an old request no longer stands in its way, if that is written. */
function withoutOldRequest({ active, retiring, requested }: KeysAtChange, now: Date) {
  if (requested === undefined) return { current: { active, retiring }, isRepeat: false };
  if (isRemembered(requested, now)) return { current: { active, retiring }, isRepeat: true };
  const forgotten: KeyRecord = { ...requested, request: undefined };
  const renewed = (record: KeyRecord | undefined) => (record?.id === forgotten.id ? forgotten : record);
  return { current: { active: renewed(active), retiring: renewed(retiring) }, forgotten, isRepeat: false };
}

/** `update` with `forgotten` first, unless it is in it already. */
function including(update: KeyRecord[], forgotten: KeyRecord | undefined): KeyRecord[] {
  return forgotten === undefined || update.some(({ id }) => id === forgotten.id) ? update : [forgotten, ...update];
}

/** `record` with what time alone has made of it written down. */
function settled(record: KeyRecord, now: Date): KeyRecord {
  const { state, ...status } = statusAt(record, now);
  return state === "suspended" ? record : { ...record, ...status, state };
}

/** `record` after a Refresh at `now`. */
function superseded(record: KeyRecord, graceMs: number, now: Date): KeyRecord {
  if (!isLive(record, now)) return settled(record, now);
  if (graceMs === 0) return { ...record, state: "revoked", revokedAt: now, ...BY_REFRESH };
  const retiresAtMs = Math.min(now.getTime() + graceMs, record.expiresAt?.getTime() ?? LAST_INSTANT_MS);
  return { ...record, state: "retiring", retiresAt: new Date(retiresAtMs) };
}
