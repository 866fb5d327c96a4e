import { ApiKeyService } from "#gen/latchkey/v1/api_key_service_pb";
import { ENVELOPE_BYTES, type FastAnswer, type FastCall, type FastMethod } from "../../fastpath/fast-method.ts";
import type { Verification, VerifyKey } from "../../keys/verify/verify.ts";
import { boundedTimeout } from "../call.ts";
import { type CallLog, pastDeadline, requestIdFrom } from "../call-log.ts";
import { decodeVerify, decodeVerifyJson, encodeVerification, isPlain, verificationJson } from "../codec/verify.ts";
import { toWireError } from "../errors.ts";
import type { Authenticator } from "../tokens.ts";

interface FastVerifyParts {
  verify: VerifyKey;
  authenticator: Authenticator;
  calls: CallLog;
}

/** Verify without Connect: the same answers, refusals, log lines and metrics as `api-keys.ts` gives through it. */
export function createFastVerify({ verify, authenticator, calls }: FastVerifyParts): FastMethod {
  const { typeName: service } = ApiKeyService;
  const method = ApiKeyService.method.verify.name;
  const count = calls.often(service, method);

  // Written for the case that nothing has to be waited for: no promise, no closure.
  function answer(call: FastCall): FastAnswer | Promise<FastAnswer> | undefined {
    const startedMs = performance.now();
    const { message, headers } = call;
    const request = call.json ? decodeVerifyJson(message) : decodeVerify(message, 0, message.length);
    if (request === undefined) return undefined;
    request.timeoutMs = boundedTimeout(call.timeoutMs);
    let found: Verification | Promise<Verification>;
    try {
      const admitted = authenticator.service(headers.authorization, call.peer);
      found = admitted === undefined ? verify(request) : admitted.then(() => verify(request));
    } catch (error) {
      return isPlain(request) ? refused(call, startedMs, error) : undefined;
    }
    if (found instanceof Promise) {
      return found.then(
        (late) => {
          const tooLate = pastDeadline(startedMs, call.timeoutMs);
          return tooLate === undefined ? answered(call, startedMs, late) : refused(call, startedMs, tooLate);
        },
        (error) => refused(call, startedMs, error),
      );
    }
    // Text was taken for ASCII; where that decides the answer, the generic codec looks again.
    if (found.outcome === "malformed" && !isPlain(request)) return undefined;
    return answered(call, startedMs, found);
  }

  function answered({ json, protocol, headers }: FastCall, startedMs: number, verification: Verification): FastAnswer {
    count(startedMs, headers["x-request-id"], verification.outcome, verification.entry?.id);
    if (json) return { message: Buffer.from(verificationJson(verification)) };
    if (protocol === "grpc") return { message: encodeVerification(verification, ENVELOPE_BYTES), roomy: true };
    return { message: encodeVerification(verification, 0) };
  }

  function refused({ headers }: FastCall, startedMs: number, error: unknown): FastAnswer {
    const requestId = requestIdFrom(headers["x-request-id"]);
    return { error: toWireError(calls.refused({ service, method, startedMs, requestId }, error)) };
  }

  return { path: `/${service}/${method}`, answer };
}
