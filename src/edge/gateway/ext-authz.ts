import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  Authorization,
  type CheckRequest,
  CheckRequestSchema,
  type CheckResponse,
  CheckResponseSchema,
} from "#gen/envoy/service/auth/v3/external_auth_pb";
import type { FastAnswer, FastCall, FastMethod, Peer } from "../../fastpath/fast-method.ts";
import { createCheckReader, createCheckWriter } from "../codec/check.ts";
import { logged, peer } from "../connect/interceptors.ts";
import { arrived } from "../connect/strict-decoding.ts";
import { createDecide, type Decision, type GatewayParts, TOO_LARGE, TOO_MANY } from "./decide.ts";
import type { KeySources, Presented } from "./presented-key.ts";

const { typeName: service } = Authorization;
const method = Authorization.method.check.name;

/** Headers may take what Envoy lets them, and a body what `with_request_body` does; more than this is refused. */
export const MAX_CHECK_BYTES = 1024 * 1024;

interface ExtAuthz {
  /** Check without Connect, in protobuf. */
  fast: FastMethod;
  /** Check for whatever the fast path leaves: JSON, compression, GET. The same answers. */
  service: ServiceImpl<typeof Authorization>;
}

/**
 * Envoy's question about a request. Every refusal is an answer: errors are what `failure_mode_allow` lets pass. Of at most
 * `maxKept` keys the answer is kept.
 */
export function createExtAuthz(sources: KeySources, maxKept: number, parts: GatewayParts): ExtAuthz {
  const reader = createCheckReader(sources);
  const writer = createCheckWriter(sources, maxKept);
  const decide = createDecide(sources, parts, service, method);
  const count = parts.calls.often(service, method);

  const encoded = (decision: Decision, presented: Presented): Buffer =>
    decision.allowed ? writer.allowed(decision.entry, presented) : writer.denied(decision);

  const check = (message: Buffer, { headers, peer, timeoutMs }: Asked): Buffer | Promise<Buffer> => {
    const { presented, requiredScopes } = reader.read(message);
    const { authorization: gatewayToken, "x-request-id": requestId } = headers;
    const decision = decide({ presented, requiredScopes, gatewayToken, peer, timeoutMs, requestId });
    return decision instanceof Promise
      ? decision.then((late) => encoded(late, presented))
      : encoded(decision, presented);
  };

  const answer = (call: FastCall): FastAnswer | Promise<FastAnswer> | undefined => {
    if (call.json) return undefined;
    const bytes = check(call.message, call);
    return bytes instanceof Promise ? bytes.then((late) => ({ message: late })) : { message: bytes };
  };

  return {
    fast: {
      path: `/${service}/${method}`,
      maxMessageBytes: MAX_CHECK_BYTES,
      answer,
    },
    service: {
      async check(request: CheckRequest, context: HandlerContext): Promise<CheckResponse> {
        context.values.get(logged).isLogged = true;
        const came = context.values.get(arrived);
        const authorization = context.requestHeader.get("authorization") ?? undefined;
        const requestId = context.requestHeader.get("x-request-id") ?? undefined;
        if (came === "too large") {
          count(performance.now(), requestId, "too_large", undefined);
          return decoded(writer.denied(TOO_LARGE));
        }
        if (came === "too many") {
          count(performance.now(), requestId, "failed", undefined);
          return decoded(writer.denied(TOO_MANY));
        }
        const message = came === "undecodable" ? NO_MESSAGE : (came ?? toBinary(CheckRequestSchema, request));
        const headers = { authorization, "x-request-id": requestId };
        const asked = { headers, peer: context.values.get(peer), timeoutMs: context.timeoutMs() };
        return decoded(await check(Buffer.from(message), asked));
      },
    },
  };
}

/** No CheckRequest, as little as what came. */
const NO_MESSAGE = Uint8Array.of(0xff);

interface Asked {
  headers: { authorization?: string | undefined; "x-request-id"?: string | string[] | undefined };
  peer: Peer | undefined;
  timeoutMs: number | undefined;
}

/** The message of what was encoded by hand. It has an outage in two fields of one oneof, the second as an unknown one. */
function decoded(bytes: Uint8Array): CheckResponse {
  const response = fromBinary(CheckResponseSchema, bytes);
  const { httpResponse } = response;
  if (httpResponse.case !== "errorResponse") return response;
  const { value } = httpResponse;
  const onlyError = create(CheckResponseSchema, { httpResponse: { case: "errorResponse", value } });
  const data = toBinary(CheckResponseSchema, onlyError).slice(1);
  const denied = create(CheckResponseSchema, { httpResponse: { case: "deniedResponse", value } });
  if (response.status !== undefined) denied.status = response.status;
  denied.$unknown = [{ no: 5, wireType: 2, data }];
  return denied;
}
