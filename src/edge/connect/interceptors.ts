import { type ContextKey, createContextKey, type Interceptor } from "@connectrpc/connect";
import { AdminService } from "#gen/latchkey/v1/admin_service_pb";
import { ApiKeyService } from "#gen/latchkey/v1/api_key_service_pb";
import type { Peer } from "../../fastpath/fast-method.ts";
import { auditedKeyIds, auditedReason, auditedUserId, cleanUserAgent, type Origin } from "../../keys/audit/entry.ts";
import type { AuditLog } from "../../keys/audit/log.ts";
import type { Caller } from "../../keys/caller.ts";
import { type ErrorReason, KeyError } from "../../keys/errors.ts";
import { type CallLog, type LoggedCall, requestIdFrom } from "../call-log.ts";
import type { Authenticator } from "../tokens.ts";
import { undecodable } from "./strict-decoding.ts";

/** The caller of a management method; set by `authenticate`. */
export const caller: ContextKey<Caller | undefined> = createContextKey<Caller | undefined>(undefined);

/** Where a call about keys came from; set by `audited`. */
export const origin: ContextKey<Origin | undefined> = createContextKey<Origin | undefined>(undefined);

/** The address at the other end of the call's connection; set by the adapter. */
export const peerAddress: ContextKey<string> = createContextKey("");

/** The other end of the call's connection; set by the adapter. */
export const peer: ContextKey<Peer | undefined> = createContextKey<Peer | undefined>(undefined);

export type Noted = Pick<LoggedCall, "keyId" | "outcome" | "isLogged" | "userOfKeys" | "changed">;

/** The call as it is logged; handlers add to it. */
export const logged: ContextKey<Noted> = createContextKey({});

interface InterceptorParts {
  calls: CallLog;
  authenticator: Authenticator;
  audit: Pick<AuditLog, "note">;
  clock: () => Date;
}

/**
 * In the order a request meets them:
 * 1. observe: outermost, so that every answer is counted and logged, refusals included, and each error is mapped once. Of a
 *    stream, its opening and its end.
 * 2. audit: what was denied, and what was looked at by who does not own it. Changes are recorded where they are made.
 * 3. authenticate: before anything is said about the message, so that strangers learn nothing.
 * 4. refuse what could not be decoded.
 */
export function createInterceptors({ calls, authenticator, audit, clock }: InterceptorParts): Interceptor[] {
  return [observe(calls), audited(audit, clock), authenticate(authenticator), refuse];
}

function observe(calls: CallLog): Interceptor {
  return (next) => async (request) => {
    const { contextValues, service, method, header } = request;
    const call: LoggedCall = {
      ...{ service: service.typeName, method: method.name, startedMs: performance.now() },
      requestId: requestIdFrom(mayHoldRepeatId(request) ? null : header.get("x-request-id")),
    };
    contextValues.set(logged, call);
    if (method.methodKind !== "unary") calls.opened(call);
    try {
      const response = await next(request);
      response.header.set("cache-control", "no-store");
      if (response.stream) return { ...response, message: observed(response.message, call, calls) };
      call.userId = contextValues.get(caller)?.userId;
      if (call.isLogged) return response;
      // Management is rare and matters; Verify and health are asked all the time.
      calls.answered(call, call.userId !== undefined || call.changed ? "info" : "debug");
      return response;
    } catch (error) {
      call.userId = contextValues.get(caller)?.userId;
      throw calls.refused(call, error);
    }
  };
}

/**
 * A secret is derived from the `request_id` of a message: some send the same as `x-request-id`, and no log may hold it. What
 * can't be decoded may have one that is good once the rest is mended.
 */
