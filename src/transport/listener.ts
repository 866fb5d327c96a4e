import { createServer as createHttp1Server, type IncomingMessage, type ServerResponse } from "node:http";
import {
  createServer as createHttp2Server,
  type Http2ServerRequest,
  type Http2ServerResponse,
  type ServerHttp2Session,
} from "node:http2";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { StartupError } from "../startup-error.ts";

export interface ListenerOptions {
  host: string;
  /** 0: any free one. */
  port: number;
  handler: (request: IncomingMessage | Http2ServerRequest, response: ServerResponse | Http2ServerResponse) => void;
  limits?: Partial<ListenerLimits>;
}

/** Node's own defaults allow 2³²−1 streams and wait for ever; one client could take all there is. */
export interface ListenerLimits {
  /** Connections at once; more are closed unanswered. */
  maxConnections: number;
  /** HTTP/2 streams at once on a connection. */
  maxConcurrentStreams: number;
  /** Bytes of all request headers together. */
  maxHeaderBytes: number;
  /** MiB of memory that an HTTP/2 session may hold. */
  maxSessionMemoryMiB: number;
  /** Time for the first byte of a connection. */
  firstBytesTimeoutMs: number;
  /** Time for the headers of an HTTP/1.1 request. */
  headersTimeoutMs: number;
  /** Time for a whole HTTP/1.1 request. */
  requestTimeoutMs: number;
  /** Time without a byte after which a connection without open requests, or an HTTP/1.1 one, is closed. */
  idleTimeoutMs: number;
}

export const defaultListenerLimits: ListenerLimits = {
  maxConnections: 10_000,
  maxConcurrentStreams: 250,
  maxHeaderBytes: 16 * 1024,
  maxSessionMemoryMiB: 4,
  firstBytesTimeoutMs: 10_000,
  headersTimeoutMs: 10_000,
  requestTimeoutMs: 30_000,
  idleTimeoutMs: 120_000,
};

export interface Listener {
  /** host:port as bound; an IPv6 host stands in brackets. */
  readonly address: string;
  /** Accepts nothing more, lets open requests finish for at most `graceMs`, then cuts what is left. Idempotent. */
  close(graceMs: number): Promise<void>;
}

const HTTP2_PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");

/** One port for HTTP/1.1 and HTTP/2 in cleartext: the first bytes tell which it is. */
export async function listen({ host, port, handler, limits: given }: ListenerOptions): Promise<Listener> {
  const limits = { ...defaultListenerLimits, ...given };
  const sockets = new Set<Socket>();
  /** Open streams by session. */
  const sessions = new Map<ServerHttp2Session, number>();

  const http1 = createHttp1Server(
    {
      maxHeaderSize: limits.maxHeaderBytes,
      headersTimeout: limits.headersTimeoutMs,
      requestTimeout: limits.requestTimeoutMs,
      keepAliveTimeout: limits.idleTimeoutMs,
    },
    handler,
  );
  const http2 = createHttp2Server(
    {
      maxSessionMemory: limits.maxSessionMemoryMiB,
      maxSessionInvalidFrames: 100,
      maxSessionRejectedStreams: 100,
      maxHeaderListPairs: 128,
      settings: {
        maxConcurrentStreams: limits.maxConcurrentStreams,
        maxHeaderListSize: limits.maxHeaderBytes,
        enablePush: false,
      },
    },
    handler,
  );
  http2.on("session", (session) => {
    sessions.set(session, 0);
    session.once("close", () => sessions.delete(session));
    session.on("stream", (stream) => {
      sessions.set(session, (sessions.get(session) ?? 0) + 1);
      stream.once("close", () => sessions.has(session) && sessions.set(session, sessions.get(session)! - 1));
    });
    session.setTimeout(limits.idleTimeoutMs, () => {
      // A stream may rightly be silent for long (a health watch); only a session without any is idle.
      if (sessions.get(session) === 0) session.close();
    });
  });
  // A peer's broken connection is its own affair: it must not become an uncaught error.
  http2.on("sessionError", () => {});
  http1.on("clientError", (_error, socket) => socket.destroy());

  const server = createServer({ noDelay: true, pauseOnConnect: false }, (socket) => {
    sockets.add(socket);
    socket.once("close", () => sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    sniff(socket, limits.firstBytesTimeoutMs, (isHttp2) => (isHttp2 ? http2 : http1).emit("connection", socket));
  });
  server.maxConnections = limits.maxConnections;

  await new Promise<void>((resolve, reject) => {
    server.once("error", reject).listen({ host, port }, resolve);
  }).catch((error: NodeJS.ErrnoException) => {
    throw new StartupError(whyNot(`${host}:${port}`, error));
  });
  server.on("error", () => {});

  let closing: Promise<void> | undefined;
  return {
    address: formatAddress(server.address() as AddressInfo),
    close(graceMs) {
      closing ??= new Promise((resolve) => {
        const cut = setTimeout(() => {
          for (const socket of sockets) socket.destroy();
        }, graceMs);
        server.close(() => {
          clearTimeout(cut);
          resolve();
        });
        // HTTP/2: GOAWAY, open streams go on. HTTP/1.1: idle connections close, busy ones after their answer.
        for (const session of sessions.keys()) session.close();
        http1.close();
        http1.closeIdleConnections();
        for (const socket of sockets) if (socket.bytesRead === 0) socket.destroy();
      });
      return closing;
    },
  };
}

/** Decides by the first bytes and gives them back to the socket. They may come one by one. */
function sniff(socket: Socket, timeoutMs: number, decide: (isHttp2: boolean) => void): void {
  let seen = Buffer.alloc(0);
  const timer = setTimeout(() => socket.destroy(), timeoutMs);
  const onEnd = () => socket.destroy();
  const onReadable = () => {
    const chunk: Buffer | null = socket.read();
    if (chunk === null) return;
    seen = Buffer.concat([seen, chunk]);
    const length = Math.min(seen.length, HTTP2_PREFACE.length);
    const matches = HTTP2_PREFACE.subarray(0, length).equals(seen.subarray(0, length));
    if (matches && length < HTTP2_PREFACE.length) return;
    stop();
    socket.unshift(seen);
    decide(matches);
  };
  const stop = () => {
    clearTimeout(timer);
    socket.off("readable", onReadable);
    socket.off("end", onEnd);
  };
  socket.on("readable", onReadable);
  socket.on("end", onEnd);
  socket.once("close", stop);
}

function whyNot(address: string, error: NodeJS.ErrnoException): string {
  if (error.code === "EADDRINUSE")
    return `${address} is in use by another program. Stop it, or set LATCHKEY_LISTEN to a free address.`;
  if (error.code === "EACCES")
    return `${address} may not be used by this user. Set LATCHKEY_LISTEN to a port above 1023.`;
  return `${address} can't be listened on (${error.code ?? error.message}). Set LATCHKEY_LISTEN to an address of this machine.`;
}

function formatAddress({ address, family, port }: AddressInfo): string {
  return family === "IPv6" ? `[${address}]:${port}` : `${address}:${port}`;
}
