// What the suite's ConformanceService is to do: answer with what the request says, and tell what was received.
import { setTimeout as wait } from "node:timers/promises";
import { create, toBinary } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import * as pb from "../../coverage/conformance/gen/connectrpc/conformance/v1/service_pb.js";

const INFO = pb.ConformancePayload_RequestInfoSchema;

export const pathOf = (method) => `/${method.parent.typeName}/${method.name}`;

const payloadOf = (requestInfo, data) =>
  create(pb.ConformancePayloadSchema, { ...(requestInfo && { requestInfo }), ...(data && { data }) });

/** Headers of the definition; several values of one name are joined, as Connect joins them. */
const namesOf = (headers = []) =>
  headers.length === 0
    ? undefined
    : Object.fromEntries(new Headers(headers.flatMap(({ name, value }) => value.map((one) => [name, one]))));

/** For the fast path. */
export function answerOf(definition, info, encode) {
  const { case: kind, value } = definition?.response ?? {};
  const metadata = {
    headers: namesOf(definition?.responseHeaders),
    trailers: namesOf(definition?.responseTrailers),
  };
  if (kind === "error") {
    const own = value.details.map((any) => ({ type: any.typeUrl.split("/").pop(), value: any.value }));
    const told = { type: INFO.typeName, value: toBinary(INFO, info) };
    return { ...metadata, error: { code: value.code, message: value.message ?? "", details: [...own, told] } };
  }
  const answer = () => ({ ...metadata, message: encode(payloadOf(info, kind && value)) });
  return definition?.responseDelayMs ? wait(definition.responseDelayMs).then(answer) : answer();
}

const errorOf = ({ message = "", code, details }, info) => {
  const all = [...details, ...(info ? [anyPack(INFO, info)] : [])];
  const error = new ConnectError(message, code);
  error.details = all.map(({ typeUrl, value }) => ({ type: typeUrl.split("/").pop(), value }));
  return error;
};

const addHeaders = (target, headers = []) => {
  for (const { name, value } of headers) for (const one of value) target.append(name, one);
};

function begin(context, definition) {
  addHeaders(context.responseHeader, definition?.responseHeaders);
  addHeaders(context.responseTrailer, definition?.responseTrailers);
}

function infoOf(context, schema, requests) {
  const timeoutMs = context.timeoutMs();
  return create(INFO, {
    requestHeaders: [...context.requestHeader].map(([name, value]) => ({ name, value: [value] })),
    requests: requests.map((request) => anyPack(schema, request)),
    ...(timeoutMs !== undefined && { timeoutMs: BigInt(timeoutMs) }),
  });
}

async function single(context, schema, requests) {
  const definition = requests[0]?.responseDefinition;
  begin(context, definition);
  const { case: kind, value } = definition?.response ?? {};
  if (kind === "error") throw errorOf(value, infoOf(context, schema, requests));
  await wait(definition?.responseDelayMs ?? 0);
  return { payload: payloadOf(infoOf(context, schema, requests), kind && value) };
}

/** The same in Connect's own terms, for what does not take the fast path; `onUnary` is told of each unary call that came here. */
export const routes = (onUnary) => (router) => {
  const unary = (schema) => (request, context) => {
    onUnary(context, toBinary(schema, request).length);
    return single(context, schema, [request]);
  };
  router.service(pb.ConformanceService, {
    unary: unary(pb.UnaryRequestSchema),
    idempotentUnary: unary(pb.IdempotentUnaryRequestSchema),
    async clientStream(stream, context) {
      const requests = [];
      for await (const request of stream) requests.push(request);
      return single(context, pb.ClientStreamRequestSchema, requests);
    },
    async *serverStream(request, context) {
      const { responseDefinition: definition } = request;
      begin(context, definition);
      let info = infoOf(context, pb.ServerStreamRequestSchema, [request]);
      for (const data of definition?.responseData ?? []) {
        await wait(definition.responseDelayMs);
        yield { payload: payloadOf(info, data) };
        info = undefined;
      }
      if (definition?.error) throw errorOf(definition.error, info);
    },
    async *bidiStream(stream, context) {
      let definition;
      let fullDuplex = false;
      let sent = 0;
      let requests = [];
      const info = () => infoOf(context, pb.BidiStreamRequestSchema, requests);
      for await (const request of stream) {
        if (definition === undefined) {
          definition = request.responseDefinition;
          fullDuplex = request.fullDuplex;
          begin(context, definition);
        }
        requests.push(request);
        if (!fullDuplex) continue;
        if (sent >= (definition?.responseData.length ?? 0)) break;
        await wait(definition.responseDelayMs);
        yield { payload: payloadOf(info(), definition.responseData[sent++]) };
        requests = [];
      }
      const last = info();
      for (; sent < (definition?.responseData.length ?? 0); sent++) {
        await wait(definition.responseDelayMs);
        yield { payload: payloadOf(sent === 0 ? last : undefined, definition.responseData[sent]) };
      }
      if (definition?.error) throw errorOf(definition.error, definition.responseData.length === 0 ? last : undefined);
    },
  });
};
