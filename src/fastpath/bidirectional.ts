import { EventEmitter } from "node:events";
import type { IncomingHttpHeaders } from "node:http";
import { gunzipSync } from "node:zlib";
import {
  BrokenStream,
  ENVELOPE_BYTES,
  type FastStreamMethod,
  type FastStreamSession,
  type Peer,
  type TransportRefusals,
  type WireError,
} from "./fast-method.ts";
import { gunzipped } from "./gzip.ts";
import {
  append,
  COMPRESSED_FLAG,
  EMPTY,
  envelopeLength,
  FORMATS,
  type Headers,
  OK_TRAILERS,
  statusTrailers,
  timeoutFrom,
} from "./wire-format.ts";

interface BidirectionalOptions {
  methods: readonly FastStreamMethod[];
  maxMessageBytes: number;
  refusals: TransportRefusals;
}

export interface BidirectionalStreams {
  /** The server of a stream with these headers; undefined: it is not served here. */
  recognise(headers: IncomingHttpHeaders, peer: Peer | undefined): ((stream: BidirectionalStream) => void) | undefined;
  /** Ends each stream once what was read of it is answered. */
  drain(): void;
}

/** The connection, as a stream needs it. */
interface BidirectionalTransport {
  /** Whether all has gone; if not, `drained` is to be called when it has. */
  send(bytes: Uint8Array): boolean;
  /** The client may send as much again. */
  credit(bytes: number): void;
  /** The end of the answer, and of the stream. */
  finish(trailers: Headers): void;
}

/** A stream of HTTP/2, the headers of its answer sent. Emits `readable` (also at the client's end), `drain` and `aborted`. */
export class BidirectionalStream extends EventEmitter {
  private unread: Buffer | undefined;
  private hasEnded = false;
  private isOver = false;
  private readonly transport: BidirectionalTransport;

  constructor(transport: BidirectionalTransport) {
    super();
    this.transport = transport;
  }

  // For the connection.

  received(bytes: Buffer): void {
    // A copy: what waits here for long would keep all that came in one read with it.
    this.unread = append(this.unread, bytes);
    this.emit("readable");
  }

  /** The client has sent all. */
  ended(): void {
    this.hasEnded = true;
    this.emit("readable");
  }

  drained(): void {
    this.emit("drain");
  }

  /** The client went away. */
  aborted(): void {
    this.isOver = true;
    this.emit("aborted");
  }

  // For who serves it.

  /** All that has come since the last time. */
  read(): Buffer | undefined {
    const { unread } = this;
    this.unread = undefined;
    return unread;
  }

  /** Whether the client has sent all, and all was read. */
  get isRead(): boolean {
    return this.hasEnded && this.unread === undefined;
  }

  /** False: wait for `drain`. */
  write(bytes: Uint8Array): boolean {
    return this.isOver || this.transport.send(bytes);
  }

  /** Bytes that were read are dealt with, and as many may come again. */
  credit(bytes: number): void {
    if (!this.isOver) this.transport.credit(bytes);
  }

  finish(trailers: Headers): void {
    if (this.isOver) return;
    this.isOver = true;
    this.transport.finish(trailers);
  }
}

/** For nobody to see. */
const GONE: WireError = { code: 1, message: "The client went away.", details: [] };

