import {
  MongoError,
  MongoErrorLabel,
  MongoNetworkError,
  MongoNotConnectedError,
  MongoServerError,
  MongoServerSelectionError,
  MongoTopologyClosedError,
} from "mongodb";
import { deadlineExceeded, KeyError } from "../keys/errors.ts";
import { OPERATION_TIMEOUT_MS } from "./connection.ts";
import { hasCode } from "./schema.ts";

/** Runs `operation`; whatever it throws leaves as a KeyError. */
export async function guarded<T>(deadlineMs: number, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation();
  } catch (error) {
    throw toKeyError(error, deadlineMs);
  }
}

export function toKeyError(error: unknown, deadlineMs: number): KeyError {
  if (error instanceof KeyError) return error;
  if (isConflict(error)) return conflict(error);
  if (hasCode(error, MAX_TIME_EXPIRED) && !mayBeCommitted(error) && performance.now() >= deadlineMs - 5) {
    return new KeyError("DEADLINE_EXCEEDED", "The call's deadline passed while the database worked.", { cause: error });
  }
  if (isUnavailable(error)) {
    return new KeyError(
      "DB_UNAVAILABLE",
      "The database can't be reached at the moment. Try again shortly. A change may still have been made.",
      { retryAfterMs: 1_000, cause: error },
    );
  }
  return new KeyError("DB_ERROR", "The database refused the operation.", { cause: error });
}

const MAX_TIME_EXPIRED = 50;

/** The server's own words for "not now": no primary, stepping down, shutting down, interrupted by that, time is up. */
const UNAVAILABLE_CODES = new Set([
  6,
  7,
  MAX_TIME_EXPIRED,
  64,
  89,
  91,
  189,
  262,
  9001,
  10107,
  11600,
  11602,
  13435,
  13436,
  317,
  134,
]);

function isUnavailable(error: unknown): boolean {
  return (
    // Where a write fails at once, the driver (7.9) lets out what the system said of the connection.
    (error as Partial<NodeJS.ErrnoException> | undefined)?.syscall !== undefined ||
    error instanceof MongoNetworkError ||
    error instanceof MongoServerSelectionError ||
    error instanceof MongoNotConnectedError ||
    error instanceof MongoTopologyClosedError ||
    (error instanceof MongoError && error.name === "MongoWaitQueueTimeoutError") ||
    (error instanceof MongoServerError && typeof error.code === "number" && UNAVAILABLE_CODES.has(error.code)) ||
    (error instanceof MongoError && error.hasErrorLabel(MongoErrorLabel.RetryableWriteError)) ||
    mayBeCommitted(error)
  );
}

function mayBeCommitted(error: unknown): boolean {
  return error instanceof MongoError && error.hasErrorLabel(MongoErrorLabel.UnknownTransactionCommitResult);
}

/** Another change to the same user's keys was faster: WriteConflict, or the unique index. */
export function isConflict(error: unknown): boolean {
  return hasCode(error, 112) || hasCode(error, 11000);
}

export function conflict(cause: unknown): KeyError {
  return new KeyError(
    "CONFLICT",
    "Other changes to this user's key kept coming between. Nothing was written. Try again.",
    {
      retryAfterMs: 100,
      cause,
    },
  );
}

export function remainingMs(deadlineMs: number): number {
  const leftMs = Math.floor(deadlineMs - performance.now());
  if (leftMs < 1) throw deadlineExceeded();
  return Math.min(leftMs, OPERATION_TIMEOUT_MS);
}
