import { type ContextKey, createContextKey, type Interceptor } from "@connectrpc/connect";
import { ApiKeyService } from "#gen/latchkey/v1/api_key_service_pb";
import type { Caller } from "../keys/manage.ts";
import type { Peer } from "../transport/hot-method.ts";
import { type CallLog, type LoggedCall, requestIdFrom } from "./call-log.ts";
import { undecodable } from "./strict-decoding.ts";
import type { Authenticator } from "./tokens.ts";

/** Who calls a management method; set by `authenticate`. */
export const caller: ContextKey<Caller | undefined> = createContextKey<Caller | undefined>(undefined);

/** Who is at the other end of the call's connection; set by the adapter. */
export const peer: ContextKey<Peer | undefined> = createContextKey<Peer | undefined>(undefined);

/** What is logged of a call; handlers add to it. */
export const logged: ContextKey<Pick<LoggedCall, "keyId" | "outcome" | "told">> = createContextKey({});

export interface InterceptorParts {
  calls: CallLog;
  authenticator: Authenticator;
}

/**
 * In the order a request meets them:
 * 1. observe: outermost, so that every answer is counted and logged, refusals included, and each error is mapped once. Of a
 *    stream, its opening and its end.
 * 2. authenticate: before anything is said about the message, so that strangers learn nothing.
 * 3. refuse what could not be decoded.
 */
export function createInterceptors({ calls, authenticator }: InterceptorParts): Interceptor[] {
  return [observe(calls), authenticate(authenticator), refuse];
}

function observe(calls: CallLog): Interceptor {
  return (next) => async (request) => {
    const { contextValues, service, method, header } = request;
    const call: LoggedCall = {
      ...{ service: service.typeName, method: method.name, startedMs: performance.now() },
      requestId: requestIdFrom(header.get("x-request-id")),
    };
    contextValues.set(logged, call);
    if (method.methodKind !== "unary") calls.opened(call);
    try {
      const response = await next(request);
      response.header.set("cache-control", "no-store");
      if (response.stream) return { ...response, message: observed(response.message, call, calls) };
      call.userId = contextValues.get(caller)?.userId;
      if (call.told) return response;
      // Management is rare and matters; Verify and health are asked all the time.
      calls.answered(call, call.userId !== undefined ? "info" : "debug");
      return response;
    } catch (error) {
      call.userId = contextValues.get(caller)?.userId;
      throw calls.refused(call, error);
    }
  };
}

async function* observed<T>(messages: AsyncIterable<T>, call: LoggedCall, calls: CallLog): AsyncGenerator<T> {
  let left = true;
  try {
    yield* messages;
    left = false;
    calls.answered(call, "debug");
  } catch (error) {
    left = false;
    throw calls.refused(call, error);
  } finally {
    if (left) calls.left(call);
  }
}

const { verify, batchVerify, verifyStream, watch } = ApiKeyService.method;
/** Methods for services and gateways. Any other needs a user: one that is added later is closed until it is opened here. */
const OF_SERVICES: ReadonlySet<string> = new Set([verify, batchVerify, verifyStream, watch].map(({ name }) => name));

function authenticate(authenticator: Authenticator): Interceptor {
  return (next) => async (request) => {
    if (request.service.typeName !== ApiKeyService.typeName) return next(request);
    const authorization = request.header.get("authorization");
    const { contextValues } = request;
    if (OF_SERVICES.has(request.method.name)) await authenticator.service(authorization, contextValues.get(peer));
    else contextValues.set(caller, await authenticator.user(authorization));
    return next(request);
  };
}

const refuse: Interceptor = (next) => async (request) => {
  const fault = request.contextValues.get(undecodable);
  if (fault !== undefined) throw fault;
  return next(request);
};
