import { constants, type ServerHttp2Session, type ServerHttp2Stream } from "node:http2";

interface Http2Sessions {
  add(session: ServerHttp2Session): void;
  stop(): void;
}

/**
 * The time limits that node:http2 lacks. A stream may rightly be silent for hours (a health watch), so nothing is judged
 * by silence: a stream is reset when its request is not whole and not answered, or its whole answer not taken, in
 * `requestTimeoutMs`.
 */
export function trackSessions({ requestTimeoutMs }: { requestTimeoutMs: number }): Http2Sessions {
  /** Open streams, and since when each is known to be open. */
  const streams = new Map<ServerHttp2Stream, number>();
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
    for (const [stream, openedMs] of streams) {
      if (isOverdue(stream, openedMs, nowMs)) stream.close(constants.NGHTTP2_CANCEL);
    }
  };
  const timer = setInterval(sweep, Math.min(1_000, requestTimeoutMs)).unref();

  return {
    add(session) {
      session.on("stream", (stream: ServerHttp2Stream) => {
        streams.set(stream, performance.now());
        // Of streams that their peer breaks off; without a listener they would end the process.
        stream.on("error", () => {});
        stream.once("close", () => streams.delete(stream));
      });
    },
    stop: () => clearInterval(timer),
  };
}
