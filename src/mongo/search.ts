import type { Filter } from "mongodb";
import type { KeyFilter } from "../keys/ports.ts";
import { type KeyState, type RevocationCause, type StoredState, SUPERSEDED } from "../keys/record.ts";
import { readPastedKey } from "../keys/text.ts";
import type { KeyDocument } from "./records.ts";

/** Records that `filter` means at `now`, with greater ids than `after`. */
export function matching(
  { userId, state, prefix, name, revocationCause, metadata = [] }: KeyFilter,
  after: string | undefined,
  now: Date,
) {
  const all: Filter<KeyDocument>[] = [];
  if (userId !== undefined) all.push({ userId });
  if (state !== undefined) all.push(inState(state, now));
  if (prefix !== undefined) all.push(withPrefix(prefix));
  if (name !== undefined) all.push({ name: { $regex: name.replace(/[^\p{L}\p{N}\s]/gu, "\\$&"), $options: "i" } });
  if (revocationCause !== undefined) all.push(byCause(revocationCause, now));
  for (const entry of metadata) all.push({ metadata: entry });
  if (after !== undefined) all.push({ _id: { $gt: after } });
  return all.length === 0 ? {} : { $and: all };
}

function byCause(revocationCause: RevocationCause, now: Date): Filter<KeyDocument> {
  if (revocationCause !== SUPERSEDED) return { revocationCause };
  // From before there were causes, and what time alone has ended.
  return {
    $or: [
      { revocationCause },
      { revocationReason: SUPERSEDED },
      { state: "retiring", retiresAt: { $lte: now }, ...isAhead("expiresAt", now) },
    ],
  };
}

function isAhead(end: "expiresAt" | "retiresAt", now: Date): Filter<KeyDocument> {
  return { $or: [{ [end]: { $exists: false } }, { [end]: { $gt: now } }] };
}

/** As `statusAt` has it. */
function inState(state: KeyState, now: Date): Filter<KeyDocument> {
  const ahead = (end: "expiresAt" | "retiresAt") => isAhead(end, now);
  const running = { suspended: { $exists: false } };
  const isCurrent = { state: { $in: ["active", "retiring"] as StoredState[] } };
  switch (state) {
    case "active":
      return { state, ...running, ...ahead("expiresAt") };
    case "retiring":
      return { state, ...running, $and: [ahead("expiresAt"), ahead("retiresAt")] };
    case "suspended":
      return { ...isCurrent, suspended: { $exists: true }, $and: [ahead("expiresAt"), ahead("retiresAt")] };
    case "expired":
      return { $or: [{ state }, { ...isCurrent, expiresAt: { $lte: now } }] };
    case "revoked":
      return { $or: [{ state }, { state: "retiring", retiresAt: { $lte: now }, ...ahead("expiresAt") }] };
  }
}

/**
 * The text may be the whole prefix of keys, which may hold a `_` itself, or go on with a `_` and the first characters of an
 * id. Of a whole key the secret is left out: the database, which may log what is slow, has no use for it.
 */
function withPrefix(given: string): Filter<KeyDocument> {
  const { text, cut } = readPastedKey(given);
  const splits = [...text.matchAll(/_/g)].map(({ index }) => ({
    prefix: text.slice(0, index),
    // `{` comes right after `z`.
    _id: { $gte: text.slice(index + 1), $lt: `${text.slice(index + 1)}{` },
  }));
  return { $or: [{ prefix: text }, ...splits, ...(cut === undefined ? [] : [{ prefix: cut.prefix, _id: cut.id }])] };
}
