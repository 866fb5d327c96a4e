import { randomUUID } from "node:crypto";
import { Code, ConnectError } from "@connectrpc/connect";
import { codeName } from "../fastpath/wire-format.ts";
import { CODES, type ErrorReason, type KeyError } from "../keys/errors.ts";
import type { Logger } from "../observe/logger.ts";
import type { Metrics } from "../observe/metrics.ts";
import { asKeyError, toConnectError, tooLate, withReason } from "./errors.ts";

/** One call, as far as the log and the metrics are concerned. */
export interface LoggedCall {
  /** The method's name, such as `Verify`. */
  method: string;
  service: string;
  /** Of `performance.now()`. */
  startedMs: number;
  requestId: string;
  /** A stream's length says nothing of how fast answers are: it is counted apart, from `opened` to its end. */
  streams?: boolean;
  userId?: string | undefined;
  keyId?: string | undefined;
  outcome?: string | undefined;
  /** Its handler has logged its answer. */
  isLogged?: boolean;
  /** Whose keys it was about, where the request did not say. */
  userOfKeys?: string | undefined;
  /** It changed something, and the audit trail has it. */
  changed?: boolean;
}

export interface CallLog {
  /** A stream begins. */
  opened(call: LoggedCall): void;
  /** A stream ended before all was answered. `code`: canonical; default CANCELED, its caller went away. */
  left(call: LoggedCall, code?: number): void;
  answered(call: LoggedCall, level: "debug" | "info"): void;
  /** As `answered` on `debug`, for a method that is called so often that its log line is only made when it is wanted. */
  often(
    service: string,
    method: string,
  ): (startedMs: number, requestId: string | string[] | undefined, outcome: string, keyId: string | undefined) => void;
  /** One answer of Verify among many of a call. */
  itemAnswered(outcome: string): void;
  itemFailed(error: KeyError): void;
  /** Also makes the error that is sent: the one place where a failure is mapped. */
  refused(call: LoggedCall, error: unknown): ConnectError;
  /** A gateway's request was refused because of the gateway itself: that is for operators to read, not for the client. */
  misconfigured(call: LoggedCall, error: KeyError): void;
}

/** Every answer is counted and logged here, whichever path it took. */
export function createCallLog({ log, metrics }: { log: Logger; metrics: Metrics }): CallLog {
  const done = (
    call: LoggedCall,
    code: string,
    fields: object,
    level: "debug" | "info" | "warn" | "error",
    text: string,
  ) => {
    const { service, method, startedMs, requestId, userId, keyId, outcome } = call;
    const durationMs = performance.now() - startedMs;
    if (call.streams) metrics.streamEnded(`${service}/${method}`, code);
    else metrics.rpc(`${service}/${method}`, code, durationMs);
    log[level](
      {
        ...{ event: "rpc", requestId, method, code },
        ...(keyId !== undefined && { keyId }),
        ...(outcome !== undefined && { outcome }),
        ...(userId !== undefined && { userId }),
        ...fields,
        durationMs: Math.round(durationMs * 1_000) / 1_000,
      },
      text,
    );
  };
  // In an outage every call fails alike, thousands a second: one of them a second is logged as an error. So it is with a
  // gateway that is set up wrongly.
  const mayLogOutage = onceASecond();
  const mayLogGateway = onceASecond();
  const isLoggedAsError = (reason: ErrorReason): boolean => reason !== "DB_UNAVAILABLE" || mayLogOutage();
  // Anybody can be refused as often as he likes: the disk is not his to fill.
  const refusals = rationed(REFUSALS_A_SECOND);
  const logRefusal = (call: LoggedCall, code: string, fields: object) => {
    const untold = refusals();
    if (untold === undefined) done(call, code, fields, "debug", "refused");
    else done(call, code, { ...fields, ...(untold > 0 && { untold }) }, "info", "refused");
  };
  const answered: CallLog["answered"] = (call, level) => {
    if (call.outcome !== undefined) metrics.verified(call.outcome);
    done(call, "ok", {}, level, "answered");
  };
  return {
    opened(call) {
      call.streams = true;
      metrics.streamOpened(`${call.service}/${call.method}`);
      log.debug({ event: "stream_opened", requestId: call.requestId, method: call.method }, "stream opened");
    },
    left: (call, code = Code.Canceled) => done(call, codeName(code), {}, "debug", "left"),
    answered,
    often(service, method) {
      const series = metrics.series(`${service}/${method}`, "ok");
      return (startedMs, requestId, outcome, keyId) => {
        if (log.isLevelEnabled("debug")) {
          answered({ service, method, startedMs, requestId: requestIdFrom(requestId), outcome, keyId }, "debug");
          return;
        }
        metrics.verified(outcome);
        series.observe(performance.now() - startedMs);
      };
    },
    itemAnswered: (outcome) => metrics.verified(outcome),
    itemFailed({ reason, cause }) {
      metrics.verified("failed");
      if (isOurs(reason) && isLoggedAsError(reason))
        log.error({ event: "item_failed", reason, err: cause }, "one of many keys could not be verified");
    },
    refused(call, error) {
      if (error instanceof ConnectError) {
        logRefusal(call, codeName(error.code), {});
        return withReason(error);
      }
      const refusal = asKeyError(error);
      const { reason } = refusal;
      const code = codeName(CODES[reason]);
      if (isOurs(reason)) {
        const level = isLoggedAsError(reason) ? "error" : "debug";
        done(call, code, { reason, err: refusal.cause ?? refusal }, level, "refused");
      } else logRefusal(call, code, { reason });
      const mapped = toConnectError(refusal, call.requestId);
      mapped.metadata.set("cache-control", "no-store");
      return mapped;
    },
    misconfigured(call, { reason, message: fault }) {
      const level = mayLogGateway() ? "warn" : "debug";
      done(call, codeName(CODES[reason]), { reason, fault }, level, "a gateway asks in a way that can't be answered");
    },
  };
}

/** Refusals that are logged one by one. */
const REFUSALS_A_SECOND = 100;

/** How many were left out since the last line; undefined: as many as may be a second were logged. */
function rationed(aSecond: number): () => number | undefined {
  let sinceMs = Number.NEGATIVE_INFINITY;
  let lines = 0;
  let untold = 0;
  return () => {
    const nowMs = performance.now();
    if (nowMs - sinceMs >= 1_000) [sinceMs, lines] = [nowMs, 0];
    if (lines >= aSecond) {
      untold += 1;
      return undefined;
    }
    lines += 1;
    const before = untold;
    untold = 0;
    return before;
  };
}

/** True when it was not true within the last second. */
function onceASecond(): () => boolean {
  const next = rationed(1);
  return () => next() !== undefined;
}

/** Nothing that the caller did: the cause belongs in the log. */
function isOurs(reason: ErrorReason): boolean {
  return CODES[reason] === Code.Internal || reason === "DB_UNAVAILABLE";
}

/** The error that the caller has had by now, whatever there is to answer: undefined while there is time. */
export function pastDeadline(startedMs: number, timeoutMs: number | undefined): KeyError | undefined {
  if (timeoutMs === undefined || performance.now() - startedMs < timeoutMs) return undefined;
  return tooLate();
}

/** The caller's id where it is fit for a log, else a new one. Without `_`, it can't be a key. */
export function requestIdFrom(given: string | string[] | null | undefined): string {
  return typeof given === "string" && /^[0-9A-Za-z.-]{8,64}$/.test(given) ? given : randomUUID();
}
