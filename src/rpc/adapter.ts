import { Code, type ConnectRouter, type Interceptor } from "@connectrpc/connect";
import type { connectNodeAdapter } from "@connectrpc/connect-node";
import { nodeAdapter } from "./node-adapter.ts";
import { refuseUndecodable } from "./strict-decoding.ts";

export type RequestHandler = ReturnType<typeof connectNodeAdapter>;

export interface AdapterParts {
  interceptors: Interceptor[];
  routes: (router: ConnectRouter) => void;
}

/** A message larger than this is RESOURCE_EXHAUSTED: the largest that makes sense is a tenth of it. */
const MAX_MESSAGE_BYTES = 64 * 1024;

/** Serves the routes in gRPC, gRPC-Web and Connect, and refuses everything else in the asker's own protocol. */
export function createRequestHandler({ interceptors, routes }: AdapterParts): RequestHandler {
  return nodeAdapter({
    interceptors,
    readMaxBytes: MAX_MESSAGE_BYTES,
    jsonOptions: { ignoreUnknownFields: false },
    routes: (router) => {
      routes(router);
      const strict = router.handlers.map((handler) => refuseUndecodable(handler, MAX_MESSAGE_BYTES));
      router.handlers.splice(0, Infinity, ...strict);
    },
    fallback: refuseUnknownPath,
  });
}

function refuseUnknownPath(...[request, response]: Parameters<RequestHandler>): void {
  const contentType = request.headers["content-type"] ?? "";
  const message = "There is no such method. Ask server reflection, or see proto/latchkey/v1/api_key_service.proto.";
  request.resume();
  if (contentType.startsWith("application/grpc")) {
    // Trailers-only: the gRPC way to refuse a call without an answer.
    response.writeHead(200, {
      "content-type": contentType,
      "grpc-status": String(Code.Unimplemented),
      "grpc-message": message,
    });
    response.end();
    return;
  }
  response.writeHead(404, { "content-type": "application/json", "cache-control": "no-store" });
  response.end(JSON.stringify({ code: "unimplemented", message }));
}