function mayHoldRepeatId({ stream, message, header, contextValues }: Parameters<ReturnType<Interceptor>>[0]): boolean {
  if (stream) return false;
  const { requestId } = message as { requestId?: unknown };
  return contextValues.get(undecodable) !== undefined || header.get("x-request-id") === requestId;
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

const DENIALS: ReadonlySet<ErrorReason> = new Set([
  "UNAUTHENTICATED",
  "API_KEY_NOT_ALLOWED",
  "SCOPE_FORBIDDEN",
  "ADMIN_REQUIRED",
]);

/** Where an admin looks for keys and there is nothing to see, that is an answer too. */
const ANSWERS: ReadonlySet<ErrorReason> = new Set(["KEY_NOT_FOUND", "NO_KEY", "KEY_EXISTS", "REQUEST_ID_REUSED"]);

function audited({ note }: Pick<AuditLog, "note">, clock: () => Date): Interceptor {
  return (next) => async (request) => {
    if (!manages(request) && !isOpen(request)) return next(request);
    const { contextValues, method, header } = request;
    const call = contextValues.get(logged) as LoggedCall;
    const from: Origin = {
      peer: contextValues.get(peerAddress),
      userAgent: cleanUserAgent(header.get("user-agent") ?? ""),
      requestId: call.requestId,
    };
    contextValues.set(origin, from);
    const entry = () => {
      const who = contextValues.get(caller);
      const asked = request.message as { userId?: unknown; keyId?: unknown; key?: unknown; reason?: unknown };
      const implied = request.service.typeName === ApiKeyService.typeName ? who?.userId : undefined;
      return {
        ...{ at: clock(), action: method.name, actor: who?.userId, actorIsAdmin: who?.admin, origin: from },
        // Reading the trail is looking at nobody's keys, and readers must not find themselves in what they read about others.
        userId:
          method.name === listAudit.name ? undefined : (call.userOfKeys ?? auditedUserId(asked.userId) ?? implied),
        keyIds: method.name === listAudit.name ? [] : auditedKeyIds({ ...asked, ...call }),
        // Strangers have the disk to fill.
        statedReason: who === undefined ? undefined : auditedReason(asked.reason),
      };
    };
    try {
      const response = await next(request);
      const seen = entry();
      const isOwnRead = method.name === get.name && seen.userId === seen.actor;
      if (!call.changed && !isOwnRead) note({ ...seen, result: "answered" });
      return response;
    } catch (error) {
      if (!(error instanceof KeyError)) throw error;
      const { reason } = error;
      const seen = entry();
      const isOfOthers =
        isOpen(request) || request.service.typeName === AdminService.typeName || seen.userId !== seen.actor;
      if (DENIALS.has(reason)) note({ ...seen, result: "denied", reason });
      else if (ANSWERS.has(reason) && isOfOthers) note({ ...seen, result: "answered", reason });
      throw error;
    }
  };
}

const { listAudit } = AdminService.method;
const { get, revokeByPresentedKey, verify, batchVerify, verifyStream, watch } = ApiKeyService.method;
/** Methods for services and gateways. Any other needs a user: one that is added later is closed until it is opened here. */
const OF_SERVICES: ReadonlySet<string> = new Set([verify, batchVerify, verifyStream, watch].map(({ name }) => name));

type AnyRequest = Parameters<ReturnType<Interceptor>>[0];

/** Whether a call needs no caller: the key that it presents is its own proof. */
function isOpen({ service, method }: AnyRequest): boolean {
  return service.typeName === ApiKeyService.typeName && method.name === revokeByPresentedKey.name;
}

/** Whether a call is a user's, about keys, and not only about what one of them may do. */
function manages(request: AnyRequest): boolean {
  const { service, method } = request;
  if (service.typeName === AdminService.typeName) return true;
  return service.typeName === ApiKeyService.typeName && !OF_SERVICES.has(method.name) && !isOpen(request);
}

function authenticate(authenticator: Authenticator): Interceptor {
  return (next) => async (request) => {
    const { contextValues, header, service } = request;
    const authorization = header.get("authorization");
    if (manages(request)) {
      const who = await authenticator.user(authorization);
      contextValues.set(caller, { ...who, origin: contextValues.get(origin) });
      if (service.typeName === AdminService.typeName && !who.admin)
        throw new KeyError("ADMIN_REQUIRED", "Only an admin may call AdminService.");
    } else if (service.typeName === ApiKeyService.typeName && !isOpen(request)) {
      await authenticator.service(authorization, contextValues.get(peer));
    }
    return next(request);
  };
}

const refuse: Interceptor = (next) => async (request) => {
  const fault = request.contextValues.get(undecodable);
  if (fault !== undefined) throw fault;
  return next(request);
};
