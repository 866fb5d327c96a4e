import { type Caller, changedBy, noKey, ownerFor } from "./caller.ts";
import { checked, type FieldViolation, invalid, KeyError } from "./errors.ts";
import {
  checkMetadata,
  checkMetadataSize,
  fromMetadata,
  isMetadataName,
  metadataName,
  toMetadata,
} from "./metadata.ts";
import {
  checkLifetime,
  checkName,
  checkRequestId,
  checkScopes,
  checkUserId,
  isRequestId,
  isUserId,
  LAST_INSTANT_MS,
  type Lifetime,
  type Policy,
  scopesMissing,
} from "./policy.ts";
import type { Change, KeyStore } from "./ports.ts";
import { FIELDS, type FieldChange, isLive, type KeyRecord } from "./record.ts";
import { isRemembered, reused, sha256 } from "./request-id.ts";
import { keySuspended } from "./suspension.ts";

/** The fields that `paths` name are as they are said here; one that is not said is taken away. */
export interface UpdateInput {
  userId?: string | undefined;
  /** Of a field mask: `name`, `scopes`, `metadata`, `metadata.NAME`, and one of `expires_at` and `ttl`. */
  paths: readonly string[];
  name?: string | undefined;
  scopes: readonly string[];
  metadata: Readonly<Record<string, string>>;
  lifetime?: Lifetime | undefined;
  /** The key must not have changed since it had this. */
  etag?: string | undefined;
  requestId?: string | undefined;
}

export interface Updated {
  record: KeyRecord;
  changed: boolean;
  isRepeat: boolean;
}

/** The manager's parts, and who may do what. */
interface UpdateParts {
  store: KeyStore;
  policy: Policy;
  clock: () => Date;
  mayGrant(caller: Caller, scopes: readonly string[]): void;
  mayDescribe(caller: Caller, names: readonly string[]): void;
  maySet(caller: Caller): (name: string) => boolean;
}

const ENTRY = "metadata.";
const TIMES = ["expires_at", "ttl"];
const MAX_PATHS = 64;
/** Calls that a key remembers. */
const MAX_REMEMBERED = 8;

/** Changes the user's active key; its secret goes on. The order of refusals is that of Create. */
export async function update(
  { store, policy, clock, mayGrant, mayDescribe, maySet }: UpdateParts,
  caller: Caller,
  input: UpdateInput,
  deadlineMs: number,
): Promise<Updated> {
  const { requestId } = input;
  const userId = ownerFor(caller, input.userId);
  const asked = requestId === undefined ? undefined : { id: sha256(requestId), arguments: argumentsOf(input) };
  // A repeat is known before its fields are looked at: they need not be good any more.
  if (asked !== undefined && isUserId(userId) && isRequestId(requestId!)) {
    const { active } = await store.findCurrent(userId, deadlineMs);
    const repeat = active && isLive(active, clock()) ? repeatOf(active, asked, clock()) : undefined;
    if (repeat !== undefined) return repeat;
  }
  if (input.paths.length > MAX_PATHS) {
    const description = `must have at most ${MAX_PATHS} paths, and has ${input.paths.length}`;
    throw invalid([{ field: "update_mask", description }]);
  }
  const { paths } = input;
  const entries = paths.filter((path) => path.startsWith(ENTRY)).map((path) => path.slice(ENTRY.length));
  const isWhole = paths.includes("metadata");
  mayDescribe(caller, isWhole ? Object.keys(input.metadata) : entries);
  const now = clock();
  const { name, scopes, lifetimeMs } = checked((violations) => {
    checkUserId(userId, violations);
    checkRequestId(requestId, violations);
    checkPaths(paths, input.lifetime, violations);
    return checkValues(input, policy, now, violations);
  });
  if (paths.includes("scopes")) mayGrant(caller, scopes);

  return store.change(userId, deadlineMs, ({ active }, at): Change<Updated> => {
    if (active === undefined || !isLive(active, at)) throw noKey();
    const repeat = asked && repeatOf(active, asked, at);
    if (repeat !== undefined) return { update: [], answer: repeat };
    if (active.suspended !== undefined) throw keySuspended();
    if (input.etag !== undefined && input.etag !== etagOf(active)) {
      throw new KeyError(
        "ETAG_MISMATCH",
        "The key is not, or no longer, as it was when it had this etag. Read it again.",
      );
    }
    const next: KeyRecord = { ...active };
    if (paths.includes("name")) next.name = name;
    if (paths.includes("scopes")) next.scopes = scopes;
    if (isWhole || entries.length > 0) next.metadata = metadataAfter(active, input, isWhole, maySet(caller), entries);
    if (paths.some((path) => TIMES.includes(path))) {
      // An instant stays that instant, however long the transaction takes.
      const from = input.lifetime?.case === "expiresAt" ? now : at;
      next.expiresAt = endAfter(active, lifetimeMs === undefined ? undefined : from.getTime() + lifetimeMs, policy);
      next.endSetAt = at;
      if (next.expiresAt !== undefined && next.expiresAt <= at) {
        const field = paths.includes("ttl") ? "ttl" : "expires_at";
        throw invalid([{ field, description: "would have passed already: revoke the key, or refresh it" }]);
      }
    }
    const changes = changesBetween(active, next);
    if (asked !== undefined) {
      const remembered = (active.updates ?? []).filter((one) => isRemembered({ createdAt: one.at }, at));
      next.updates = [...remembered, { ...asked, at }].slice(-MAX_REMEMBERED);
    }
    const answer = { record: next, changed: changes.length > 0, isRepeat: false };
    if (changes.length === 0) return { update: asked === undefined ? [] : [next], answer };
    return changedBy(caller, "Update", userId, at, { update: [next], answer }, { changes });
  });
}

