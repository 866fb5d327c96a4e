import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import { constants, type ServerHttp2Stream } from "node:http2";
import { drain } from "./discard.ts";
import type { Peer } from "./fast-method.ts";
import { peerOf } from "./peer.ts";
import type { RequestListener } from "./unary.ts";

/** Answers gateways that ask over plain HTTP whether a request may pass. Must not throw or reject. */
export type ForwardAuth = (request: ForwardRequest) => ForwardAnswer | Promise<ForwardAnswer>;

export interface ForwardRequest {
  /** Path and query, as the gateway sent them. */
  target: string;
  /** Repeated ones joined. */
  headers: IncomingHttpHeaders;
  /** Names and values in turn, as they came; pseudo-headers included over HTTP/2. */
  rawHeaders: readonly string[];
  peer: Peer | undefined;
}

export interface ForwardAnswer {
  status: number;
  /** Names in lower case. */
  headers: Readonly<Record<string, string>>;
  body: string;
}

export const FORWARD_AUTH_PATH = "/v1/authorize";

/** `*`: what a gateway that puts the path before the client's makes of `OPTIONS *`. */
export function isForwardAuth(target: string | undefined): target is string {
  if (target === undefined || !target.startsWith(FORWARD_AUTH_PATH)) return false;
  const next = target.charAt(FORWARD_AUTH_PATH.length);
  return next === "" || next === "/" || next === "?" || next === "*";
}

export type StreamListener = (
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  flags: number,
  rawHeaders: string[],
) => void;

/** Any method, over HTTP/2. Everything else is `next`'s. */
export function forwardAuthStreams(answer: ForwardAuth, next: StreamListener): StreamListener {
  return (stream, headers, flags, rawHeaders) => {
    const target = headers[":path"] as string | undefined;
    if (!isForwardAuth(target)) return next(stream, headers, flags, rawHeaders);
    drain(stream, () => stream.close(constants.NGHTTP2_NO_ERROR));
    const write = ({ status, headers: more, body }: ForwardAnswer) => {
      if (stream.destroyed || stream.closed) return;
      const bytes = Buffer.from(body);
      const bodiless = headers[":method"] === "HEAD" || bytes.length === 0;
      stream.respond({ ":status": status, ...more, "content-length": bytes.length }, { endStream: bodiless });
      if (!bodiless) stream.end(bytes);
    };
    settle(answer({ target, headers, rawHeaders, peer: peerOf(stream.session) }), write);
  };
}

/** The same over HTTP/1.1; `answered` is called for each answer. */
export function forwardAuthRequests(
  answer: ForwardAuth,
  next: RequestListener,
  answered: (response: ServerResponse) => void,
): RequestListener {
  return (request: IncomingMessage, response: ServerResponse) => {
    const { url: target, headers, rawHeaders, socket } = request;
    if (!isForwardAuth(target)) return next(request, response);
    drain(request, () => socket.destroySoon());
    const write = ({ status, headers: more, body }: ForwardAnswer) => {
      response.writeHead(status, { ...more, "content-length": Buffer.byteLength(body) });
      response.end(body);
      answered(response);
    };
    settle(answer({ target, headers, rawHeaders, peer: peerOf(socket) }), write);
  };
}

function settle(answer: ForwardAnswer | Promise<ForwardAnswer>, write: (answer: ForwardAnswer) => void): void {
  if ("then" in answer) void answer.then(write);
  else write(answer);
}
