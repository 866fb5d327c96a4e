import type { ConnectRouter, Interceptor } from "@connectrpc/connect";
import { HeldBytes, MAX_HELD_BYTES } from "../../fastpath/held-bytes.ts";
import { connectError, statusTrailers } from "../../fastpath/wire-format.ts";
import { KeyError } from "../../keys/errors.ts";
import { toConnectError, toWireError } from "../errors.ts";
import { endBare, nodeAdapter } from "./node-adapter.ts";
import { admitUndecodable, refuseUndecodable } from "./strict-decoding.ts";

type RequestHandler = ReturnType<typeof nodeAdapter>;

interface AdapterParts {
  interceptors: Interceptor[];
  routes: (router: ConnectRouter) => void;
  /** A larger message is RESOURCE_EXHAUSTED. */
  maxMessageBytes: number;
  /** The same for methods that need more, by path; their routes must say so to the router too. */
  largerMessages?: ReadonlyMap<string, number>;
  /** Counts what requests that are not whole hold together. Default: one of `MAX_HELD_BYTES`. */
  held?: HeldBytes;
  /** Methods that answer what can't be decoded or is too large, by path. */
  answerAll?: ReadonlySet<string>;
}

/** Serves the routes in gRPC, gRPC-Web and Connect, and refuses everything else in the asker's own protocol. */
export function createRequestHandler(parts: AdapterParts): RequestHandler {
  const { interceptors, routes, maxMessageBytes, largerMessages, answerAll } = parts;
  const { held = new HeldBytes(MAX_HELD_BYTES) } = parts;
  return nodeAdapter({
    interceptors,
    readMaxBytes: maxMessageBytes,
    jsonOptions: { ignoreUnknownFields: false },
    routes: (router) => {
      routes(router);
      const strict = router.handlers.map((handler) => {
        const decoding = answerAll?.has(handler.requestPath) ? admitUndecodable : refuseUndecodable;
        return decoding(handler, largerMessages?.get(handler.requestPath) ?? maxMessageBytes, held);
      });
      router.handlers.splice(0, Infinity, ...strict);
    },
    fallback: refuseUnknownPath,
  });
}

const NO_SUCH_METHOD = toWireError(
  toConnectError(
    new KeyError(
      "UNIMPLEMENTED",
      "There is no such method. Ask server reflection, or see proto/latchkey/v1/api_key_service.proto.",
    ),
    "",
  ),
);

function refuseUnknownPath(...[request, response]: Parameters<RequestHandler>): void {
  const contentType = request.headers["content-type"] ?? "";
  request.resume();
  if (request.method === "OPTIONS" && request.url === "*") {
    response.writeHead(204, { allow: "GET, HEAD, POST, OPTIONS" });
    response.end();
    return;
  }
  if (contentType.startsWith("application/grpc")) {
    // Trailers-only: the gRPC way to refuse a call without an answer.
    const header = new Headers({
      // The value may be as long as all headers together.
      "content-type": contentType.startsWith("application/grpc-web")
        ? "application/grpc-web+proto"
        : "application/grpc",
      ...statusTrailers(NO_SUCH_METHOD),
    });
    endBare(response, { status: 200, header });
    return;
  }
  response.writeHead(404, { "content-type": "application/json", "cache-control": "no-store" });
  response.end(connectError(NO_SUCH_METHOD));
}
