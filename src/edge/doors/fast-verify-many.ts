import { fromBinary } from "@bufbuild/protobuf";
import { ApiKeyService, VerifyStreamRequestSchema } from "#gen/latchkey/v1/api_key_service_pb";
import {
  BrokenStream,
  type FastAnswer,
  type FastCall,
  type FastMethod,
  type FastStreamMethod,
} from "../../fastpath/fast-method.ts";
import { checked, invalid, KeyError } from "../../keys/errors.ts";
import type { VerifyInput } from "../../keys/verify/verify.ts";
import { boundedTimeout, MAX_CALL_MS, toVerifyInput } from "../call.ts";
import { type CallLog, type LoggedCall, pastDeadline, requestIdFrom } from "../call-log.ts";
import { decodeBatch, decodeStreamed, encodeBatch, encodeStreamed } from "../codec/verify.ts";
import { toWireError } from "../errors.ts";
import type { Authenticator } from "../tokens.ts";
import { checkBatchSize, MAX_BATCH_BYTES, type Verdict, type VerifyMany, withoutRecord } from "./verify-many.ts";

interface FastVerifyManyParts {
  verifyMany: VerifyMany;
  authenticator: Authenticator;
  calls: CallLog;
}

const { typeName: service, method: methods } = ApiKeyService;

/** BatchVerify without Connect, in protobuf. */
export function createFastBatchVerify({ verifyMany, authenticator, calls }: FastVerifyManyParts): FastMethod {
  const method = methods.batchVerify.name;

  function answer(call: FastCall): FastAnswer | Promise<FastAnswer> | undefined {
    const batch = call.json ? undefined : decodeBatch(call.message);
    if (batch === undefined) return undefined;
    const { inputs, omitRecords } = batch;
    const logged = loggedCall(method, call.headers["x-request-id"]);
    const timeoutMs = boundedTimeout(call.timeoutMs);
    for (const input of inputs) input.timeoutMs = timeoutMs;

    const answered = (verdicts: Verdict[]): FastAnswer => {
      calls.answered(logged, "debug");
      return { message: encodeBatch(omitRecords ? verdicts.map(withoutRecord) : verdicts) };
    };
    const refused = (error: unknown): FastAnswer => ({ error: toWireError(calls.refused(logged, error)) });
    const run = () => {
      checked((violations) => checkBatchSize(inputs.length, violations));
      return verifyMany(inputs);
    };
    try {
      const admitted = authenticator.service(call.headers.authorization, call.peer);
      const verdicts = admitted === undefined ? run() : admitted.then(run);
      if (!(verdicts instanceof Promise)) return answered(verdicts);
      return verdicts.then((late) => {
        const tooLate = pastDeadline(logged.startedMs, call.timeoutMs);
        return tooLate === undefined ? answered(late) : refused(tooLate);
      }, refused);
    } catch (error) {
      return refused(error);
    }
  }

  return { path: `/${service}/${method}`, maxMessageBytes: MAX_BATCH_BYTES, answer };
}

/** VerifyStream without Connect, over gRPC in protobuf. */
export function createFastVerifyStream({
  verifyMany,
  authenticator,
  calls,
}: FastVerifyManyParts): FastStreamMethod<VerifyInput> {
  const method = methods.verifyStream.name;

  return {
    path: `/${service}/${method}`,
    open(headers, peer) {
      const logged = loggedCall(method, headers["x-request-id"]);
      calls.opened(logged);
      return {
        admit: async () => authenticator.service(headers.authorization, peer),
        read(message) {
          const input = decodeStreamed(message) ?? decodeGenerically(message);
          input.timeoutMs = MAX_CALL_MS;
          return input;
        },
        answer(inputs) {
          const verdicts = verifyMany(inputs);
          return verdicts instanceof Promise ? verdicts.then(encodeStreamed) : encodeStreamed(verdicts);
        },
        ended: () => calls.answered(logged, "debug"),
        left: (code) => calls.left(logged, code),
        failed: (error) => toWireError(calls.refused(logged, error instanceof BrokenStream ? toRefusal(error) : error)),
      };
    },
  };
}

function loggedCall(method: string, requestId: string | string[] | undefined): LoggedCall {
  return { service, method, startedMs: performance.now(), requestId: requestIdFrom(requestId) };
}

function toRefusal({ fault, message }: BrokenStream): KeyError {
  if (fault === "too large") return new KeyError("MESSAGE_TOO_LARGE", message);
  return invalid([{ field: "", description: message }]);
}

function decodeGenerically(message: Buffer): VerifyInput {
  try {
    return toVerifyInput(fromBinary(VerifyStreamRequestSchema, message).request, MAX_CALL_MS);
  } catch {
    throw new BrokenStream(`A message is not a well-formed ${VerifyStreamRequestSchema.typeName}.`);
  }
}
