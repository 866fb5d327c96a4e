import type { EventEmitter } from "node:events";
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import type { ServerHttp2Stream } from "node:http2";
import { ENVELOPE_BYTES, type HotAnswer, type HotCall, type HotMethod, type Protocol } from "./hot-method.ts";
import { setTrailers } from "./http2-sessions.ts";
import { giveBack, intake } from "./intake.ts";
import {
  connectError,
  connectStatus,
  EMPTY,
  envelope,
  envelopeWithTrailers,
  FORMATS,
  type Format,
  type Headers,
  MAX_TIMEOUT_MS,
  OK_TRAILERS,
  seal,
  statusTrailers,
  TIMED_OUT,
  timeoutFrom,
  webTrailers,
} from "./wire-format.ts";

export type StreamListener = (
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
  flags: number,
  rawHeaders: string[],
) => void;
export interface HotParts<Listener> {
  methods: readonly HotMethod[];
  stock: Listener;
  /** A larger message is the stock path's to refuse. */
  maxMessageBytes: number;
}

export type RequestListener = (request: IncomingMessage, response: ServerResponse) => void;

const NO_STORE = { "cache-control": "no-store" };
const OK_WEB_TRAILERS = webTrailers(OK_TRAILERS);
const WAIT_FOR_TRAILERS = { waitForTrailers: true };
const FAILED: HotAnswer = { error: { code: 13, message: "internal error", details: [] } };

/**
 * Serves hot methods on HTTP/2 streams, and hands everything else to `stock` as if it had not been touched.
 *
 * About a microsecond is all that may be added to what Node itself needs for a stream: a call is answered while Node tells
 * of its end, without a listener, and, where nothing has to be waited for, without a promise, timer or signal.
 */
export function serveHotStreams(parts: HotParts<StreamListener>): StreamListener {
  const { stock, maxMessageBytes } = parts;
  const byPath = byPathOf(parts.methods);

  return (stream, headers, flags, rawHeaders) => {
    const method = headers[":method"] === "POST" ? byPath.get(headers[":path"] as string | undefined) : undefined;
    const format = method && formatOf(headers);
    if (method === undefined || format === undefined) return stock(stream, headers, flags, rawHeaders);

    const maxBytes = method.maxMessageBytes ?? maxMessageBytes;
    const take = (body: Buffer | null) => {
      const call = callFrom(format, headers, messageIn(format, body, maxBytes), stream);
      const answer = call && answerTo(method, call);
      if (answer === undefined) {
        giveBack(stream, body);
        stock(stream, headers, flags, rawHeaders);
      } else if (isPromise(answer)) settle(answer, call!, (late) => writeStream(stream, format, late));
      else writeStream(stream, format, answer);
    };
    intake(stream, ENVELOPE_BYTES + maxBytes, take, () => stock(stream, headers, flags, rawHeaders));
  };
}

/** The same for HTTP/1.1, where gRPC proper can't be spoken. */
export function serveHotRequests(parts: HotParts<RequestListener> & { answered: (response: ServerResponse) => void }) {
  const { stock, maxMessageBytes, answered } = parts;
  const byPath = byPathOf(parts.methods);
  return (request: IncomingMessage, response: ServerResponse): void => {
    const method = request.method === "POST" ? byPath.get(request.url) : undefined;
    const format = method && formatOf(request.headers);
    if (method === undefined || format === undefined || format.protocol === "grpc") {
      stock(request, response);
      return;
    }
    const maxBytes = method.maxMessageBytes ?? maxMessageBytes;
    const write = (answer: HotAnswer) => {
      writeResponse(response, format, answer);
      answered(response);
    };
    const take = (body: Buffer | null) => {
      const call = callFrom(format, request.headers, messageIn(format, body, maxBytes), response);
      const answer = call && answerTo(method, call);
      if (answer === undefined) {
        giveBack(request, body);
        stock(request, response);
      } else if (isPromise(answer)) settle(answer, call!, write);
      else write(answer);
    };
    intake(request, ENVELOPE_BYTES + maxBytes, take, () => stock(request, response));
  };
}

function byPathOf(methods: readonly HotMethod[]): ReadonlyMap<string | undefined, HotMethod> {
  return new Map(methods.map((method) => [method.path, method]));
}

/** undefined: not the plain case. */
function formatOf(headers: IncomingHttpHeaders): Format | undefined {
  const format = FORMATS.get(headers["content-type"]);
  if (format === undefined) return undefined;
  const encoding = headers[format.encodingHeader];
  return encoding === undefined || encoding === "identity" ? format : undefined;
}

/** undefined: no message that is served here, or a timeout that can't be kept. */
function callFrom(
  format: Format,
  headers: IncomingHttpHeaders,
  message: Buffer | undefined,
  answered: EventEmitter,
): Call | undefined {
  const timeout = headers[format.timeoutHeader] as string | undefined;
  const timeoutMs = timeout === undefined ? undefined : timeoutFrom(format, timeout);
  if (message === undefined || Number.isNaN(timeoutMs)) return undefined;
  return new Call(format, message, headers, timeoutMs, answered);
}

/** undefined: malformed, compressed, oversize, or not the only one. */
function messageIn({ protocol }: Format, body: Buffer | null, maxBytes: number): Buffer | undefined {
  if (body === null) return protocol === "connect" ? EMPTY : undefined;
  if (protocol === "connect") return body.length <= maxBytes ? body : undefined;
  const length = body.length - ENVELOPE_BYTES;
  if (length < 0 || length > maxBytes || body[0] !== 0 || body.readUInt32BE(1) !== length) return undefined;
  return body.subarray(ENVELOPE_BYTES);
}

