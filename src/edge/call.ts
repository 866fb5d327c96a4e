import type { HandlerContext } from "@connectrpc/connect";
import { Consistency, type VerifyRequest } from "#gen/latchkey/v1/api_key_service_pb";
import type { Origin } from "../keys/audit/entry.ts";
import type { Caller } from "../keys/caller.ts";
import { invalid } from "../keys/errors.ts";
import type { VerifyInput } from "../keys/verify/verify.ts";
import { caller, logged, type Noted, origin } from "./connect/interceptors.ts";

// A call as every door needs it: its time, its caller, its line in the log.

/** A call that names no deadline gets this one; none gets more. */
export const MAX_CALL_MS = 10_000;

/** Unset: an empty request. */
export function toVerifyInput(request: VerifyRequest | undefined, timeoutMs: number): VerifyInput {
  const { key = "", requiredScopes = [], consistency = Consistency.UNSPECIFIED } = request ?? {};
  if (Consistency[consistency] === undefined) {
    throw invalid([{ field: "consistency", description: `${consistency} is not a consistency` }]);
  }
  return { key, requiredScopes, strong: consistency === Consistency.STRONG, timeoutMs };
}

export function callerOf(context: HandlerContext): Caller {
  const found = context.values.get(caller);
  if (found === undefined) throw new Error("a management method was reached without a caller");
  return found;
}

/** For methods that anybody may call. */
export function originOf(context: HandlerContext): Origin | undefined {
  return context.values.get(origin);
}

/** The deadline of a call that may take `timeoutMs`, or names no limit. */
export function boundedTimeout(timeoutMs: number | undefined): number {
  return Math.min(timeoutMs ?? MAX_CALL_MS, MAX_CALL_MS);
}

export function timeoutOf(context: HandlerContext): number {
  return boundedTimeout(context.timeoutMs());
}

export function deadlineOf(context: HandlerContext): number {
  return performance.now() + timeoutOf(context);
}

/** For the log and the audit trail. */
export function note(context: HandlerContext, fields: Noted): void {
  Object.assign(context.values.get(logged), fields);
}
