import { constants, type ServerHttp2Session, type ServerHttp2Stream } from "node:http2";
import type { Socket } from "node:net";

export interface SessionLimits {
  requestTimeoutMs: number;
  idleTimeoutMs: number;
}

export interface Http2Sessions {
  add(session: ServerHttp2Session, socket: Socket): void;
  /**
   * Tells every peer by GOAWAY which stream was the last to be served; each session ends when its open streams have.
   * There is one GOAWAY, not RFC 9113's two: node:http2 stops reading an idle session once any was sent.
   */
  drain(): void;
  stop(): void;
}

interface Tracked {
  socket: Socket;
  /** Open streams, and when each was opened. */
  streams: Map<ServerHttp2Stream, number>;
  /** When the last stream closed; counts while none is open. */
  idleSinceMs: number;
}

/** For a peer that was told to go, and stays. */
const LINGER_MS = 5_000;

/**
 * The time limits that node:http2 lacks. A stream may rightly be silent for hours (a health watch), so nothing is judged
 * by silence: a stream is reset when its request is not whole and not answered, or its whole answer not taken, in
 * `requestTimeoutMs`; a session ends after `idleTimeoutMs` without a stream.
 */
export function trackSessions({ requestTimeoutMs, idleTimeoutMs }: SessionLimits): Http2Sessions {
  const sessions = new Map<ServerHttp2Session, Tracked>();
  const answeredAt = new WeakMap<ServerHttp2Stream, number>();

  const isOverdue = (stream: ServerHttp2Stream, openedMs: number, nowMs: number): boolean => {
    if (!stream.writableEnded) {
      if (stream.headersSent || nowMs - openedMs < requestTimeoutMs) return false;
      return stream.state.state === constants.NGHTTP2_STREAM_STATE_OPEN;
    }
    const sinceMs = answeredAt.get(stream);
    if (sinceMs === undefined) answeredAt.set(stream, nowMs);
    return sinceMs !== undefined && nowMs - sinceMs >= requestTimeoutMs;
  };

  // One sweep for all is cheaper than a timer a stream, and needs no more than its own interval of accuracy.
  const sweep = () => {
    const nowMs = performance.now();
    for (const [session, { socket, streams, idleSinceMs }] of sessions) {
      for (const [stream, openedMs] of streams) {
        if (isOverdue(stream, openedMs, nowMs)) stream.close(constants.NGHTTP2_CANCEL);
      }
      if (streams.size > 0 || nowMs - idleSinceMs < idleTimeoutMs) continue;
      if (nowMs - idleSinceMs >= idleTimeoutMs + LINGER_MS) socket.destroy();
      else session.close();
    }
  };
  const timer = setInterval(sweep, Math.min(1_000, requestTimeoutMs, idleTimeoutMs)).unref();

  return {
    add(session, socket) {
      const tracked: Tracked = { socket, streams: new Map(), idleSinceMs: performance.now() };
      sessions.set(session, tracked);
      session.once("close", () => sessions.delete(session));
      session.on("stream", (stream) => {
        tracked.streams.set(stream, performance.now());
        stream.once("close", () => {
          tracked.streams.delete(stream);
          tracked.idleSinceMs = performance.now();
        });
      });
    },
    drain() {
      for (const session of sessions.keys()) session.close();
    },
    stop: () => clearInterval(timer),
  };
}
