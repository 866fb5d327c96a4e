import { cors } from "@connectrpc/connect";
import type { nodeAdapter } from "./node-adapter.ts";

type RequestHandler = ReturnType<typeof nodeAdapter>;

/** Beside those of the protocols: the caller's token, and the name of a call in the log. */
const ALLOWED_HEADERS = [...cors.allowedHeaders, "Authorization", "X-Request-Id"].join(", ");
const ALLOWED_METHODS = cors.allowedMethods.join(", ");
const EXPOSED_HEADERS = [...cors.exposedHeaders, "Retry-After"].join(", ");
/** Browsers ask again after two hours at the latest. */
const MAX_AGE_S = "7200";

/**
 * Lets pages of `origins` call the service from browsers, by Connect and gRPC-Web (Fetch Standard, 3.2). No cookie is
 * looked at anywhere, so none is allowed for. Requests without an origin, and from others, are served as ever.
 */
export function withCors(handler: RequestHandler, origins: readonly string[]): RequestHandler {
  if (origins.length === 0) return handler;
  return (request, response, peer) => {
    const { origin, "access-control-request-method": asked } = request.headers;
    response.setHeader("vary", "origin");
    if (origin === undefined || !origins.includes(origin)) return handler(request, response, peer);
    response.setHeader("access-control-allow-origin", origin);
    if (request.method !== "OPTIONS" || asked === undefined) {
      response.setHeader("access-control-expose-headers", EXPOSED_HEADERS);
      return handler(request, response, peer);
    }
    request.resume();
    response.writeHead(204, {
      ...{ "access-control-allow-methods": ALLOWED_METHODS, "access-control-allow-headers": ALLOWED_HEADERS },
      "access-control-max-age": MAX_AGE_S,
    });
    response.end();
  };
}
