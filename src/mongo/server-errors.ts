import {
  MongoBulkWriteError,
  type MongoError,
  MongoErrorLabel,
  MongoServerError,
  MongoWriteConcernError,
} from "mongodb";

/**
 * Codes of the server's errors under its own names, by what they become for callers. A code that is not here is a refusal, as
 * those under DB_ERROR are, which have a name since something asks for it.
 */
export const SERVER_CODES = {
  /** Another change to the same user's keys was faster: nothing was written. */
  CONFLICT: { WriteConflict: 112, DuplicateKey: 11000 },
  /** "Not now", in the server's many words: the same call may succeed in a moment. */
  DB_UNAVAILABLE: {
    // Between the members of a cluster, as the server itself tells it.
    ...{ HostUnreachable: 6, HostNotFound: 7, NetworkTimeout: 89, NetworkInterfaceExceededTimeLimit: 202 },
    ...{ ConnectionPoolExpired: 317, ConnectionError: 384, PooledConnectionAcquisitionExceededTimeLimit: 407 },
    ...{ SocketException: 9001, RetriableRemoteCommandFailure: 91331 },
    // No primary, one that steps down or can't prove that it still is one, one that shuts down or starts.
    ...{ PrimarySteppedDown: 189, NotWritablePrimary: 10107, LegacyNotPrimary: 10058, ElectionInProgress: 216 },
    ...{ NotPrimaryNoSecondaryOk: 13435, NotPrimaryOrSecondary: 13436, FailedToSatisfyReadPreference: 133 },
    ...{ LinearizableReadConcernError: 187, ReadConcernMajorityNotAvailableYet: 134, KeyNotFound: 211 },
    ...{ ShutdownInProgress: 91, InterruptedAtShutdown: 11600, InterruptedDueToReplStateChange: 11602 },
    // The time is up, or an operator ended the operation. A write may have been made.
    ...{ MaxTimeMSExpired: 50, WriteConcernTimeout: 64, ExceededTimeLimit: 262, LockTimeout: 24 },
    ...{ Interrupted: 11601, CursorKilled: 237, CursorNotFound: 43, QueryPlanKilled: 175, ClientMarkedKilled: 46841 },
    ...{ InterruptedDueToStorageChange: 355, InterruptedDueToFCVChange: 10045600 },
    // A transaction that the server gave up. In `withTransaction` it is begun anew, while there is time.
    ...{ NoSuchTransaction: 251, TransactionExceededLifetimeLimitSeconds: 290, PreparedTransactionInProgress: 267 },
    ...{ SnapshotTooOld: 239, SnapshotUnavailable: 246 },
    // A sharded cluster that moves what was asked for, or does not know yet where it is.
    ...{ StaleShardVersion: 63, StaleEpoch: 150, StaleDbVersion: 249, StaleChunkHistory: 250, StaleConfig: 13388 },
    ...{ MigrationConflict: 272, InterruptedDueToReshardingCriticalSection: 453, RetryChangeStream: 234 },
    // Too much to do. Where the server says that it did nothing, it says so by its labels: OVERLOADED.
    ...{ TemporarilyUnavailable: 365, ResourceExhausted: 402, AdmissionQueueOverflow: 433, RateLimitExceeded: 449 },
    ...{ PooledConnectionAcquisitionRejected: 450, IngressRequestRateLimitExceeded: 462, TooManyLogicalSessions: 261 },
    // Writes are held up while a cluster is copied.
    ...{ UserWritesBlocked: 371 },
    ...{ ReauthenticationRequired: 391 },
  },
  DB_ERROR: {
    ...{ Unauthorized: 13, AuthenticationFailed: 18, IllegalOperation: 20, AlreadyInitialized: 23 },
    ...{ BadValue: 2, CommandNotSupportedOnView: 166 },
    ...{ NamespaceNotFound: 26, IndexNotFound: 27, NamespaceExists: 48, DocumentValidationFailure: 121 },
    ...{ IndexOptionsConflict: 85, IndexKeySpecsConflict: 86 },
    ...{ UnknownReplWriteConcern: 79, UnsatisfiableWriteConcern: 100 },
    // A change stream's: it can't go on from where it was.
    ...{ CappedPositionLost: 136, InvalidResumeToken: 260, ChangeStreamFatalError: 280, ChangeStreamHistoryLost: 286 },
  },
} as const;

type ServerReason = keyof typeof SERVER_CODES;

const CODES = { ...SERVER_CODES.CONFLICT, ...SERVER_CODES.DB_UNAVAILABLE, ...SERVER_CODES.DB_ERROR };

type ServerCode = keyof typeof CODES;

const REASONS = new Map<unknown, ServerReason>(
  Object.entries(SERVER_CODES).flatMap(([reason, codes]) =>
    Object.values(codes).map((code) => [code, reason as ServerReason] as const),
  ),
);

/**
 * Labels of errors by what they say to callers; undefined: nothing, or nothing that the code does not say as well. They
 * count before codes, but for CONFLICT.
 */
export const LABELS: Record<MongoErrorLabel, "OVERLOADED" | "DB_UNAVAILABLE" | undefined> = {
  // With one of the next two. Alone it does not say that nothing was done.
  SystemOverloadedError: "OVERLOADED",
  // The server did not begin: whatever it was, it may be repeated.
  RetryableError: "DB_UNAVAILABLE",
  // Beside others. Alone it does not say that a repeat would do any better.
  NoWritesPerformed: undefined,
  RetryableWriteError: "DB_UNAVAILABLE",
  // The transaction was not committed, and can be begun anew.
  TransientTransactionError: "DB_UNAVAILABLE",
  // A commit that may have gone through.
  UnknownTransactionCommitResult: "DB_UNAVAILABLE",
  // Connections are made anew, by the driver.
  ResetPool: "DB_UNAVAILABLE",
  PoolRequestedRetry: "DB_UNAVAILABLE",
  InterruptInUseConnections: "DB_UNAVAILABLE",
  // Whatever failed in it: a password too.
  HandshakeError: undefined,
  ResumableChangeStreamError: undefined,
};

export function hasCode(error: unknown, ...names: ServerCode[]): error is MongoServerError {
  return error instanceof MongoServerError && names.some((name) => CODES[name] === error.code);
}

export function isCode(code: unknown, name: ServerCode): boolean {
  return CODES[name] === code;
}

/** The server said that it has too much to do, and that it did nothing: not by what a driver makes of a lost connection. */
export function isOverloaded(error: unknown): error is MongoServerError {
  if (!(error instanceof MongoServerError) || !error.hasErrorLabel(MongoErrorLabel.SystemOverloadedError)) return false;
  // Of these something was done.
  if (error instanceof MongoWriteConcernError || error instanceof MongoBulkWriteError) return false;
  return error.hasErrorLabel(MongoErrorLabel.RetryableError) || error.hasErrorLabel(MongoErrorLabel.NoWritesPerformed);
}

/** The reason that an error of the server becomes; undefined: neither its code nor its labels are known. */
export function serverReason(error: MongoError): ServerReason | undefined {
  const byCode = error instanceof MongoServerError ? REASONS.get(error.code) : undefined;
  if (byCode === "CONFLICT") return byCode;
  const labelled = Object.entries(LABELS).some(
    ([label, reason]) => reason === "DB_UNAVAILABLE" && error.hasErrorLabel(label),
  );
  return labelled ? "DB_UNAVAILABLE" : byCode;
}
