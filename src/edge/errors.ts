import { create, toBinary, toJson } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "#gen/google/rpc/error_details_pb";
import type { TransportRefusals, WireError } from "../fastpath/fast-method.ts";
import { CODES, KeyError } from "../keys/errors.ts";

const ERROR_DOMAIN = "latchkey.v1";

/**
 * Characters of a message. It stands in an answer twice, and where a client's limit for metadata is passed (8 KiB in Java),
 * the whole error is lost: all that an error says must stay within 6 KiB.
 */
const MAX_MESSAGE = 600;
const CUT = "...";

/** The one place where a refusal becomes an RPC error. Of INTERNAL errors only an id is sent; the cause is in the log under it. */
export function toConnectError(error: KeyError, errorId: string): ConnectError {
  const code: Code = CODES[error.reason];
  const metadata = code === Code.Internal ? { ...error.metadata, error_id: errorId } : error.metadata;
  const message = code === Code.Internal ? `${error.message} The cause is in the log under ${errorId}.` : error.message;
  const connectError = new ConnectError(shortened(message), code, undefined, [
    { desc: ErrorInfoSchema, value: { reason: error.reason, domain: ERROR_DOMAIN, metadata } },
  ]);
  if (error.violations.length > 0) {
    connectError.details.push({ desc: BadRequestSchema, value: { fieldViolations: error.violations } });
  }
  if (error.retryAfterMs !== undefined) {
    connectError.details.push({ desc: RetryInfoSchema, value: { retryDelay: durationFromMs(error.retryAfterMs) } });
  }
  return connectError;
}

function shortened(message: string): string {
  return message.length <= MAX_MESSAGE
    ? message
    : message
        .slice(0, MAX_MESSAGE - CUT.length)
        .toWellFormed()
        .replace(/\ufffd$/, "") + CUT;
}

/** The failure as a KeyError: anything that is not one is a defect. Connect's own errors pass through the caller. */
export function asKeyError(error: unknown): KeyError {
  if (error instanceof KeyError) return error;
  return new KeyError("INTERNAL_ERROR", "Something went wrong inside the service.", { cause: error });
}

/** The same error for the transport's fast path. */
export function toWireError({ code, rawMessage: message, details }: ConnectError): WireError {
  return {
    ...{ code, message },
    details: details.flatMap((detail) => {
      if (!("desc" in detail)) return [];
      const value = create(detail.desc, detail.value);
      return [{ type: detail.desc.typeName, value: toBinary(detail.desc, value), debug: toJson(detail.desc, value) }];
    }),
  };
}

/** Another process is there at once, or this one's successor soon. */
const MOVE_ON_MS = 100;

/** The end of a stream whose process stops. */
export function stopping(message: string = "The service is stopping. Open the stream again."): KeyError {
  return new KeyError("STOPPING", message, { retryAfterMs: MOVE_ON_MS });
}

/** Connect's own DEADLINE_EXCEEDED, with the reason that every other has. */
export function withReason(error: ConnectError): ConnectError {
  if (error.code !== Code.DeadlineExceeded || error.details.length > 0) return error;
  return toConnectError(tooLate(), "");
}

/** The caller has had no answer, and may ask again or not. */
export function tooLate(): KeyError {
  return new KeyError("DEADLINE_EXCEEDED", "The call's deadline passed before there was an answer.");
}

/** Errors that the server sends by itself. */
export const TRANSPORT_REFUSALS: TransportRefusals = {
  timedOut: toWireError(toConnectError(tooLate(), "")),
  stopping: toWireError(toConnectError(stopping(), "")),
  tooManyCalls: toWireError(toConnectError(tooMany("calls at once on this connection"), "")),
  tooManyBytes: toWireError(toConnectError(tooMany("large requests at once"), "")),
};

export function tooMany(what: string): KeyError {
  const message = `There are too many ${what}. Nothing was done; ask again.`;
  return new KeyError("OVERLOADED", message, { retryAfterMs: 1_000 });
}
