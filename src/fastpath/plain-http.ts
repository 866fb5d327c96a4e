import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import { constants, type ServerHttp2Stream } from "node:http2";
import { discard } from "./discard.ts";
import type { Peer } from "./fast-method.ts";
import { peerOf } from "./peer.ts";
import type { RequestListener } from "./unary.ts";

/** A path that is answered over plain HTTP, by any method, whatever the body. */
export interface PlainHttp {
  /** All below it is its own too: `/ask` also takes `/ask/a?b`. */
  path: string;
  /** Must not throw or reject. */
  answer(request: PlainRequest): PlainAnswer | Promise<PlainAnswer>;
}

export interface PlainRequest {
  /** Path and query, as they were sent. */
  target: string;
  /** Repeated ones joined. */
  headers: IncomingHttpHeaders;
  /** Names and values in turn, as they came; pseudo-headers included over HTTP/2. */
  rawHeaders: readonly string[];
  peer: Peer | undefined;
}

export interface PlainAnswer {
  status: number;
  /** Names in lower case. */
  headers: Readonly<Record<string, string>>;
  body: string;
}

/** `*`: what a gateway that puts the path before the client's makes of `OPTIONS *`. */
export function isBelow({ path }: Pick<PlainHttp, "path">, target: string | undefined): target is string {
  if (target === undefined || !target.startsWith(path)) return false;
  const next = target.charAt(path.length);
  return next === "" || next === "/" || next === "?" || next === "*";
}

export type StreamListener = (
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  flags: number,
  rawHeaders: string[],
) => void;

/** Any method, over HTTP/2. Everything else is `next`'s. */
export function plainHttpStreams(plain: PlainHttp, next: StreamListener): StreamListener {
  return (stream, headers, flags, rawHeaders) => {
    const target = headers[":path"] as string | undefined;
    if (!isBelow(plain, target)) return next(stream, headers, flags, rawHeaders);
    discard(stream, () => stream.close(constants.NGHTTP2_NO_ERROR));
    const write = ({ status, headers: more, body }: PlainAnswer) => {
      if (stream.destroyed || stream.closed) return;
      const bytes = Buffer.from(body);
      const bodiless = headers[":method"] === "HEAD" || bytes.length === 0;
      stream.respond({ ":status": status, ...more, "content-length": bytes.length }, { endStream: bodiless });
      if (!bodiless) stream.end(bytes);
    };
    settle(plain.answer({ target, headers, rawHeaders, peer: peerOf(stream.session) }), write);
  };
}

/** The same over HTTP/1.1; `answered` is called for each answer. */
export function plainHttpRequests(
  plain: PlainHttp,
  next: RequestListener,
  answered: (response: ServerResponse) => void,
): RequestListener {
  return (request: IncomingMessage, response: ServerResponse) => {
    const { url: target, headers, rawHeaders, socket } = request;
    if (!isBelow(plain, target)) return next(request, response);
    discard(request, () => socket.destroySoon());
    const write = ({ status, headers: more, body }: PlainAnswer) => {
      response.writeHead(status, { ...more, "content-length": Buffer.byteLength(body) });
      response.end(body);
      answered(response);
    };
    settle(plain.answer({ target, headers, rawHeaders, peer: peerOf(socket) }), write);
  };
}

function settle(answer: PlainAnswer | Promise<PlainAnswer>, write: (answer: PlainAnswer) => void): void {
  if ("then" in answer) void answer.then(write);
  else write(answer);
}
