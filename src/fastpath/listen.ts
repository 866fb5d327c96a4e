import { createServer as createHttp1Server, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createHttp2Server, type Http2ServerRequest, type Http2ServerResponse } from "node:http2";
import { type AddressInfo, createServer, isIPv6, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { createServer as createTlsServer, type TLSSocket, type Server as TlsServer } from "node:tls";
import { serveBidirectionalStreams } from "./bidirectional.ts";
import type { FastMethod, FastStreamMethod, Peer, TransportRefusals } from "./fast-method.ts";
import { HeldBytes, MAX_HELD_BYTES } from "./held-bytes.ts";
import { createHttp1Connections } from "./http1/connection.ts";
import { NodeConnection } from "./http1/node-server.ts";
import { createHttp2Connections } from "./http2/connection.ts";
import { trackSessions } from "./http2/sessions.ts";
import { notePeer, peerOf, verifiedPeer } from "./peer.ts";
import { isBelow, type PlainHttp, plainHttpRequests, plainHttpStreams, type StreamListener } from "./plain-http.ts";
import { mayLackItsBody, originForm } from "./request-target.ts";
import { cutSlowReaders } from "./slow-readers.ts";
import { sniff } from "./sniff.ts";
import { createFastMethods, type RequestListener, serveFastRequests } from "./unary.ts";
import { PLAIN_REFUSALS } from "./wire-format.ts";

/** PEM: a certificate with those between it and its root, its key, and whose certificates clients may prove themselves by. */
export interface TlsIdentity {
  cert: string | Buffer;
  key: string | Buffer;
  ca?: string | Buffer | undefined;
}

interface ListenerOptions {
  host: string;
  /** 0: any free one. */
  port: number;
  /** `peer`: who is at the other end. */
  handler: (
    request: IncomingMessage | Http2ServerRequest,
    response: ServerResponse | Http2ServerResponse,
    peer: Peer | undefined,
  ) => void;
  /** Methods that are served here, before `handler` is asked. */
  fast?: readonly FastMethod[];
  fastStreams?: readonly FastStreamMethod[];
  plainHttp?: PlainHttp;
  /** Serves TLS alone; cleartext when left out. With a `ca`, clients are asked for a certificate, and may have none. */
  tls?: TlsIdentity | undefined;
  limits?: Partial<ListenerLimits>;
  refusals?: TransportRefusals;
  /** Counts what requests that are not whole hold together. Default: one of `MAX_HELD_BYTES`. */
  held?: HeldBytes;
}

/** Node's own defaults allow 2³²−1 streams and wait for ever; one client could take all there is. */
export interface ListenerLimits {
  /** Connections at once; more are closed unanswered. */
  maxConnections: number;
  /** HTTP/2 streams at once on a connection; more wait, or are refused. */
  maxConcurrentStreams: number;
  /** Bytes of all headers of a request together: HTTP/1.1 answers 431, HTTP/2 resets the stream. */
  maxHeaderBytes: number;
  /** Headers of an HTTP/2 request, pseudo-headers included. */
  maxHeaderPairs: number;
  /** MiB that an HTTP/2 session may hold, what its streams have yet to send or read included. */
  maxSessionMemoryMiB: number;
  /** Invalid HTTP/2 frames after which a session is ended. */
  maxSessionInvalidFrames: number;
  /** Streams refused to one HTTP/2 session after which it is ended. */
  maxSessionRejectedStreams: number;
  /** Bytes of a message that is served without Connect; a larger one is left to `handler`. */
  maxMessageBytes: number;
  /** Time in which a connection must have said which protocol it speaks; with TLS, for its handshake. */
  firstBytesTimeoutMs: number;
  /** Time for the headers of an HTTP/1.1 request. */
  headersTimeoutMs: number;
  /**
   * Time for a whole request; for a client to take some of what it was sent; over HTTP/2 also for it to take all of an answer
   * that has ended. An answer itself may take for ever.
   */
  requestTimeoutMs: number;
  /** Time without a request (HTTP/1.1) or an open stream (HTTP/2) after which a connection is closed. */
  idleTimeoutMs: number;
  /** Silence after which TCP probes whether the peer is still there. */
  keepAliveProbeMs: number;
}

export const defaultListenerLimits: ListenerLimits = {
  maxConnections: 10_000,
  maxConcurrentStreams: 250,
  maxHeaderBytes: 16 * 1024,
  maxHeaderPairs: 128,
  maxSessionMemoryMiB: 4,
  maxSessionInvalidFrames: 100,
  maxSessionRejectedStreams: 1_000,
  maxMessageBytes: 64 * 1024,
  firstBytesTimeoutMs: 10_000,
  headersTimeoutMs: 10_000,
  requestTimeoutMs: 30_000,
  idleTimeoutMs: 120_000,
  keepAliveProbeMs: 60_000,
};

export interface Listener {
  /** host:port as bound; an IPv6 host stands in brackets. */
  readonly address: string;
  /**
   * Accepts all as before, and over HTTP/1.1 makes each answer the last of its connection: a client that is sent away can't
   * have its next request cross with the close of an idle connection.
   */
  dismiss(): void;
  /** Accepts nothing more, lets open requests finish for at most `graceMs`, then cuts what is left. Idempotent. */
  close(graceMs: number): Promise<void>;
  /** For connections from now on. Only where TLS is served, and with a `ca` only where there was one. */
  renewTls(identity: TlsIdentity): void;
}

/**
 * One port for HTTP/1.1 and HTTP/2. In cleartext the first bytes tell which it is, with TLS the handshake does. Neither of Node's two servers listens
 * itself; each is handed sockets that are known to speak its protocol. Rejects with the system's error where the address can't be had.
 */
export async function listen({
  host,
  port,
  handler,
  fast = [],
  fastStreams = [],
  plainHttp,
  tls,
  limits: given,
  refusals = PLAIN_REFUSALS,
  held = new HeldBytes(MAX_HELD_BYTES),
}: ListenerOptions): Promise<Listener> {
  const limits = { ...defaultListenerLimits, ...given };
  let closing: Promise<void> | undefined;
  let dismissed = false;
  const sockets = new Set<Socket>();
  const undecided = new Set<Socket>();
  /** Answers under way, by HTTP/1.1 connection. */
  const answers = new Map<Duplex, Set<ServerResponse>>();
  const { maxMessageBytes } = limits;
  const sessions = trackSessions(limits);
  const methods = createFastMethods(fast, maxMessageBytes, refusals.timedOut);

  const answered = (response: ServerResponse) => {
    const { socket } = response.req;
    const open = answers.get(socket);
    open?.delete(response);
    if (closing !== undefined && open?.size === 0) socket.end();
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
  const serve = (socket: Socket, isHttp2: boolean) => {
    slowReaders.watch(socket);
    (isHttp2 ? http2Connections : http1Connections).serve(socket);
  };

  /** Connections in their handshake, by the peer's address: Node does not tell which of them a secure socket was. */
  const shaking = new Map<string, Socket>();
  const track = (socket: Socket) => {
    sockets.add(socket);
    undecided.add(socket);
    socket.once("close", () => {
      sockets.delete(socket);
      undecided.delete(socket);
    });
    socket.on("error", () => socket.destroy());
  };
  // Keep-alive probes find peers that vanished without a word while an answer was streamed to them.
  const tcp = { noDelay: true, keepAlive: true, keepAliveInitialDelay: limits.keepAliveProbeMs };
  const createCleartext = () =>
    createServer(tcp, (socket) => {
      track(socket);
      sniff(socket, limits.firstBytesTimeoutMs, (isHttp2) => {
        undecided.delete(socket);
        serve(socket, isHttp2);
      });
    });
  const createSecure = (identity: TlsIdentity) =>
    createTlsServer({
      ...{ ...tcp, ...identity, minVersion: OLDEST_TLS, ALPNProtocols: ["h2", "http/1.1"] },
      // A client without a certificate may still do what a user may.
      ...{ requestCert: identity.ca !== undefined, rejectUnauthorized: false },
      handshakeTimeout: limits.firstBytesTimeoutMs,
    })
      .on("connection", (socket: Socket) => {
        track(socket);
        const address = addressOf(socket);
        shaking.set(address, socket);
        socket.once("close", () => shaking.delete(address));
      })
      .on("tlsClientError", (_error, socket) => socket.destroy())
      .on("secureConnection", (socket: TLSSocket) => {
        const raw = shaking.get(addressOf(socket));
        if (raw !== undefined) undecided.delete(raw);
        socket.on("error", () => socket.destroy());
        notePeer(socket, verifiedPeer(socket));
        serve(socket, socket.alpnProtocol === "h2");
      });
  const server = tls === undefined ? createCleartext() : createSecure(tls);
  server.maxConnections = limits.maxConnections;

  const release = () => {
    sessions.stop();
    slowReaders.stop();
    http2Connections.stop();
    http1Connections.stop();
    http1.close();
  };
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject).listen({ host, port }, resolve);
  }).catch((error: unknown) => {
    release();
    throw error;
  });
  server.on("error", () => {});
  const bound = server.address() as AddressInfo;

  const dismiss = () => {
    dismissed = true;
    http1Connections.drain();
    for (const open of answers.values()) {
      for (const response of open) if (!response.headersSent) response.setHeader("connection", "close");
    }
  };
  /** From here on every answer says that it is the connection's last. */
  const drain = () => {
    dismiss();
    http2Connections.drain();
    streams.drain();
  };
  /** One in the middle of a handshake has as long as that may take. */
  const endIdle = () => {
    for (const socket of undecided) if (socket.bytesRead === 0) socket.destroy();
    http1Connections.endIdle();
    for (const [connection, open] of answers) if (open.size === 0) connection.end();
  };
  return {
    address: formatAddress(bound.address, bound.port),
    renewTls(identity) {
      // Its tickets are sealed with new keys: no session of the old one is resumed, and with it no client that the old CA signed.
      (server as TlsServer).setSecureContext({ ...identity, minVersion: OLDEST_TLS });
    },
    dismiss,
    close(graceMs) {
      closing ??= new Promise((resolve) => {
        const cut = setTimeout(() => {
          for (const socket of sockets) socket.destroy();
        }, graceMs);
        // HTTP/1.1 can't say "no more" on a connection without a request: the next one may be on its way.
        const idle = setInterval(endIdle, Math.min(graceMs, LAST_REQUEST_MS));
        server.close(() => {
          clearTimeout(cut);
          clearInterval(idle);
          release();
          resolve();
        });
        drain();
      });
      return closing;
    },
  };
}

/** For requests that were sent before their client could know. */
const LAST_REQUEST_MS = 500;
const NO_TUNNEL = [
  "HTTP/1.1 405 Method Not Allowed",
  "allow: GET, HEAD, POST, OPTIONS",
  "content-type: text/plain; charset=utf-8",
  "connection: close",
  "",
  "This is no proxy: CONNECT is not served.\n",
].join("\r\n");

const OLDEST_TLS = "TLSv1.2";

/** host:port, an IPv6 host in brackets. */
export function formatAddress(host: string, port: number): string {
  return isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
}

function addressOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress} ${remotePort}`;
}
