import { type Caller, changedBy, liveOf, noKey, ownerFor } from "./caller.ts";
import { checked, KeyError } from "./errors.ts";
import { checkReason, checkUserId } from "./policy.ts";
import type { Change, KeyStore, KeysAtChange } from "./ports.ts";
import { isLive, type KeyRecord } from "./record.ts";

/** A user's keys after a change that may have changed nothing. */
export interface Changed {
  active?: KeyRecord | undefined;
  retiring?: KeyRecord | undefined;
  changed: boolean;
}

/** Stops the keys that have not ended. */
export async function suspend(
  store: KeyStore,
  caller: Caller,
  requestedUserId: string | undefined,
  reason: string,
  deadlineMs: number,
): Promise<Changed> {
  const userId = ownerFor(caller, requestedUserId);
  checked((violations) => {
    checkUserId(userId, violations);
    checkReason(reason, violations);
  });
  return store.change(userId, deadlineMs, (current, at) => {
    const suspended = { at, byAdmin: caller.admin, ...(reason !== "" && { reason }) };
    const stopped = (record: KeyRecord): KeyRecord => {
      const stays = record.suspended !== undefined && (record.suspended.byAdmin || !caller.admin);
      return stays ? record : { ...record, suspended };
    };
    const live = liveOf(current, at);
    if (live.length === 0) throw noKey();
    return alter(caller, "Suspend", userId, at, current, live.map(stopped), reason);
  });
}

/** Ends the suspension of these, and of ended keys that keep their user from another one. */
export async function resume(
  store: KeyStore,
  caller: Caller,
  requestedUserId: string | undefined,
  deadlineMs: number,
): Promise<Changed> {
  const userId = ownerFor(caller, requestedUserId);
  checked((violations) => checkUserId(userId, violations));
  return store.change(userId, deadlineMs, (current, at) => {
    const all = [...liveOf(current, at), ...holding(current)];
    if (all.length === 0) throw noKey();
    if (!caller.admin && all.some(({ suspended }) => suspended?.byAdmin))
      throw new KeyError("ADMIN_REQUIRED", "An admin suspended the key: only an admin may resume it.");
    const resumed = all.map((record) => (record.suspended === undefined ? record : withoutSuspension(record)));
    return alter(caller, "Resume", userId, at, current, resumed);
  });
}

/** Keys that keep their user from another one: an admin suspended them, ended as they may be. */
function holding({ active, retiring, held = [] }: KeysAtChange): KeyRecord[] {
  return [...new Map([active, retiring, ...held].map((record) => [record?.id, record])).values()].filter(
    (record) => record?.suspended?.byAdmin,
  ) as KeyRecord[];
}

export function refuseIfHeld(current: KeysAtChange): void {
  if (holding(current).length > 0) throw keySuspended();
}

export function keySuspended(): KeyError {
  return new KeyError(
    "KEY_SUSPENDED",
    "The API key is suspended. Resume it first; an admin must where an admin suspended it.",
  );
}

function withoutSuspension({ suspended: _, ...record }: KeyRecord): KeyRecord {
  return record;
}

/** Writes those of `records` that differ from how they were read; the answer says how the current ones are. */
function alter(
  caller: Caller,
  action: string,
  userId: string,
  at: Date,
  { active, retiring, surplus = [], held = [] }: KeysAtChange,
  records: readonly KeyRecord[],
  reason = "",
): Change<Changed> {
  const read = [active, retiring, ...surplus, ...held];
  const update = [...new Map(records.map((record) => [record.id, record])).values()].filter(
    (record) => !read.includes(record),
  );
  const now = (before: KeyRecord | undefined) =>
    before && isLive(before, at) ? (records.find(({ id }) => id === before.id) ?? before) : undefined;
  const answer = { active: now(active), retiring: now(retiring), changed: update.length > 0 };
  return update.length === 0
    ? { update, answer }
    : changedBy(caller, action, userId, at, { update, answer }, { reason });
}
