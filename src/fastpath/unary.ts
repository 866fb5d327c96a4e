import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import {
  ENVELOPE_BYTES,
  type FastAnswer,
  type FastCall,
  type FastMethod,
  type Peer,
  type Protocol,
  type WireError,
} from "./fast-method.ts";
import { gunzipped } from "./gzip.ts";
import type { HeldBytes } from "./held-bytes.ts";
import { peerOf } from "./peer.ts";
import { giveBack, readBody } from "./request-body.ts";
import { unitsOf } from "./share.ts";
import {
  COMPRESSED_FLAG,
  connectError,
  connectStatus,
  EMPTY,
  envelopeLength,
  envelopeWithTrailers,
  FORMATS,
  type Format,
  type Headers,
  OK_TRAILERS,
  statusTrailers,
  timeoutFrom,
  webTrailers,
} from "./wire-format.ts";

export type RequestListener = (request: IncomingMessage, response: ServerResponse) => void;

interface FastRequestParts {
  methods: FastMethods;
  otherwise: RequestListener;
  answered: (response: ServerResponse) => void;
  held: HeldBytes;
}

const NO_STORE = { "cache-control": "no-store" };
const OK_WEB_TRAILERS = webTrailers(OK_TRAILERS);
const FAILED: FastAnswer = { error: { code: 13, message: "internal error", details: [] } };

/** The fast methods, as both protocols ask for them. */
export interface FastMethods {
  find(path: string | undefined): FastMethod | undefined;
  /** Whether a request is left to Node's own server for a header that it has. */
  isUnusual(headers: IncomingHttpHeaders): boolean;
  maxBytesOf(method: FastMethod): number;
  /** From HTTP/2's headers, names and values by turns. undefined: not the plain case. */
  recognise(list: string[]): Recognised | undefined;
  answer(method: FastMethod, call: Call): FastAnswer | Promise<FastAnswer> | undefined;
  /** Writes what the promise gives, or DEADLINE_EXCEEDED when that comes too late. `over`: called when no work goes on, which may be later. */
  settle(answer: Promise<FastAnswer>, call: Call, write: (answer: FastAnswer) => void, over?: () => void): void;
}

/** A call as its headers describe it. */
export interface Recognised {
  method: FastMethod;
  format: Format;
  /** Its message may be compressed. */
  isGzip: boolean;
  headers: IncomingHttpHeaders;
  timeoutMs: number | undefined;
  contentLength: number | undefined;
  /** The headers as they came, names and values by turns. */
  list: string[];
}

/** `unusual`: names of headers, each in lower case, whose requests are not the plain case. */
export function createFastMethods(
  methods: readonly FastMethod[],
  maxMessageBytes: number,
  timedOut: WireError,
  unusual: readonly string[] = [],
): FastMethods {
  const byPath: ReadonlyMap<string | undefined, FastMethod> = new Map(methods.map((method) => [method.path, method]));
  const isUnusual = (headers: IncomingHttpHeaders) => unusual.some((name) => headers[name] !== undefined);
  return {
    find: (path) => byPath.get(path),
    isUnusual,
    maxBytesOf: (method) => method.maxMessageBytes ?? maxMessageBytes,
    answer: answerTo,
    settle: (answer, call, write, over) => settle(answer, call, timedOut, write, over),
    recognise(list) {
      const headers = toHeaders(list);
      const method = headers?.[":method"] === "POST" ? byPath.get(headers[":path"] as string | undefined) : undefined;
      const format = method && FORMATS.get(headers!["content-type"]);
      const coding = format && codingOf(format, headers!);
      if (format === undefined || coding === undefined || headers?.[":scheme"] === undefined) return undefined;
      if (isUnusual(headers)) return undefined;
      const timeoutMs = timeoutOf(format, headers);
      const length = headers["content-length"];
      if (Number.isNaN(timeoutMs) || (length !== undefined && !/^\d{1,9}$/.test(length))) return undefined;
      const contentLength = length === undefined ? undefined : Number(length);
      return { method: method!, format, isGzip: coding === "gzip", headers, timeoutMs, contentLength, list };
    },
  };
}