/** The answer of the same call before, if there was one; REQUEST_ID_REUSED where there was another with its id. */
function repeatOf(active: KeyRecord, asked: { id: string; arguments: string }, now: Date): Updated | undefined {
  const before = rememberedUpdate(active, asked.id, now);
  const isMaking = active.request?.id === asked.id && isRemembered(active, now);
  if (before === undefined && !isMaking) return undefined;
  if (before?.arguments !== asked.arguments) throw reused(active.id);
  return { record: active, changed: false, isRepeat: true };
}

export function rememberedUpdate(
  { updates = [] }: KeyRecord,
  id: string | undefined,
  now: Date,
): NonNullable<KeyRecord["updates"]>[number] | undefined {
  return id === undefined
    ? undefined
    : updates.find((one) => one.id === id && isRemembered({ createdAt: one.at }, now));
}

/** Equal for as long as what Get shows of the key is the same; 22 characters. */
export function etagOf(record: KeyRecord): string {
  const shown = (Object.keys(FIELDS) as (keyof KeyRecord)[]).filter((name) => !FIELDS[name].isInternal).sort();
  const text = JSON.stringify(shown.map((name) => record[name] ?? null));
  return sha256(text).slice(0, 22);
}

function checkPaths(paths: readonly string[], lifetime: Lifetime | undefined, violations: FieldViolation[]): void {
  const report = (description: string) => violations.push({ field: "update_mask", description });
  if (paths.length === 0) report("must name at least one field: nothing would change");
  for (const [index, path] of paths.entries()) {
    const shown = JSON.stringify(path.slice(0, 80));
    const isKnown = ["name", "scopes", "metadata", ...TIMES].includes(path);
    const isEntry = path.startsWith(ENTRY) && isMetadataName(path.slice(ENTRY.length));
    if (!isKnown && !isEntry) report(`${shown} is not a field that can be changed`);
    else if (paths.indexOf(path) < index) report(`${shown} stands twice`);
    else if (isEntry && paths.includes("metadata")) report(`${shown} is a part of "metadata"`);
  }
  const times = TIMES.filter((path) => paths.includes(path));
  const given = lifetime === undefined ? undefined : lifetime.case === "ttl" ? "ttl" : "expires_at";
  if (times.length === 2) report('takes only one of "expires_at" and "ttl"');
  else if (times.length === 1 && given !== undefined && given !== times[0])
    report(`names "${times[0]}", and ${given} is given`);
}

