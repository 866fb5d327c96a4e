import type { OutgoingHttpHeaders } from "node:http";
import { createConnectRouter, createContextValues } from "@connectrpc/connect";
import type { UniversalServerResponse } from "@connectrpc/connect/protocol";
import {
  type connectNodeAdapter,
  universalRequestFromNodeRequest,
  universalResponseToNodeResponse,
} from "@connectrpc/connect-node";
import { ENVELOPE_BYTES, type Peer } from "../../fastpath/fast-method.ts";
import {
  envelopeWithTrailers,
  escapeMessage,
  readTimeout,
  statusFirst,
  webTrailers,
} from "../../fastpath/wire-format.ts";
import { invalid, type KeyError } from "../../keys/errors.ts";
import { peer, peerAddress } from "./interceptors.ts";
import { COMPRESSIONS, ENCODINGS, undecodable, unknownEncoding } from "./strict-decoding.ts";

type Options = Parameters<typeof connectNodeAdapter>[0] & { fallback: Handler };
type Handler = ReturnType<typeof connectNodeAdapter>;
type PeerHandler = (...call: [...Parameters<Handler>, peer?: Peer | undefined]) => void;

/**
 * As `connectNodeAdapter`, without its line on standard error for each caller who goes away while a stream is open. What
 * went wrong in a call is logged by the interceptors; what is left here is an answer that nobody is there to take.
 */
export function nodeAdapter({ routes, fallback, ...options }: Options): PeerHandler {
  const router = createConnectRouter({ acceptCompression: COMPRESSIONS, ...options });
  routes(router);
  const handlers = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  return (request, response, who) => {
    const handler = handlers.get(request.url?.split("?", 1)[0] ?? "");
    if (handler === undefined) return fallback(request, response);
    const values = createContextValues().set(peerAddress, addressOf(request.socket)).set(peer, who);
    nameAuthority(request);
    const asked = universalRequestFromNodeRequest(request, response, undefined, values);
    const [accepts, unpackable] = takeUnknownEncoding(asked.header);
    const unread = unpackable ?? normaliseTimeouts(asked.header);
    if (unread !== undefined) values.set(undecodable, unread);
    shortenEchoed(asked.header);
    plainContentType(asked.header);
    const { addTrailers } = response;
    response.addTrailers = (trailers: OutgoingHttpHeaders) => addTrailers.call(response, asGrpcHasThem(trailers));
    handler(asked)
      .then((answer) => {
        if (accepts !== undefined) answer.header?.set(accepts, ENCODINGS.join(","));
        if (answer.status === 405 || answer.status === 415) return endInWords(response, answer.status, handler);
        if (answer.body === undefined && answer.trailer === undefined) return endBare(response, answer);
        return universalResponseToNodeResponse(withWebTrailers(answer), response);
      })
      .catch(() => response.destroy());
  };
}

/**
 * Connect makes a URL of each request, and throws where a client said no authority (HTTP/1.0 need not) or one that no URL can
 * have. Only path and query are looked at.
 */
function nameAuthority(request: Parameters<Handler>[0]): void {
  if ("authority" in request) Object.defineProperty(request, "authority", { value: AUTHORITY });
  else request.headers.host = AUTHORITY;
}

const AUTHORITY = "latchkey";

/** `essence; charset="UTF-8"`, however it is spelled: Connect knows some spellings of a content type, and none with quotes. */
const UTF_8 = /^([^;]*?)[ \t]*;[ \t]*charset[ \t]*=[ \t]*"?utf-?8"?[ \t]*;?[ \t]*$/i;

function plainContentType(header: Headers): void {
  const plain = UTF_8.exec(header.get("content-type") ?? "")?.[1];
  if (plain !== undefined) header.set("content-type", plain);
}

const CONTENT_TYPES =
  "application/json, application/proto, application/grpc, application/grpc+json, application/grpc-web, application/grpc-web+json";

/** Connect says these two by their status alone. */
function endInWords(
  response: Parameters<Handler>[1],
  status: 405 | 415,
  { allowedMethods }: { allowedMethods: string[] },
): void {
  const allowed = [...new Set(allowedMethods)].join(", ");
  const [name, value, message] =
    status === 405
      ? ["allow", allowed, `This method is called by ${allowed}.`]
      : ["accept-post", CONTENT_TYPES, `The content type is none of ${CONTENT_TYPES}.`];
  response.writeHead(status, { "content-type": "application/json", "cache-control": "no-store", [name]: value });
  response.end(JSON.stringify({ code: "unknown", message }));
}