/** Not by `instanceof`: promises come from other realms too. */
function isPromise(answer: HotAnswer | Promise<HotAnswer>): answer is Promise<HotAnswer> {
  return "then" in answer;
}

function answerTo(method: HotMethod, call: Call): HotAnswer | Promise<HotAnswer> | undefined {
  try {
    return method.answer(call);
  } catch {
    return FAILED;
  }
}

/** A class, so that making one costs no closure. */
class Call implements HotCall {
  readonly json: boolean;
  readonly protocol: Protocol;
  readonly message: Buffer;
  readonly headers: IncomingHttpHeaders;
  readonly timeoutMs: number | undefined;
  private readonly answered: EventEmitter;
  private controller: AbortController | undefined;

  constructor(
    { json, protocol }: Format,
    message: Buffer,
    headers: IncomingHttpHeaders,
    timeoutMs: number | undefined,
    answered: EventEmitter,
  ) {
    this.json = json;
    this.protocol = protocol;
    this.message = message;
    this.headers = headers;
    this.timeoutMs = timeoutMs;
    this.answered = answered;
  }

  signal(): AbortSignal {
    if (this.controller === undefined) {
      this.controller = new AbortController();
      this.answered.once("close", () => this.abort());
    }
    return this.controller.signal;
  }

  abort(): void {
    this.controller?.abort();
  }
}

/** Writes what the promise gives, or DEADLINE_EXCEEDED when that comes too late. */
function settle(answer: Promise<HotAnswer>, call: Call, write: (answer: HotAnswer) => void): void {
  let open = true;
  const close = (final: HotAnswer) => {
    if (!open) return;
    open = false;
    clearTimeout(timer);
    write(final);
  };
  const { timeoutMs } = call;
  const timer =
    timeoutMs === undefined || timeoutMs > MAX_TIMEOUT_MS
      ? undefined
      : setTimeout(() => {
          close({ error: TIMED_OUT });
          call.abort();
        }, timeoutMs);
  answer.then(close, () => close(FAILED));
}

function writeStream(stream: ServerHttp2Stream, format: Format, answer: HotAnswer): void {
  if (stream.destroyed || stream.closed) return;
  if (format.protocol !== "grpc") {
    const { status, headers, bytes } = bodyOf(format, answer);
    stream.respond({ ":status": status, ...headers });
    stream.end(bytes);
    return;
  }
  const { error, trailers } = answer;
  stream.respond(headersOf(format, answer), WAIT_FOR_TRAILERS);
  if (error === undefined && trailers === undefined) setTrailers(stream, OK_TRAILERS);
  else {
    const status = error === undefined ? OK_TRAILERS : { ...NO_STORE, ...statusTrailers(error) };
    setTrailers(stream, { ...trailers, ...status });
  }
  if (error !== undefined) stream.end();
  else if (answer.roomy) stream.end(seal(answer.message!));
  else stream.end(envelope(answer.message ?? EMPTY));
}

function writeResponse(response: ServerResponse, format: Format, answer: HotAnswer): void {
  const { status, headers, bytes } = bodyOf(format, answer);
  if (format.protocol === "grpc-web") response.setHeader("content-length", bytes.length);
  response.writeHead(status, headers);
  response.end(bytes);
}

/** As on the stock path, what gRPC says beside an error stands in the trailers. */
function headersOf({ head, contentType }: Format, { headers, error }: HotAnswer): Headers {
  if (error !== undefined) return { "content-type": contentType, ...headers };
  return headers === undefined ? head : { ...head, ...headers };
}

interface Body {
  status: number;
  headers: Headers;
  bytes: Uint8Array;
}

/** gRPC-Web and Connect have everything in headers and body. */
function bodyOf(format: Format, answer: HotAnswer): Body {
  return format.protocol === "connect" ? connectBody(format, answer) : webBody(format, answer);
}

function webBody(format: Format, answer: HotAnswer): Body {
  const { error, trailers, message = EMPTY } = answer;
  const headers = headersOf(format, answer);
  if (error !== undefined) {
    const last = webTrailers({ ...trailers, ...NO_STORE, ...statusTrailers(error) });
    return { status: 200, headers, bytes: envelopeWithTrailers(undefined, last) };
  }
  const last = trailers === undefined ? OK_WEB_TRAILERS : webTrailers({ ...trailers, ...OK_TRAILERS });
  return { status: 200, headers, bytes: envelopeWithTrailers(message, last) };
}

function connectBody(format: Format, answer: HotAnswer): Body {
  const { error, trailers, message = EMPTY } = answer;
  if (error !== undefined) {
    const bytes = connectError(error);
    const all = { ...NO_STORE, "content-length": bytes.length, "content-type": "application/json" };
    return { status: connectStatus(error.code), headers: { ...all, ...answer.headers, ...trailers }, bytes };
  }
  const headers: Headers = {
    "cache-control": "no-store",
    "content-length": message.length,
    "content-type": format.contentType,
  };
  if (answer.headers !== undefined) Object.assign(headers, answer.headers);
  for (const name in trailers) headers[`trailer-${name}`] = trailers[name]!;
  return { status: 200, headers, bytes: message };
}
