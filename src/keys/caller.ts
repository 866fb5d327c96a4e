import { type AuditEntry, auditedChange, auditedReason, type Origin } from "./audit/entry.ts";
import { KeyError } from "./errors.ts";
import type { Change, KeyStore, KeysAtChange } from "./ports.ts";
import { type Ending, type FieldChange, isLive, type KeyRecord, revoked } from "./record.ts";

/** The caller, as the user token says. */
export interface Caller {
  userId: string;
  admin: boolean;
  /** Where the call came from, for the audit trail. */
  origin?: Origin | undefined;
}

/** Whose key is meant. An empty `user_id` is nobody's: a bad field, not a matter of rights. */
export function ownerFor(caller: Caller, requested: string | undefined): string {
  if (requested === undefined) return caller.userId;
  if (requested !== "" && requested !== caller.userId && !caller.admin) {
    throw new KeyError("ADMIN_REQUIRED", "Only an admin may manage another user's key.");
  }
  return requested;
}

/** `change`, and who made it: nobody in particular where there is no `userId`. `reason`, `cause`: what the caller said of why; `changes`: what became of which field. */
export function changedBy<T>(
  { userId: actor, admin: actorIsAdmin, origin }: Partial<Caller>,
  action: string,
  userId: string,
  at: Date,
  change: Change<T>,
  { reason, cause, changes = [] }: Partial<Ending> & { changes?: readonly FieldChange[] } = {},
): Change<T> {
  const keyIds = [...(change.insert ? [change.insert] : []), ...change.update].map(({ id }) => id);
  const statedReason = auditedReason(reason);
  const audit: AuditEntry = {
    at,
    action,
    result: "changed",
    actor,
    actorIsAdmin,
    userId,
    keyIds,
    origin,
    statedReason,
    cause,
    ...(changes.length > 0 && { changes: changes.map(auditedChange) }),
  };
  return { ...change, audit };
}

/** The keys of a user that have not ended, the active one first. */
export function liveOf({ active, retiring, surplus = [] }: KeysAtChange, now: Date): KeyRecord[] {
  return [active, retiring, ...surplus].filter((record) => record !== undefined && isLive(record, now)) as KeyRecord[];
}

/** Ends a key if it is live when its owner's change is made; answers with the ended one, or with nothing. */
export function endLive(
  store: KeyStore,
  caller: Partial<Caller>,
  action: string,
  { id, userId }: Pick<KeyRecord, "id" | "userId">,
  ending: Ending,
  deadlineMs: number,
): Promise<KeyRecord | undefined> {
  return store.change<KeyRecord | undefined>(userId, deadlineMs, (current, at) => {
    const live = liveOf(current, at).find((record) => record.id === id);
    if (live === undefined) return { update: [], answer: undefined };
    const answer = revoked(live, ending, at);
    return changedBy(caller, action, userId, at, { update: [answer], answer }, ending);
  });
}

export function noKey(): KeyError {
  return new KeyError("NO_KEY", "There is no active API key.");
}