/** Headers whose values Connect repeats in errors; no good value is longer than `MAX_ECHOED` characters. */
const ECHOED = [
  ...["connect-content-encoding", "connect-protocol-version", "connect-timeout-ms"],
  ...["content-encoding", "grpc-encoding", "grpc-timeout"],
];
const MAX_ECHOED = 64;

/** A value that is cut stays as wrong as it was, and the error about it as short as any. */
function shortenEchoed(header: Headers): void {
  for (const name of ECHOED) {
    const value = header.get(name);
    if (value !== null && value.length > MAX_ECHOED) header.set(name, value.slice(0, MAX_ECHOED));
  }
}

/**
 * Connect refuses an encoding that it does not know before there is anybody who could say why. Its name is taken away, and what
 * is wrong returned, with the header that tells what is taken here.
 */
function takeUnknownEncoding(header: Headers): [accepts?: string, fault?: KeyError] {
  const type = header.get("content-type") ?? "";
  const [name, accepts] = type.startsWith("application/grpc")
    ? (["grpc-encoding", "grpc-accept-encoding"] as const)
    : type.startsWith("application/connect")
      ? (["connect-content-encoding", "connect-accept-encoding"] as const)
      : (["content-encoding", "accept-encoding"] as const);
  const encoding = header.get(name);
  if (encoding === null || encoding === "identity" || ENCODINGS.includes(encoding)) return [];
  header.delete(name);
  return [accepts, unknownEncoding()];
}

/**
 * Connect takes eight digits alone, and lets what is more than a timer can count end at once. Returns what is wrong with a
 * timeout that is none, which is then taken for no timeout.
 */
function normaliseTimeouts(header: Headers): KeyError | undefined {
  for (const name of ["grpc-timeout", "connect-timeout-ms"] as const) {
    const value = header.get(name);
    if (value === null) continue;
    const timeoutMs = Math.ceil(readTimeout(name, value));
    if (Number.isNaN(timeoutMs)) {
      header.delete(name);
      return invalid([{ field: "", description: `the header ${name} holds no timeout` }]);
    }
    const inSeconds = `${Math.floor(timeoutMs / 1_000)}S`;
    const grpc = timeoutMs < 1e8 ? `${timeoutMs}m` : inSeconds;
    header.set(name, name === "grpc-timeout" ? grpc : String(timeoutMs));
  }
  return undefined;
}

/** Connect sorts trailers by name, and escapes more of a message than gRPC does. */
function asGrpcHasThem<T>(trailers: Record<string, T>): Record<string, T> {
  const message = trailers["grpc-message"];
  if (typeof message !== "string") return statusFirst(trailers);
  return statusFirst({ ...trailers, "grpc-message": escapeMessage(decodeURIComponent(message)) as T });
}

/** In gRPC-Web they are the body's last envelope. */
function withWebTrailers(answer: UniversalServerResponse): UniversalServerResponse {
  const isWeb = answer.header?.get("content-type")?.startsWith("application/grpc-web");
  if (!isWeb || answer.body === undefined) return answer;
  async function* body(envelopes: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const envelope of envelopes) yield envelope[0] === WEB_TRAILERS ? inOrder(envelope) : envelope;
  }
  return { ...answer, body: body(answer.body) };
}

const WEB_TRAILERS = 0x80;

function inOrder(envelope: Uint8Array): Uint8Array {
  const lines = Buffer.from(envelope.subarray(ENVELOPE_BYTES)).toString("latin1").split("\r\n").slice(0, -1);
  const trailers = Object.fromEntries(lines.map((line) => /^([^:]*): (.*)$/.exec(line)!.slice(1)));
  return envelopeWithTrailers(undefined, webTrailers(asGrpcHasThem<string>(trailers)));
}

/** In headers alone: once they are written, Node's HTTP/2 can only end an answer by an empty DATA frame. */
export function endBare(
  response: Parameters<Handler>[1],
  { status, header }: Pick<UniversalServerResponse, "status" | "header">,
): void {
  response.statusCode = status;
  for (const [name, value] of header ?? []) response.setHeader(name, value);
  response.end();
}

/** Of an IPv4 address on an IPv6 socket, the IPv4 address. A session on an inner connection has that in `stream`. */
function addressOf(socket: { remoteAddress?: string | undefined; stream?: { remoteAddress?: string } }): string {
  const address = socket.remoteAddress ?? socket.stream?.remoteAddress ?? "";
  return address.replace(/^::ffff:(?=[\d.]+$)/, "");
}
