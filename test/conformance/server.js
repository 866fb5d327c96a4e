// The server under test: the listener and fast path as the service has them, with the suite's own service behind. One
// process serves one configuration, told on standard input; the runner starts as many as it needs.
import { appendFileSync, readFileSync } from "node:fs";
import { create, createRegistry, fromBinary, fromJsonString, toBinary, toJsonString } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import {
  ServerCompatRequestSchema,
  ServerCompatResponseSchema,
} from "../../coverage/conformance/gen/connectrpc/conformance/v1/server_compat_pb.js";
import * as pb from "../../coverage/conformance/gen/connectrpc/conformance/v1/service_pb.js";
import { listen } from "../../dist/src/fastpath/listen.js";
import { answerOf, pathOf, routes } from "./service.js";

const settings = fromBinary(ServerCompatRequestSchema, readFileSync(process.stdin.fd).subarray(4));
const maxMessageBytes = settings.messageReceiveLimit || 4 * 1024 * 1024;
const { unary, idempotentUnary } = pb.ConformanceService.method;
const schemas = Object.values(pb.ConformanceService.method).map(({ input }) => input);
const registry = createRegistry(...schemas, pb.ConformancePayload_RequestInfoSchema);
const calls = { fast: 0, node: {}, unproven: 0 };
/** Whether clients were told to prove themselves. */
const mustProve = settings.clientTlsCert.length > 0;

/** A method of the suite as a fast one, with nothing left out but what the transport itself is to do. */
function fast(method) {
  return {
    path: pathOf(method),
    answer({ message, json, headers, timeoutMs, peer }) {
      calls.fast++;
      if (mustProve && peer === undefined) calls.unproven++;
      const request = json
        ? fromJsonString(method.input, message.toString(), { registry })
        : fromBinary(method.input, message);
      const info = create(pb.ConformancePayload_RequestInfoSchema, {
        requestHeaders: Object.entries(headers)
          .filter(([name]) => !name.startsWith(":"))
          .map(([name, value]) => ({ name, value: [value] })),
        requests: [anyPack(method.input, request)],
        timeoutMs: timeoutMs === undefined ? undefined : BigInt(Math.round(timeoutMs)),
      });
      return answerOf(request.responseDefinition, info, (payload) => {
        const response = create(method.output, { payload });
        return json
          ? Buffer.from(toJsonString(method.output, response, { registry }))
          : toBinary(method.output, response);
      });
    },
  };
}

/** Bytes of a message that HTTP/2's fast path leaves to Node's own server. */
const LARGE = 24_000;

/** Why a unary call did not take the fast path. */
function whyNotPlain({ requestMethod, requestHeader }, bytes) {
  if (requestMethod === "GET") return "GET";
  const encoding = requestHeader.get("grpc-encoding") ?? requestHeader.get("content-encoding") ?? "identity";
  if (encoding !== "identity") return "compressed";
  return bytes > LARGE ? "large" : "unexplained";
}

const tlsOf = ({ serverCreds: { cert, key }, clientTlsCert }) => ({
  ...{ cert: Buffer.from(cert), key: Buffer.from(key) },
  ca: mustProve ? Buffer.from(clientTlsCert) : undefined,
});

const adapter = connectNodeAdapter({
  readMaxBytes: maxMessageBytes,
  jsonOptions: { registry },
  routes: routes((context, bytes) => {
    const why = whyNotPlain(context, bytes);
    calls.node[why] = (calls.node[why] ?? 0) + 1;
  }),
});

const listener = await listen({
  ...{ host: "127.0.0.1", port: 0, fast: [fast(unary), fast(idempotentUnary)] },
  tls: settings.useTls ? tlsOf(settings) : undefined,
  limits: { maxMessageBytes },
  handler(request, response, peer) {
    if (mustProve && peer === undefined) calls.unproven++;
    adapter(request, response);
  },
});
process.on("SIGTERM", () => {
  appendFileSync(process.env.CONFORMANCE_CALLS, `${JSON.stringify(calls)}\n`);
  process.exit();
});

const [host, port] = listener.address.split(":");
const pemCert = settings.useTls ? settings.serverCreds.cert : undefined;
const told = toBinary(
  ServerCompatResponseSchema,
  create(ServerCompatResponseSchema, { host, port: Number(port), pemCert }),
);
const size = Buffer.alloc(4);
size.writeUInt32BE(told.length);
process.stdout.write(Buffer.concat([size, told]));
