import { randomUUID } from "node:crypto";
import { Code, ConnectError, type ContextKey, createContextKey, type Interceptor } from "@connectrpc/connect";
import { ApiKeyService } from "#gen/latchkey/v1/api_key_service_pb";
import type { Caller } from "../keys/manage.ts";
import type { Logger, Metrics } from "../telemetry.ts";
import { asKeyError, CODES, toConnectError } from "./error-map.ts";
import { undecodable } from "./strict-decoding.ts";
import type { Authenticator } from "./tokens.ts";

/** Who calls a management method; set by `authenticate`. */
export const caller: ContextKey<Caller | undefined> = createContextKey<Caller | undefined>(undefined);

/** What a handler wants to stand in the log line of its call. */
export const logged: ContextKey<{ keyId?: string; outcome?: string }> = createContextKey({});

export interface InterceptorParts {
  log: Logger;
  metrics: Metrics;
  authenticator: Authenticator;
}

/**
 * In the order a request meets them:
 * 1. observe: outermost, so that every answer is counted and logged, refusals included, and each error is mapped once. Of a
 *    stream, its opening and its end.
 * 2. authenticate: before anything is said about the message, so that strangers learn nothing.
 * 3. refuse what could not be decoded.
 */
export function createInterceptors(parts: InterceptorParts): Interceptor[] {
  return [observe(parts), authenticate(parts.authenticator), refuse];
}

function observe({ log, metrics }: InterceptorParts): Interceptor {
  return (next) => async (request) => {
    const startedMs = performance.now();
    const requestId = requestIdFrom(request.header);
    const method = `${request.service.typeName}/${request.method.name}`;
    const streams = request.method.methodKind !== "unary";
    request.contextValues.set(logged, {});
    const done = (code: string, fields: object, level: "debug" | "info" | "error", text: string) => {
      const durationMs = performance.now() - startedMs;
      // A stream's length says nothing of how fast answers are.
      if (streams) metrics.streamEnded(method, code);
      else metrics.rpc(method, code, durationMs);
      const userId = request.contextValues.get(caller)?.userId;
      log[level](
        {
          ...{ event: "rpc", requestId, method: request.method.name, code, ...request.contextValues.get(logged) },
          ...(userId !== undefined && { userId }),
          ...fields,
          durationMs: Math.round(durationMs * 1_000) / 1_000,
        },
        text,
      );
    };
    const failed = (error: unknown): ConnectError => {
      if (error instanceof ConnectError) {
        done(Code[error.code], {}, "info", "refused");
        return error;
      }
      const refusal = asKeyError(error);
      const internal = CODES[refusal.reason] === Code.Internal || refusal.reason === "DB_UNAVAILABLE";
      const cause = internal ? { err: refusal.cause ?? refusal } : {};
      done(Code[CODES[refusal.reason]], { reason: refusal.reason, ...cause }, internal ? "error" : "info", "refused");
      const mapped = toConnectError(refusal, requestId);
      mapped.metadata.set("cache-control", "no-store");
      return mapped;
    };
    async function* observed<T>(messages: AsyncIterable<T>): AsyncGenerator<T> {
      let left = true;
      try {
        yield* messages;
        left = false;
        done("ok", {}, "debug", "ended");
      } catch (error) {
        left = false;
        throw failed(error);
      } finally {
        if (left) done("canceled", {}, "debug", "left");
      }
    }
    try {
      if (streams) {
        metrics.streamOpened(method);
        log.debug({ event: "stream_opened", requestId, method: request.method.name }, "stream opened");
      }
      const response = await next(request);
      response.header.set("cache-control", "no-store");
      if (response.stream) return { ...response, message: observed(response.message) };
      const { outcome } = request.contextValues.get(logged);
      if (outcome !== undefined) metrics.verified(outcome);
      // Management is rare and matters; Verify and health are asked all the time.
      done("ok", {}, request.contextValues.get(caller) !== undefined ? "info" : "debug", "answered");
      return response;
    } catch (error) {
      throw failed(error);
    }
  };
}

const { verify, batchVerify, verifyStream, watch } = ApiKeyService.method;
/** Anything else needs a user: a method added later is closed until it is opened here. */
const FOR_SERVICES: ReadonlySet<string> = new Set([verify, batchVerify, verifyStream, watch].map(({ name }) => name));

function authenticate(authenticator: Authenticator): Interceptor {
  return (next) => async (request) => {
    if (request.service.typeName !== ApiKeyService.typeName) return next(request);
    const authorization = request.header.get("authorization");
    if (FOR_SERVICES.has(request.method.name)) await authenticator.service(authorization);
    else request.contextValues.set(caller, await authenticator.user(authorization));
    return next(request);
  };
}

const refuse: Interceptor = (next) => async (request) => {
  const fault = request.contextValues.get(undecodable);
  if (fault !== undefined) throw fault;
  return next(request);
};

/** The caller's id where it is fit for a log, else a new one. Without `_`, it can't be a key. */
function requestIdFrom(header: Headers): string {
  const given = header.get("x-request-id");
  return given !== null && /^[0-9A-Za-z.-]{8,64}$/.test(given) ? given : randomUUID();
}
