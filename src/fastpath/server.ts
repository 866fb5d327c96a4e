import { createServer as createHttp1Server, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createHttp2Server, type Http2ServerRequest, type Http2ServerResponse } from "node:http2";
import { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { serveBidirectionalStreams } from "./bidirectional.ts";
import type { FastMethod, FastStreamMethod, Peer, TransportRefusals } from "./fast-method.ts";
import { HeldBytes, MAX_HELD_BYTES } from "./held-bytes.ts";
import { createHttp1Connections } from "./http1/connection.ts";
import { NodeConnection } from "./http1/node-server.ts";
import { createHttp2Connections } from "./http2/connections.ts";
import { trackSessions } from "./http2/sessions.ts";
import { defaultListenerLimits, type ListenerLimits } from "./limits.ts";
import { notePeer, peerOf } from "./peer.ts";
import { isBelow, type PlainHttp, plainHttpRequests, plainHttpStreams, type StreamListener } from "./plain-http.ts";
import { mayLackItsBody, originForm } from "./request-target.ts";
import { cutSlowReaders } from "./slow-readers.ts";
import { createFastMethods, type RequestListener, serveFastRequests } from "./unary.ts";
import { PLAIN_REFUSALS } from "./wire-format.ts";

export interface ServerOptions {
  /** `peer`: who is at the other end. */
  handler: (
    request: IncomingMessage | Http2ServerRequest,
    response: ServerResponse | Http2ServerResponse,
    peer: Peer | undefined,
  ) => void;
  /** Methods that are served here, before `handler` is asked. */
  fast?: readonly FastMethod[];
  fastStreams?: readonly FastStreamMethod[];
  /** Headers, in lower case, whose requests are `handler`'s whatever they ask for. */
  unusual?: readonly string[];
  plainHttp?: PlainHttp;
  limits?: Partial<ListenerLimits>;
  refusals?: TransportRefusals;
  /** Counts what requests that are not whole hold together. Default: one of `MAX_HELD_BYTES`. */
  held?: HeldBytes;
}

/** Serves connections, whatever they come by. */
interface ConnectionServer {
  serveHttp1(socket: Socket): void;
  /** Anything that carries bytes both ways. */
  serveHttp2(connection: Duplex): void;
  /**
   * Serves all as before, and over HTTP/1.1 makes each answer the last of its connection: a client that is sent away can't
   * have its next request cross with the close of an idle connection.
   */
  dismiss(): void;
  /** Each connection ends when what is under way on it has, and every answer says that it is its connection's last. */
  drain(): void;
  /** Ends HTTP/1.1 connections without a request: a drain can't tell them, since the next one may be on its way. */
  endIdle(): void;
  stop(): void;
}

/** Fast methods, and Node's own two servers for all else. Neither of these listens; each is handed connections that are known to speak its protocol. */
export function createConnectionServer({
  handler,
  fast = [],
  fastStreams = [],
  unusual = [],
  plainHttp,
  limits: given,
  refusals = PLAIN_REFUSALS,
  held = new HeldBytes(MAX_HELD_BYTES),
}: ServerOptions): ConnectionServer {
  const limits = { ...defaultListenerLimits, ...given };
  let dismissed = false;
  let draining = false;
  /** Answers under way, by HTTP/1.1 connection. */
  const answers = new Map<Duplex, Set<ServerResponse>>();
  const { maxMessageBytes } = limits;
  const sessions = trackSessions(limits);
  const methods = createFastMethods(fast, maxMessageBytes, refusals.timedOut, unusual);

  const answered = (response: ServerResponse) => {
    const { socket } = response.req;
    const open = answers.get(socket);
    open?.delete(response);
    if (draining && open?.size === 0) socket.end();
  };
  const handlerRequest: RequestListener = (request, response) => {
    response.once("close", () => answered(response));
    handler(request, response, peerOf(request.socket));
  };
  const otherwise = plainHttp === undefined ? handlerRequest : plainHttpRequests(plainHttp, handlerRequest, answered);
  const serveRequest = serveFastRequests({ methods, answered, otherwise, held });
  /** Connections whose next request is not to be asked about again. */
  const asked = new WeakSet<Duplex>();
  const takeRequest: RequestListener = (request, response) => {
    const connection: Duplex = request.socket;
    if (connection instanceof NodeConnection) connection.asked(response);
    answers.get(connection)?.add(response);
    if (dismissed || mayLackItsBody(request)) response.setHeader("connection", "close");
    (asked.delete(connection) ? otherwise : serveRequest)(request, response);
  };
  /** With the target in the form that is looked at from here on. */
  const targeted = (listener: RequestListener): RequestListener => {
    return (request, response) => {
      request.url = originForm(request.url ?? "", request.method);
      listener(request, response);
    };
  };
  const http1 = createHttp1Server(
    {
      maxHeaderSize: limits.maxHeaderBytes,
      headersTimeout: Math.min(limits.headersTimeoutMs, limits.requestTimeoutMs),
      requestTimeout: limits.requestTimeoutMs,
      keepAliveTimeout: limits.idleTimeoutMs,
      connectionsCheckingInterval: Math.min(1_000, limits.headersTimeoutMs),
    },
    targeted(takeRequest),
  );
  // RFC 9112, 9.6: a client that sends no more may still want what it asked for.
  (http1 as unknown as { httpAllowHalfOpen: boolean }).httpAllowHalfOpen = true;
  // A gateway passes on what the client expects of its own server. Here the body is not waited for, so it is not asked for.
  const expecting = (otherwise: RequestListener): RequestListener => {
    return (request, response) => {
      if (plainHttp === undefined || !isBelow(plainHttp, request.url)) return otherwise(request, response);
      response.setHeader("connection", "close");
      takeRequest(request, response);
    };
  };
  const sendContinue: RequestListener = (request, response) => {
    response.writeContinue();
    takeRequest(request, response);
  };
  http1.on("checkContinue", targeted(expecting(sendContinue)));
  http1.on("checkExpectation", targeted(expecting((_request, response) => void response.writeHead(417).end())));
  http1.on("connect", (_request, socket: Duplex) => void socket.end(NO_TUNNEL));
  // Node checks headersTimeout and requestTimeout only from this event on, and a server that is handed its sockets never
  // has it: without this line a client could hold a connection for ever with half a header.
  http1.emit("listening");

  const http2 = createHttp2Server({
    maxSessionMemory: limits.maxSessionMemoryMiB,
    maxSessionInvalidFrames: limits.maxSessionInvalidFrames,
    maxSessionRejectedStreams: limits.maxSessionRejectedStreams,
    maxHeaderListPairs: limits.maxHeaderPairs,
    settings: {
      maxConcurrentStreams: limits.maxConcurrentStreams,
      maxHeaderListSize: limits.maxHeaderBytes,
      enablePush: false,
    },
  });
  // Never has a connection of its own: it makes requests and responses of the streams that it is handed.
  const handlerHttp2 = createHttp2Server((request, response) => {
    handler(request, response, peerOf(request.stream.session));
  });
  const handlerStream: StreamListener = (...stream) => void handlerHttp2.emit("stream", ...stream);
  http2.on("stream", plainHttp === undefined ? handlerStream : plainHttpStreams(plainHttp, handlerStream));
  const streams = serveBidirectionalStreams({ methods: fastStreams, maxMessageBytes, refusals });
  // A peer's broken connection is its own affair: it must not become an uncaught error.
  http2.on("sessionError", () => {});
  let opening: Peer | undefined;
  http2.on("session", (session) => {
    notePeer(session, opening);
    sessions.add(session);
  });

  const http1Connections = createHttp1Connections({
    ...limits,
    ...{ methods, held, refusals },
    handOver(socket, isAsked, rest, hasEnded) {
      const connection = new NodeConnection(socket, rest, hasEnded);
      if (isAsked) asked.add(connection);
      answers.set(connection, new Set());
      connection.once("close", () => answers.delete(connection));
      http1.emit("connection", connection);
    },
  });
  const http2Connections = createHttp2Connections({
    ...limits,
    ...{ methods, streams, refusals },
    openNodeSession(connection, peer) {
      // The session is made, and its event emitted, before this returns; its own socket is one of Node's making.
      opening = peer;
      http2.emit("connection", connection);
      opening = undefined;
    },
  });

  const slowReaders = cutSlowReaders(limits);
  const dismiss = () => {
    dismissed = true;
    http1Connections.drain();
    for (const open of answers.values()) {
      for (const response of open) if (!response.headersSent) response.setHeader("connection", "close");
    }
  };
  return {
    serveHttp1(socket) {
      slowReaders.watch(socket);
      http1Connections.serve(socket);
    },
    serveHttp2(connection) {
      if (connection instanceof Socket) slowReaders.watch(connection);
      http2Connections.serve(connection);
    },
    dismiss,
    drain() {
      draining = true;
      dismiss();
      http2Connections.drain();
      streams.drain();
    },
    endIdle() {
      http1Connections.endIdle();
      for (const [connection, open] of answers) if (open.size === 0) connection.end();
    },
    stop() {
      sessions.stop();
      slowReaders.stop();
      http2Connections.stop();
      http1Connections.stop();
      http1.close();
    },
  };
}

const NO_TUNNEL = [
  "HTTP/1.1 405 Method Not Allowed",
  "allow: GET, HEAD, POST, OPTIONS",
  "content-type: text/plain; charset=utf-8",
  "connection: close",
  "",
  "This is no proxy: CONNECT is not served.\n",
].join("\r\n");