/** Names that belong to a connection, or that may stand only once: what has them otherwise is not plain. */
const UNUSUAL = new Set([
  "connection",
  "keep-alive",
  "proxy-connection",
  "transfer-encoding",
  "upgrade",
  "expect",
  "trailer",
]);
const SINGLE = new Set([
  ...["authorization", "content-encoding", "content-length", "content-type", "connect-timeout-ms", "grpc-encoding"],
  ...["grpc-timeout", "host", "te", "user-agent", "x-request-id"],
]);
const NAME = /^:?[!#$%&'*+.^_`|~0-9a-z-]+$/;
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;

/** As node:http2 has them. undefined: not the plain case. */
export function toHeaders(list: readonly string[]): IncomingHttpHeaders | undefined {
  const headers: Record<string, string> = Object.create(null);
  let isRegular = false;
  for (let index = 0; index < list.length; index += 2) {
    const name = list[index]!;
    const value = list[index + 1]!;
    const isPseudo = name.charCodeAt(0) === 58;
    if (isPseudo && (isRegular || !PSEUDO.has(name))) return undefined;
    isRegular ||= !isPseudo;
    if (!NAME.test(name) || !VALUE.test(value) || UNUSUAL.has(name)) return undefined;
    const earlier = headers[name];
    if (earlier === undefined) headers[name] = value;
    else if (isPseudo || SINGLE.has(name)) return undefined;
    else headers[name] = `${earlier}${name === "cookie" ? ";" : ","} ${value}`;
  }
  return headers.te === undefined || headers.te === "trailers" ? headers : undefined;
}

const PSEUDO = new Set([":method", ":path", ":scheme", ":authority"]);

/** Serves fast methods over HTTP/1.1, where gRPC proper can't be spoken, and hands everything else to `otherwise` as if it had not been touched. */
export function serveFastRequests({ methods, otherwise, answered, held }: FastRequestParts): RequestListener {
  return (request: IncomingMessage, response: ServerResponse): void => {
    const method = request.method === "POST" ? methods.find(request.url) : undefined;
    const format = method && FORMATS.get(request.headers["content-type"]);
    const coding = format && codingOf(format, request.headers);
    const isPlain = coding !== undefined && format?.protocol !== "grpc" && !methods.isUnusual(request.headers);
    if (method === undefined || format === undefined || !isPlain) {
      otherwise(request, response);
      return;
    }
    const maxBytes = methods.maxBytesOf(method);
    const write = (answer: FastAnswer) => {
      writeResponse(response, format, answer);
      answered(response);
    };
    const take = (body: Buffer | null) => {
      const call = callFrom(format, request, messageIn(format, coding === "gzip", body, maxBytes), response);
      const answer = call && answerTo(method, call);
      if (answer === undefined) {
        giveBack(request, body);
        otherwise(request, response);
      } else if (isPromise(answer)) methods.settle(answer, call!, write);
      else write(answer);
    };
    readBody(request, ENVELOPE_BYTES + maxBytes, held, take, () => otherwise(request, response));
  };
}

/** undefined: none that is read here. */
function codingOf({ encodingHeader }: Format, headers: IncomingHttpHeaders): "identity" | "gzip" | undefined {
  const coding = headers[encodingHeader] ?? "identity";
  return coding === "identity" || coding === "gzip" ? coding : undefined;
}

/** undefined: no message that is served here, or a timeout that can't be kept. */
function callFrom(
  format: Format,
  { headers, socket }: IncomingMessage,
  message: Buffer | undefined,
  response: ServerResponse,
): Call | undefined {
  const timeoutMs = timeoutOf(format, headers);
  if (message === undefined || Number.isNaN(timeoutMs)) return undefined;
  return new Call(format, message, headers, timeoutMs, peerOf(socket), response);
}

/** NaN: none that can be kept. */
function timeoutOf(format: Format, headers: IncomingHttpHeaders): number | undefined {
  const timeout = headers[format.timeoutHeader] as string | undefined;
  return timeout === undefined ? undefined : timeoutFrom(format, timeout);
}

/** undefined: malformed, compressed in another way than `gunzipped` reads, oversize, or not the only one. */
export function messageIn(
  { protocol }: Format,
  isGzip: boolean,
  body: Buffer | null,
  maxBytes: number,
): Buffer | undefined {
  if (body === null) return protocol === "connect" && !isGzip ? EMPTY : undefined;
  if (protocol === "connect") {
    if (isGzip) return gunzipped(body, maxBytes);
    return body.length <= maxBytes ? body : undefined;
  }
  const length = body.length - ENVELOPE_BYTES;
  if (length < 0 || length > maxBytes || envelopeLength(body) !== length) return undefined;
  const content = body.subarray(ENVELOPE_BYTES);
  if (body[0] === 0) return content;
  return body[0] === COMPRESSED_FLAG && isGzip ? gunzipped(content, maxBytes) : undefined;
}

/** The cost of inflating a message, beyond its bytes. */
export function unitsToInflate(message: Buffer): number {
  return INFLATE_UNITS + unitsOf(message.length);
}

const INFLATE_UNITS = 8;

/** Not by `instanceof`: promises come from other realms too. */
export function isPromise(answer: FastAnswer | Promise<FastAnswer>): answer is Promise<FastAnswer> {
  return "then" in answer;
}

function answerTo(method: FastMethod, call: Call): FastAnswer | Promise<FastAnswer> | undefined {
  try {
    return method.answer(call);
  } catch {
    return FAILED;
  }
}

/** A class, so that making one costs no closure. */
export class Call implements FastCall {
  readonly json: boolean;
  readonly protocol: Protocol;
  readonly message: Buffer;
  readonly headers: IncomingHttpHeaders;
  readonly timeoutMs: number | undefined;
  readonly peer: Peer | undefined;
  private readonly response: ServerResponse | undefined;
  private controller: AbortController | undefined;

  constructor(
    { json, protocol }: Format,
    message: Buffer,
    headers: IncomingHttpHeaders,
    timeoutMs: number | undefined,
    peer: Peer | undefined,
    response?: ServerResponse,
  ) {
    this.json = json;
    this.protocol = protocol;
    this.message = message;
    this.headers = headers;
    this.timeoutMs = timeoutMs;
    this.peer = peer;
    this.response = response;
  }

  signal(): AbortSignal {
    if (this.controller === undefined) {
      this.controller = new AbortController();
      this.response?.once("close", () => this.abort());
    }
    return this.controller.signal;
  }

  /** At the deadline, or when the caller went away. */
  abort(): void {
    this.controller?.abort();
  }
}

function settle(
  answer: Promise<FastAnswer>,
  call: Call,
  timedOut: WireError,
  write: (answer: FastAnswer) => void,
  over: () => void = () => {},
): void {
  let open = true;
  const close = (final: FastAnswer) => {
    if (!open) return;
    open = false;
    clearTimeout(timer);
    write(final);
  };
  const { timeoutMs } = call;
  const timer =
    timeoutMs === undefined
      ? undefined
      : setTimeout(() => {
          close({ error: timedOut });
          call.abort();
        }, timeoutMs);
  const end = (final: FastAnswer) => {
    over();
    close(final);
  };
  answer.then(end, () => end(FAILED));
}

function writeResponse(response: ServerResponse, format: Format, answer: FastAnswer): void {
  const { status, headers, bytes } = bodyOf(format, answer);
  if (format.protocol === "grpc-web") response.setHeader("content-length", bytes.length);
  response.writeHead(status, headers);
  response.end(bytes);
}

/** As on Node's own server, what gRPC says beside an error stands in the trailers. */
export function headersOf({ head, contentType }: Format, { headers, error }: FastAnswer): Headers {
  if (error !== undefined) return { "content-type": contentType, ...headers };
  return headers === undefined ? head : { ...head, ...headers };
}

interface Body {
  status: number;
  headers: Headers;
  bytes: Uint8Array;
}

/** gRPC-Web and Connect have everything in headers and body. */
export function bodyOf(format: Format, answer: FastAnswer): Body {
  return format.protocol === "connect" ? connectBody(format, answer) : webBody(format, answer);
}

function webBody(format: Format, answer: FastAnswer): Body {
  const { error, trailers, message = EMPTY } = answer;
  const headers = headersOf(format, answer);
  if (error !== undefined) {
    const last = webTrailers({ ...trailers, ...NO_STORE, ...statusTrailers(error) });
    return { status: 200, headers, bytes: envelopeWithTrailers(undefined, last) };
  }
  const last = trailers === undefined ? OK_WEB_TRAILERS : webTrailers({ ...trailers, ...OK_TRAILERS });
  return { status: 200, headers, bytes: envelopeWithTrailers(message, last) };
}

function connectBody(format: Format, answer: FastAnswer): Body {
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
