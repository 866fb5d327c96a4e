import { setTimeout as sleep } from "node:timers/promises";
import {
  MongoError,
  MongoErrorLabel,
  MongoNetworkError,
  MongoNotConnectedError,
  MongoServerSelectionError,
  MongoTopologyClosedError,
} from "mongodb";
import { deadlineExceeded, KeyError } from "../keys/errors.ts";
import { isOfSocket } from "../observe/logger.ts";
import { isWaitQueueTimeout, OPERATION_TIMEOUT_MS } from "./connection.ts";
import { hasCode, isOverloaded, serverReason } from "./server-errors.ts";

/** Attempts after the first that the drivers' specification of client backpressure allows by default. */
const MAX_OVERLOADS = 2;

/** As much as a timer holds. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/**
 * Runs `operation`, which changes something; whatever it throws leaves as a KeyError. At the deadline it fails with what `late`
 * returns, though the operation goes on: on a connection that has gone silent nothing but a socket's timeout would end it.
 */
export async function guarded<T>(deadlineMs: number, operation: () => Promise<T>, late?: () => KeyError): Promise<T> {
  return untilDeadline(deadlineMs, operation(), late).catch((error: unknown) => {
    throw toKeyError(error, deadlineMs);
  });
}

/** As `guarded`, for what only reads, and may be tried again where the database has too much to do. */
export async function guardedRead<T>(deadlineMs: number, operation: () => Promise<T>): Promise<T> {
  for (let overloads = 1; ; overloads += 1) {
    try {
      return await untilDeadline(deadlineMs, operation());
    } catch (error) {
      if (!(await isWorthAnother(error, overloads, deadlineMs))) throw toKeyError(error, deadlineMs, "read");
    }
  }
}

async function untilDeadline<T>(
  deadlineMs: number,
  running: Promise<T>,
  late: () => KeyError = deadlineExceeded,
): Promise<T> {
  if (deadlineMs === Number.POSITIVE_INFINITY) return running;
  let timer: NodeJS.Timeout | undefined;
  const passed = new Promise<never>((_, reject) => {
    const leftMs = Math.min(Math.max(0, deadlineMs - performance.now()), MAX_TIMER_MS);
    timer = setTimeout(() => reject(late()), leftMs);
  });
  return Promise.race([running, passed]).finally(() => clearTimeout(timer));
}

/** After a pause, for a database that has too much to do and did nothing: whether it may be asked again. */
export async function isWorthAnother(error: unknown, overloads: number, untilMs: number): Promise<boolean> {
  if (!isOverloaded(error) || overloads > MAX_OVERLOADS) return false;
  const pauseMs = Math.random() * 100 * 2 ** overloads;
  if (performance.now() + pauseMs >= untilMs) return false;
  await sleep(pauseMs);
  return true;
}

export function toKeyError(error: unknown, deadlineMs: number, kind: "change" | "read" = "change"): KeyError {
  if (error instanceof KeyError) return error;
  if (mayBeCommitted(error)) return unavailable(error, "change");
  // Before labels: the driver gives a connection that could not be made, to a server that is gone, those of overload.
  if (isOutOfReach(error)) return unavailable(error, kind);
  if (isOverloaded(error)) return overloaded(error);
  const reason = error instanceof MongoError ? serverReason(error) : undefined;
  if (reason === "CONFLICT") return conflict(error);
  if (hasCode(error, "MaxTimeMSExpired") && performance.now() >= deadlineMs - 5) {
    return new KeyError("DEADLINE_EXCEEDED", "The call's deadline passed while the database worked.", { cause: error });
  }
  if (reason === "DB_UNAVAILABLE") return unavailable(error, kind);
  return new KeyError("DB_ERROR", "The database refused the operation.", { cause: error });
}

/** A failed commit that may have gone through all the same, whatever its last error says of itself. */
export function maybeCommitted(cause: unknown): KeyError {
  return cause instanceof KeyError ? cause : unavailable(cause, "change");
}

function unavailable(cause: unknown, kind: "change" | "read"): KeyError {
  const message = "The database can't be reached at the moment. Try again shortly.";
  return new KeyError("DB_UNAVAILABLE", kind === "read" ? message : `${message} A change may still have been made.`, {
    retryAfterMs: 1_000,
    cause,
  });
}

function overloaded(cause: unknown): KeyError {
  return new KeyError(
    "OVERLOADED",
    "The database has too much to do at the moment, and did nothing of this. Try again shortly.",
    { retryAfterMs: 1_000, cause },
  );
}

function isOutOfReach(error: unknown): boolean {
  return (
    // Where a write fails at once, the driver (7.9) lets out what Node said of the socket.
    isOfSocket(error) ||
    error instanceof MongoNetworkError ||
    error instanceof MongoServerSelectionError ||
    error instanceof MongoNotConnectedError ||
    error instanceof MongoTopologyClosedError ||
    isWaitQueueTimeout(error)
  );
}

function mayBeCommitted(error: unknown): boolean {
  return error instanceof MongoError && error.hasErrorLabel(MongoErrorLabel.UnknownTransactionCommitResult);
}

/** Another change to the same user's keys was faster: WriteConflict, or the unique index. */
export function isConflict(error: unknown): boolean {
  return error instanceof MongoError && serverReason(error) === "CONFLICT";
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
