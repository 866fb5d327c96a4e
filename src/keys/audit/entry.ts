import type { ErrorReason } from "../errors.ts";
import { isUserId } from "../policy.ts";
import { type FieldChange, MAX_REASON, type RevocationCause } from "../record.ts";
import { isKeyId, parseAnyKey, redacted } from "../text.ts";

/** Where a call came from, as far as it is known without trusting the caller; what it says of itself is cut and cleaned. */
export interface Origin {
  /** The address at the other end of the connection. */
  peer: string;
  userAgent: string;
  /** Of the header `x-request-id`, or made for the call; the same as in the log. */
  requestId: string;
}

/** `changed`: in one transaction with the change. `answered`: nothing was changed. `denied`: the caller had no right. */
export type AuditResult = "changed" | "answered" | "denied";

/** One act: who did what to which keys, from where. Nothing in it is secret. */
export interface AuditEntry {
  at: Date;
  /** The method, such as `Refresh`. */
  action: string;
  result: AuditResult;
  /** Why it was denied, or what was answered in place of what was asked for. */
  reason?: ErrorReason | undefined;
  /** The caller's id; undefined: a stranger. */
  actor?: string | undefined;
  actorIsAdmin?: boolean | undefined;
  /** Whose keys. */
  userId?: string | undefined;
  keyIds: string[];
  origin?: Origin | undefined;
  /** Why, in the caller's own words. */
  statedReason?: string | undefined;
  /** Of a revocation. */
  cause?: RevocationCause | undefined;
  /** Of an Update. */
  changes?: FieldChange[] | undefined;
  /** Not one entry, but this many that were not written one by one. */
  leftOut?: number | undefined;
}

const MAX_USER_AGENT = 256;

export function cleanUserAgent(text: string): string {
  return redacted(text.slice(0, 4 * MAX_USER_AGENT))
    .replace(/\p{Cc}/gu, " ")
    .slice(0, MAX_USER_AGENT);
}

/** `claimed` where it may be kept: anybody may send anything as a user's id. */
export function auditedUserId(claimed: unknown): string | undefined {
  if (typeof claimed !== "string" || !isUserId(claimed)) return undefined;
  return redacted(claimed);
}

/** Without what people paste into anything. */
export function auditedChange({ field, old, new: next }: FieldChange): FieldChange {
  return { field, old: redacted(old), new: redacted(next) };
}

/** `stated` where a call that revokes was given a reason: cut and cleaned, as it need not have been accepted. */
export function auditedReason(stated: unknown): string | undefined {
  if (typeof stated !== "string" || stated === "") return undefined;
  const cleaned = redacted(stated.slice(0, 4 * MAX_REASON)).replace(/\p{Cc}/gu, " ");
  return [...cleaned].slice(0, MAX_REASON).join("").toWellFormed();
}

/** The id of the key that a call was about, by its id or by the key itself: nothing else of what was sent. */
export function auditedKeyIds({ keyId, key }: { keyId?: unknown; key?: unknown }): string[] {
  const id = typeof keyId === "string" ? keyId : typeof key === "string" ? parseAnyKey(key)?.id : undefined;
  return id !== undefined && isKeyId(id) ? [id] : [];
}
