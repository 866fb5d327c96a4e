import type { IncomingHttpHeaders } from "node:http";
import type { ServerHttp2Stream } from "node:http2";
import { BrokenStream, type HotStreamMethod, type WireError } from "./hot-method.ts";
import type { StreamListener } from "./unary.ts";
import { ENVELOPE_BYTES, FORMATS, statusTrailers, timeoutFrom } from "./wire-format.ts";

export interface BidiOptions {
  methods: readonly HotStreamMethod[];
  maxMessageBytes: number;
  /** Takes every stream that is not served here. */
  next: StreamListener;
}

export interface BidiStreams {
  listener: StreamListener;
  /** Ends each stream once what was read of it is answered. */
  drain(): void;
}

/** Of Node's timers; a longer timeout is none. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;
const EMPTY: Buffer = Buffer.alloc(0);
const OK_TRAILERS = { "grpc-status": "0" };
const TIMED_OUT: WireError = { code: 4, message: "the operation timed out", details: [] };
const DRAINING: WireError = { code: 14, message: "The service is stopping. Open the stream again.", details: [] };

/**
 * Serves bidirectional gRPC streams in which each message has one answer. What came in one go is answered in one write,
 * and no more is read before that was taken: a client that does not read its answers is not read from, and what a stream
 * may hold is bounded by HTTP/2's own window.
 */
export function serveBidiStreams({ methods, maxMessageBytes, next }: BidiOptions): BidiStreams {
  const byPath = new Map(methods.map((method) => [method.path, method]));
  const open = new Set<AbortController>();
  let draining = false;

  async function serve(
    stream: ServerHttp2Stream,
    headers: IncomingHttpHeaders,
    method: HotStreamMethod,
    timeoutMs: number,
  ) {
    const interrupted = new AbortController();
    const timer = timeoutMs > MAX_TIMEOUT_MS ? undefined : setTimeout(() => interrupted.abort(TIMED_OUT), timeoutMs);
    open.add(interrupted);
    stream.on("error", () => {});
    stream.once("close", () => interrupted.abort());
    stream.respond(FORMATS.get("application/grpc")!.head, { waitForTrailers: true });
    const session = method.open(headers);
    let error: WireError | undefined;
    try {
      await session.admit();
      await converse(stream, session.answer, interrupted.signal);
      if (interrupted.signal.aborted) {
        error = interrupted.signal.reason as WireError;
        session.left();
      } else session.ended();
    } catch (failure) {
      error = session.failed(failure);
    }
    clearTimeout(timer);
    open.delete(interrupted);
    if (stream.destroyed) return;
    stream.once("wantTrailers", () => stream.sendTrailers(error === undefined ? OK_TRAILERS : statusTrailers(error)));
    stream.end();
    stream.resume();
  }

  async function converse(
    stream: ServerHttp2Stream,
    answer: (messages: Buffer[]) => Uint8Array | Promise<Uint8Array>,
    signal: AbortSignal,
  ): Promise<void> {
    let rest = EMPTY;
    while (!signal.aborted) {
      const chunk = stream.read() as Buffer | null;
      if (chunk === null) {
        if (stream.readableEnded) break;
        await change(stream, ["readable", "end"], signal);
        continue;
      }
      const messages: Buffer[] = [];
      rest = split(rest.length === 0 ? chunk : Buffer.concat([rest, chunk]), messages, maxMessageBytes);
      if (messages.length === 0) continue;
      const answers = answer(messages);
      const taken = stream.write(answers instanceof Promise ? await answers : answers);
      if (!taken) await change(stream, ["drain"], signal);
    }
    if (rest.length > 0 && !signal.aborted) throw new BrokenStream("The stream ended within a message.");
  }

  return {
    listener(stream, headers, flags, rawHeaders) {
      const method = headers[":method"] === "POST" ? byPath.get(String(headers[":path"])) : undefined;
      const format = FORMATS.get(headers["content-type"]);
      const timeout = headers["grpc-timeout"];
      const timeoutMs =
        timeout === undefined ? Number.POSITIVE_INFINITY : format && timeoutFrom(format, String(timeout));
      const encoding = headers["grpc-encoding"] ?? "identity";
      const plain = format?.protocol === "grpc" && !format.json && encoding === "identity" && !draining;
      if (method === undefined || !plain || timeoutMs === undefined || Number.isNaN(timeoutMs)) {
        next(stream, headers, flags, rawHeaders);
      } else void serve(stream, headers, method, timeoutMs);
    },
    drain() {
      draining = true;
      for (const stream of open) stream.abort(DRAINING);
    },
  };
}

/** Takes the whole messages off the front of `bytes`, and returns what is left. */
function split(bytes: Buffer, messages: Buffer[], maxMessageBytes: number): Buffer {
  let at = 0;
  while (bytes.length - at >= ENVELOPE_BYTES) {
    const length = bytes.readUInt32BE(at + 1);
    if (bytes[at] !== 0) throw new BrokenStream("A message is compressed, or is none.");
    if (length > maxMessageBytes) throw new BrokenStream(`A message has more than ${maxMessageBytes} bytes.`);
    if (bytes.length - at - ENVELOPE_BYTES < length) break;
    messages.push(bytes.subarray(at + ENVELOPE_BYTES, at + ENVELOPE_BYTES + length));
    at += ENVELOPE_BYTES + length;
  }
  return bytes.subarray(at);
}

/** Waits for one of `events`, or until the stream is interrupted. */
function change(stream: ServerHttp2Stream, events: string[], signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      for (const event of events) stream.off(event, done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    for (const event of events) stream.on(event, done);
    signal.addEventListener("abort", done);
  });
}
