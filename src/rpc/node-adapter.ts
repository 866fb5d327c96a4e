import { createConnectRouter, createContextValues } from "@connectrpc/connect";
import {
  compressionBrotli,
  compressionGzip,
  type connectNodeAdapter,
  universalRequestFromNodeRequest,
  universalResponseToNodeResponse,
} from "@connectrpc/connect-node";
import type { Peer } from "../transport/hot-method.ts";
import { peer, peerAddress } from "./interceptors.ts";

type Options = Parameters<typeof connectNodeAdapter>[0] & { fallback: Handler };
type Handler = ReturnType<typeof connectNodeAdapter>;
type PeerHandler = (...call: [...Parameters<Handler>, peer?: Peer | undefined]) => void;

/**
 * As `connectNodeAdapter`, without its line on standard error for each caller who goes away while a stream is open. What
 * went wrong in a call is logged by the interceptors; what is left here is an answer that nobody is there to take.
 */
export function nodeAdapter({ routes, fallback, ...options }: Options): PeerHandler {
  const router = createConnectRouter({ acceptCompression: [compressionGzip, compressionBrotli], ...options });
  routes(router);
  const handlers = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  return (request, response, who) => {
    const handler = handlers.get(request.url?.split("?", 1)[0] ?? "");
    if (handler === undefined) return fallback(request, response);
    const values = createContextValues().set(peerAddress, addressOf(request.socket)).set(peer, who);
    handler(universalRequestFromNodeRequest(request, response, undefined, values))
      .then((answer) => universalResponseToNodeResponse(answer, response))
      .catch(() => response.destroy());
  };
}

/** Of an IPv4 address on an IPv6 socket, the IPv4 address. A session on an inner connection has that in `stream`. */
function addressOf(socket: { remoteAddress?: string | undefined; stream?: { remoteAddress?: string } }): string {
  const address = socket.remoteAddress ?? socket.stream?.remoteAddress ?? "";
  return address.replace(/^::ffff:(?=[\d.]+$)/, "");
}