/** Ends of a conversation that come from outside. */
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
export function serveBidirectionalStreams({
  methods,
  maxMessageBytes,
  refusals,
}: BidirectionalOptions): BidirectionalStreams {
  const byPath = new Map(methods.map((method) => [method.path, method]));
  const open = new Set<AbortController>();
  let draining = false;

  async function serve(
    stream: BidirectionalStream,
    openSession: () => FastStreamSession,
    timeoutMs: number | undefined,
    isGzip: boolean,
  ) {
    const interruption: Interruption = { reading: new AbortController(), answering: new AbortController() };
    const { reading, answering } = interruption;
    const interrupt = (reason: WireError) => {
      reading.abort(reason);
      answering.abort();
    };
    const timer = timeoutMs === undefined ? undefined : setTimeout(() => interrupt(refusals.timedOut), timeoutMs);
    open.add(reading);
    stream.once("aborted", () => interrupt(GONE));
    const session = openSession();
    let error: WireError | undefined;
    try {
      await unlessAborted(session.admit(), answering.signal);
      await converse(stream, session, interruption, isGzip);
      if (reading.signal.aborted) {
        error = reading.signal.reason as WireError;
        session.left(error.code);
      } else session.ended();
    } catch (failure) {
      error = session.failed(failure);
    }
    clearTimeout(timer);
    open.delete(reading);
    stream.finish(error === undefined ? OK_TRAILERS : statusTrailers(error));
  }

  async function converse(
    stream: BidirectionalStream,
    session: FastStreamSession,
    { reading, answering }: Interruption,
    isGzip: boolean,
  ): Promise<void> {
    const { signal } = reading;
    let rest = EMPTY;
    while (!signal.aborted) {
      const chunk = stream.read();
      if (chunk === undefined) {
        if (stream.isRead) break;
        await change(stream, "readable", signal);
        continue;
      }
      const requests: unknown[] = [];
      let failure: unknown;
      try {
        const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
        rest = split(bytes, maxMessageBytes, isGzip, (message) => requests.push(session.read(message)));
      } catch (broken) {
        failure = broken;
      }
      if (requests.length > 0) {
        const answers = session.answer(requests);
        const bytes = answers instanceof Promise ? await unlessAborted(answers, answering.signal) : answers;
        if (bytes === undefined) return;
        const taken = stream.write(bytes);
        if (!taken && failure === undefined) await change(stream, "drain", signal);
      }
      if (failure !== undefined) throw failure;
      stream.credit(chunk.length);
    }
    if (rest.length > 0 && !signal.aborted) throw new BrokenStream("The stream ended within a message.");
  }

  return {
    recognise(headers, peer) {
      const method = headers[":method"] === "POST" ? byPath.get(String(headers[":path"])) : undefined;
      const format = FORMATS.get(headers["content-type"]);
      if (method === undefined || format?.protocol !== "grpc" || format.json || draining) return undefined;
      const timeout = headers["grpc-timeout"];
      const timeoutMs = timeout === undefined ? undefined : timeoutFrom(format, String(timeout));
      const encoding = headers["grpc-encoding"] ?? "identity";
      const isGzip = encoding === "gzip";
      const isPlain = (encoding === "identity" || isGzip) && headers["content-length"] === undefined;
      if (!isPlain || Number.isNaN(timeoutMs)) return undefined;
      return (stream) => void serve(stream, () => method.open(headers, peer), timeoutMs, isGzip);
    },
    drain() {
      draining = true;
      for (const reading of open) reading.abort(refusals.stopping);
    },
  };
}

/** Takes the whole messages off the front of `bytes`, and returns what is left. */
function split(bytes: Buffer, maxMessageBytes: number, isGzip: boolean, take: (message: Buffer) => void): Buffer {
  let at = 0;
  while (bytes.length - at >= ENVELOPE_BYTES) {
    const length = envelopeLength(bytes, at);
    const isCompressed = bytes[at] === COMPRESSED_FLAG && isGzip;
    if (bytes[at] !== 0 && !isCompressed) throw new BrokenStream("A message is compressed, or is none.");
    if (length > maxMessageBytes) throw tooLarge(maxMessageBytes);
    if (bytes.length - at - ENVELOPE_BYTES < length) break;
    const content = bytes.subarray(at + ENVELOPE_BYTES, at + ENVELOPE_BYTES + length);
    take(isCompressed ? inflated(content, maxMessageBytes) : content);
    at += ENVELOPE_BYTES + length;
  }
  return bytes.subarray(at);
}

function inflated(content: Buffer, maxMessageBytes: number): Buffer {
  const message = gunzipped(content, maxMessageBytes);
  if (message !== undefined) return message;
  try {
    // Not as plain as most: several members, a name in it, or nothing at all.
    return gunzipSync(content, { maxOutputLength: maxMessageBytes });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") throw tooLarge(maxMessageBytes);
    throw new BrokenStream("A message is not compressed by gzip as its stream says.");
  }
}

function tooLarge(maxMessageBytes: number): BrokenStream {
  return new BrokenStream(`A message has more than ${maxMessageBytes} bytes.`, "too large");
}

/** Waits for `event`, or until the stream is interrupted. */
function change(stream: BidirectionalStream, event: string, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      stream.off(event, done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    if (signal.aborted) return resolve();
    stream.on(event, done);
    signal.addEventListener("abort", done);
  });
}

/** The promise's value, or undefined once the signal is aborted. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const abort = () => resolve(undefined);
    signal.addEventListener("abort", abort, { once: true });
    promise.finally(() => signal.removeEventListener("abort", abort)).then(resolve, reject);
  });
}
