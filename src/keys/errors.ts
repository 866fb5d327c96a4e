import { redacted } from "./text.ts";

/** Numbers of google.rpc.Code. */
const Code = {
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  UNAUTHENTICATED: 16,
} as const;

/** The words of `ErrorReason` in the proto, where each is documented, and their canonical codes. */
export const CODES = {
  UNAUTHENTICATED: Code.UNAUTHENTICATED,
  API_KEY_NOT_ALLOWED: Code.PERMISSION_DENIED,
  SCOPE_FORBIDDEN: Code.PERMISSION_DENIED,
  ADMIN_REQUIRED: Code.PERMISSION_DENIED,
  INVALID_ARGUMENT: Code.INVALID_ARGUMENT,
  CONFLICT: Code.ABORTED,
  KEY_EXISTS: Code.ALREADY_EXISTS,
  NO_KEY: Code.NOT_FOUND,
  KEY_NOT_FOUND: Code.NOT_FOUND,
  REQUEST_ID_REUSED: Code.ALREADY_EXISTS,
  REQUEST_ID_UNSUPPORTED: Code.FAILED_PRECONDITION,
  OVERLOADED: Code.RESOURCE_EXHAUSTED,
  KEY_SET_UNAVAILABLE: Code.UNAVAILABLE,
  DB_UNAVAILABLE: Code.UNAVAILABLE,
  DB_INCOMPLETE: Code.UNAVAILABLE,
  DB_ERROR: Code.INTERNAL,
  INTERNAL_ERROR: Code.INTERNAL,
  DEADLINE_EXCEEDED: Code.DEADLINE_EXCEEDED,
  ANSWER_TOO_LARGE: Code.RESOURCE_EXHAUSTED,
  STOPPING: Code.UNAVAILABLE,
  MESSAGE_TOO_LARGE: Code.RESOURCE_EXHAUSTED,
  UNIMPLEMENTED: Code.UNIMPLEMENTED,
  ETAG_MISMATCH: Code.ABORTED,
  KEY_SUSPENDED: Code.FAILED_PRECONDITION,
  UNKNOWN_SERVICE: Code.NOT_FOUND,
} as const;

export type ErrorReason = keyof typeof CODES;

export interface FieldViolation {
  /** The field's name in the proto, for example `scopes[3]`. */
  field: string;
  /** A sentence about it. Never the value of a secret field. */
  description: string;
}

interface KeyErrorDetails {
  violations?: FieldViolation[];
  metadata?: Record<string, string>;
  /** Present: the same call may be repeated after this time. Absent: it must not be. */
  retryAfterMs?: number;
  /** For the log only; never sent. */
  cause?: unknown;
}

/** An answer that is a refusal. `message` is read by callers; `cause` only by the log. */
export class KeyError extends Error {
  override readonly name = "KeyError";
  readonly violations: FieldViolation[];
  readonly metadata: Record<string, string>;
  readonly retryAfterMs: number | undefined;

  constructor(
    readonly reason: ErrorReason,
    message: string,
    details: KeyErrorDetails = {},
  ) {
    super(message, { cause: details.cause });
    this.violations = details.violations ?? [];
    this.metadata = details.metadata ?? {};
    this.retryAfterMs = details.retryAfterMs;
  }
}

/** The value of `check`; INVALID_ARGUMENT with all that it reported, if it reported anything. */
export function checked<T>(check: (violations: FieldViolation[]) => T): T {
  const violations: FieldViolation[] = [];
  const result = check(violations);
  if (violations.length > 0) throw invalid(violations);
  return result;
}

/** Of what is wrong with a call, no more is listed one by one: clients take 8 KiB of metadata, and everything stands there twice. */
const MAX_LISTED = 10;

/** Of one field; what comes after it is left out. */
const MAX_DESCRIPTION = 240;

function clipped(description: string): string {
  return description.length <= MAX_DESCRIPTION
    ? description
    : `${description.slice(0, MAX_DESCRIPTION)} …`.toWellFormed();
}

/** Each field once, `MAX_LISTED` of them; of more, the message and `metadata.violations` tell how many there were. */
export function invalid(violations: FieldViolation[]): KeyError {
  const byField = new Map<string, string>();
  for (const { field, description } of violations) {
    const before = byField.get(field);
    byField.set(field, clipped(before === undefined ? description : `${before}; ${description}`));
  }
  const { shown, others } = listed(
    [...byField].map(([field, description]) => ({ field: redacted(field), description: redacted(description) })),
  );
  const fieldsOf = new Map<string, string[]>();
  for (const { field, description } of shown) {
    fieldsOf.set(description, [...(fieldsOf.get(description) ?? []), field]);
  }
  const parts = [...fieldsOf].map(([description, fields]) => `${fields.join(", ")}: ${description}`);
  const details = others === 0 ? {} : { metadata: { violations: String(byField.size) } };
  const message = parts.join("; ") + (others === 0 ? "" : `; and ${others} more`);
  return new KeyError("INVALID_ARGUMENT", message, { violations: shown, ...details });
}

/** The first `MAX_LISTED`, and how many there are beside them. */
export function listed<T>(all: readonly T[]): { shown: T[]; others: number } {
  return { shown: all.slice(0, MAX_LISTED), others: Math.max(0, all.length - MAX_LISTED) };
}

export function deadlineExceeded(): KeyError {
  return new KeyError(
    "DEADLINE_EXCEEDED",
    "The call's deadline passed before the change was made. Nothing was written.",
  );
}