/** Only of the fields that are named. */
function checkValues(input: UpdateInput, policy: Policy, now: Date, violations: FieldViolation[]) {
  const { paths, metadata } = input;
  const named = paths.includes("metadata")
    ? metadata
    : Object.fromEntries(Object.entries(metadata).filter(([name]) => paths.includes(ENTRY + name)));
  checkMetadata(named, violations);
  checkMetadataSize(toMetadata(named), violations);
  const scopes = paths.includes("scopes") ? checkScopes(input.scopes, policy, violations) : [];
  if (paths.includes("scopes") && scopes.length === 0) scopesMissing(violations);
  const isTimed = paths.some((path) => TIMES.includes(path));
  // The longest lifetime counts from the key's making, which is not known yet.
  const { maxTtlMs: _, ...withoutMaximum } = policy;
  return {
    scopes,
    name: paths.includes("name") ? checkName(input.name, violations) : undefined,
    lifetimeMs: isTimed ? checkLifetime(input.lifetime, withoutMaximum, now, violations) : undefined,
  };
}

function metadataAfter(
  { metadata: before = [] }: KeyRecord,
  { metadata }: UpdateInput,
  isWhole: boolean,
  maySet: (name: string) => boolean,
  entries: readonly string[],
): string[] | undefined {
  const stays = (entry: string) => (isWhole ? !maySet(metadataName(entry)) : !entries.includes(metadataName(entry)));
  const given = Object.entries(metadata).filter(([name]) => isWhole || entries.includes(name));
  const all = [...before.filter(stays), ...toMetadata(Object.fromEntries(given))].sort();
  checked((violations) => checkMetadataSize(all, violations));
  return all.length === 0 ? undefined : all;
}

/** No secret lives longer than a new one could. `endMs`: undefined where none was asked for. */
function endAfter({ createdAt }: KeyRecord, endMs: number | undefined, { maxTtlMs }: Policy): Date | undefined {
  const latestMs = maxTtlMs === undefined ? undefined : Math.min(createdAt.getTime() + maxTtlMs, LAST_INSTANT_MS);
  if (endMs === undefined) return latestMs === undefined ? undefined : new Date(latestMs);
  if (latestMs !== undefined && endMs > latestMs) {
    const description = `must not be later than ${new Date(latestMs).toISOString()}: ${maxTtlMs! / 1_000} s after the key was made`;
    throw invalid([{ field: "expires_at", description }]);
  }
  return new Date(Math.min(endMs, LAST_INSTANT_MS));
}

const TEXTS = { name: "name", scopes: "scopes", expiresAt: "expires_at" } as const;

/** Fields as people read them; none that is absent. */
function textsOf(record: KeyRecord): Map<string, string> {
  const texts = new Map<string, string>();
  for (const [name, field] of Object.entries(TEXTS)) {
    const value = record[name as keyof typeof TEXTS];
    if (value === undefined) continue;
    texts.set(field, value instanceof Date ? value.toISOString() : typeof value === "string" ? value : value.join(" "));
  }
  for (const [name, value] of Object.entries(fromMetadata(record.metadata ?? []))) texts.set(ENTRY + name, value);
  return texts;
}

function changesBetween(before: KeyRecord, after: KeyRecord): FieldChange[] {
  const [old, now] = [textsOf(before), textsOf(after)];
  return [...new Set([...old.keys(), ...now.keys()])]
    .filter((field) => old.get(field) !== now.get(field))
    .map((field) => ({ field, old: old.get(field) ?? "", new: now.get(field) ?? "" }));
}

/** Equal for calls that ask for the same. */
function argumentsOf({ paths, name, scopes, metadata, lifetime, etag }: UpdateInput): string {
  const time = lifetime && [lifetime.case, String(lifetime.value.seconds), lifetime.value.nanos];
  return sha256(JSON.stringify(["Update", [...paths].sort(), name, scopes, toMetadata(metadata), time, etag]));
}
