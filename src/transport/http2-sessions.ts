import { EventEmitter } from "node:events";
import type { OutgoingHttpHeaders } from "node:http";
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

const TRAILERS: unique symbol = Symbol("trailers");

type TrackedStream = ServerHttp2Stream & { [TRAILERS]?: OutgoingHttpHeaders };

/** What is sent when the stream, made to wait for trailers, wants them. */
export function setTrailers(stream: TrackedStream, trailers: OutgoingHttpHeaders): void {
  stream[TRAILERS] = trailers;
}

interface Tracked {
  socket: Socket;
  /** Open streams, and since when each is known to be open. */
  streams: Map<ServerHttp2Stream, number>;
  /** Whether there was a stream since the last sweep. */
  used: boolean;
  idleSinceMs: number;
}

/** What only sweeps say: reading the clock for each stream would be felt. */
const UNSWEPT = 0;

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
    for (const [session, tracked] of sessions) {
      const { socket, streams } = tracked;
      for (const [stream, openedMs] of streams) {
        if (openedMs === UNSWEPT) streams.set(stream, nowMs);
        else if (isOverdue(stream, openedMs, nowMs)) stream.close(constants.NGHTTP2_CANCEL);
      }
      if (tracked.used || streams.size > 0) tracked.idleSinceMs = nowMs;
      tracked.used = false;
      const idleMs = nowMs - tracked.idleSinceMs;
      if (idleMs >= idleTimeoutMs + LINGER_MS) socket.destroy();
      else if (idleMs >= idleTimeoutMs) session.close();
    }
  };
  const timer = setInterval(sweep, Math.min(1_000, requestTimeoutMs, idleTimeoutMs)).unref();

  return {
    add(session, socket) {
      const streams = new Map<ServerHttp2Stream, number>();
      const tracked: Tracked = { socket, streams, used: false, idleSinceMs: performance.now() };
      sessions.set(session, tracked);
      session.once("close", () => sessions.delete(session));
      // In the place of listeners, each of which would cost as much as answering a call: for `close`, for the errors of
      // streams that their peer breaks off, which would end the process, and for trailers.
      function emit(this: TrackedStream, event: string | symbol): boolean {
        if (event === "wantTrailers" && this[TRAILERS] !== undefined) {
          this.sendTrailers(this[TRAILERS]);
          return true;
        }
        if (event === "close") streams.delete(this);
        if (event === "error" && this.listenerCount("error") === 0) return true;
        // biome-ignore lint/complexity/noArguments: passing them on is cheaper than collecting and spreading them.
        return Reflect.apply(EventEmitter.prototype.emit, this, arguments);
      }
      session.on("stream", (stream: TrackedStream) => {
        tracked.used = true;
        streams.set(stream, UNSWEPT);
        stream.emit = emit;
      });
    },
    drain() {
      for (const session of sessions.keys()) session.close();
    },
    stop: () => clearInterval(timer),
  };
}
