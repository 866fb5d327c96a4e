import type { IncomingHttpHeaders } from "node:http";
import { constants, type ServerHttp2Stream } from "node:http2";
import {
  BrokenStream,
  ENVELOPE_BYTES,
  type HotStreamMethod,
  type HotStreamSession,
  type WireError,
} from "./hot-method.ts";
import type { StreamListener } from "./unary.ts";
import { EMPTY, FORMATS, MAX_TIMEOUT_MS, OK_TRAILERS, statusTrailers, TIMED_OUT, timeoutFrom } from "./wire-format.ts";

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

/** Between two looks at whether the trailers have gone. */
const HANG_UP_MS = 10;
const DRAINING: WireError = { code: 14, message: "The service is stopping. Open the stream again.", details: [] };

/** What ends a conversation from outside. */
interface Interruption {
  /** No more is to be read. */
  reading: AbortController;
  /** No answer is of use any more either. */
  answering: AbortController;
}

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
    const interruption: Interruption = { reading: new AbortController(), answering: new AbortController() };
    const { reading, answering } = interruption;
    const interrupt = (reason?: WireError) => {
      reading.abort(reason);
      answering.abort();
    };
    const timer = timeoutMs > MAX_TIMEOUT_MS ? undefined : setTimeout(() => interrupt(TIMED_OUT), timeoutMs);
    open.add(reading);
    stream.on("error", () => {});
    // A reset also ends what there is to read, and comes before that end.
    stream.once("aborted", () => interrupt());
    stream.respond(FORMATS.get("application/grpc")!.head, { waitForTrailers: true });
    const session = method.open(headers);
    let error: WireError | undefined;
    try {
      await unlessAborted(session.admit(), answering.signal);
      await converse(stream, session, interruption);
      if (reading.signal.aborted) {
        error = reading.signal.reason as WireError;
        session.left();
      } else session.ended();
    } catch (failure) {
      error = session.failed(failure);
    }
    clearTimeout(timer);
    open.delete(reading);
    end(stream, error);
  }

  async function converse(
    stream: ServerHttp2Stream,
    session: HotStreamSession,
    { reading, answering }: Interruption,
  ): Promise<void> {
    const { signal } = reading;
    let rest = EMPTY;
    while (!signal.aborted) {
      const chunk = stream.read() as Buffer | null;
      if (chunk === null) {
        if (stream.readableEnded) break;
        await change(stream, ["readable", "end"], signal);
        continue;
      }
      const requests: unknown[] = [];
      let failure: unknown;
      try {
        const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
        rest = split(bytes, maxMessageBytes, (message) => requests.push(session.read(message)));
      } catch (broken) {
        failure = broken;
      }
      if (requests.length > 0) {
        const answers = session.answer(requests);
        const bytes = answers instanceof Promise ? await unlessAborted(answers, answering.signal) : answers;
        if (bytes === undefined) return;
        const taken = stream.write(bytes);
        if (!taken && failure === undefined) await change(stream, ["drain"], signal);
      }
      if (failure !== undefined) throw failure;
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
        // A stream may be over before it is told of: nobody is there to be answered.
      } else if (!stream.destroyed && !stream.closed) void serve(stream, headers, method, timeoutMs);
    },
    drain() {
      draining = true;
      for (const reading of open) reading.abort(DRAINING);
    },
  };
}

/** Sends the status, if anyone is there to take it, and no longer listens. */
function end(stream: ServerHttp2Stream, error: WireError | undefined): void {
  // One that its peer reset may yet hold what was not taken.
  if (stream.closed) stream.destroy();
  if (stream.destroyed) return;
  stream.once("wantTrailers", () => {
    stream.sendTrailers(error === undefined ? OK_TRAILERS : statusTrailers(error));
    if (!stream.readableEnded) setImmediate(hangUp, stream);
  });
  stream.end();
  stream.resume();
}

/**
 * Lets a client that has the status and would still send know by RST_STREAM(NO_ERROR) that nobody listens: the stream, and
 * a session that is to end with it, would else be open for as long as the client likes. Nothing tells when trailers have
 * gone, and a reset before would take them back.
 */
function hangUp(stream: ServerHttp2Stream): void {
  if (stream.destroyed || stream.closed) return;
  if (stream.state.state === constants.NGHTTP2_STREAM_STATE_HALF_CLOSED_LOCAL) {
    stream.close(constants.NGHTTP2_NO_ERROR);
  } else setTimeout(hangUp, HANG_UP_MS, stream).unref();
}

/** Takes the whole messages off the front of `bytes`, and returns what is left. */
function split(bytes: Buffer, maxMessageBytes: number, take: (message: Buffer) => void): Buffer {
  let at = 0;
  while (bytes.length - at >= ENVELOPE_BYTES) {
    const length = bytes.readUInt32BE(at + 1);
    if (bytes[at] !== 0) throw new BrokenStream("A message is compressed, or is none.");
    if (length > maxMessageBytes) {
      throw new BrokenStream(`A message has more than ${maxMessageBytes} bytes.`, "too large");
    }
    if (bytes.length - at - ENVELOPE_BYTES < length) break;
    take(bytes.subarray(at + ENVELOPE_BYTES, at + ENVELOPE_BYTES + length));
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

/** What the promise gives, or undefined once the signal is aborted. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const abort = () => resolve(undefined);
    signal.addEventListener("abort", abort, { once: true });
    promise.finally(() => signal.removeEventListener("abort", abort)).then(resolve, reject);
  });
}
