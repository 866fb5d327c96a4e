import type { IncomingHttpHeaders } from "node:http";

/**
 * A unary method that is asked so often that it is served without Connect. Calls that are out of the ordinary in any way
 * (compression, GET, streaming content types, malformed frames, oversize …) never come here: Node's own server takes them.
 */
export interface FastMethod {
  /** Bytes of its largest message, where that is more than the listener's. */
  maxMessageBytes?: number;
  /** Such as `/package.Service/Method`. */
  path: string;
  /**
   * Called once the request's one message is whole. What is returned at once is written at once; `undefined` leaves the
   * call to Node's own server, from its beginning. Must not throw or reject: the caller would get INTERNAL.
   */
  answer(call: FastCall): FastAnswer | Promise<FastAnswer> | undefined;
}

/** A bidirectional stream of messages that have one answer each; served without Connect over gRPC in protobuf. */
export interface FastStreamMethod<Request = unknown> {
  path: string;
  open(headers: IncomingHttpHeaders, peer: Peer | undefined): FastStreamSession<Request>;
}

/** One stream. Exactly one of `ended`, `left` and `failed` is called, once, and last. */
export interface FastStreamSession<Request = unknown> {
  /** Throws or rejects when the caller may not have the stream. */
  admit(): Promise<void>;
  /** The request in one message, without its envelope. Throws BrokenStream: what came before is still answered. */
  read(message: Buffer): Request;
  /** Called with all requests that came in one go; returns their answers in order, each in a gRPC envelope. Never called again before it has answered. */
  answer(requests: readonly Request[]): Uint8Array | Promise<Uint8Array>;
  ended(): void;
  /** The caller went away, ran out of time, or was asked to go: 1, 4 or 14, as in gRPC. */
  left(code: number): void;
  /** Something threw, or there was a BrokenStream. Returns the caller's error. */
  failed(error: unknown): WireError;
}

/** Bytes that are no sequence of messages. */
export class BrokenStream extends Error {
  override readonly name = "BrokenStream";

  constructor(
    message: string,
    readonly fault: "malformed" | "too large" = "malformed",
  ) {
    super(message);
  }
}

/** Before each message of gRPC and gRPC-Web: a byte of flags, four of length. */
export const ENVELOPE_BYTES = 5;

/** Whoever is at the other end of a connection, by a certificate that was verified. */
export interface Peer {
  /** `uri:…`, `dns:…` (in lower case) and `cn:…`, of the certificate. */
  readonly names: readonly string[];
  /** Its end, of `Date.now()`: a connection may outlive it. */
  readonly validUntilMs: number;
}

export type Protocol = "grpc" | "grpc-web" | "connect";

export interface FastCall {
  /** The message alone, without its envelope: protobuf, or JSON as it came. Not to be kept: it is a part of a larger buffer. */
  readonly message: Buffer;
  readonly json: boolean;
  readonly protocol: Protocol;
  /** Pseudo-headers included over HTTP/2. */
  readonly headers: IncomingHttpHeaders;
  readonly peer: Peer | undefined;
  /** Time that the caller gives it, from now on; at least 1. */
  readonly timeoutMs: number | undefined;
  /** Aborted at the deadline, or when the caller goes away before the answer. Made when first asked for. */
  signal(): AbortSignal;
}

/** Names of headers and trailers are in lower case. `cache-control: no-store` is added to each answer. */
export interface FastAnswer {
  /** Encoded as the request was; not needed with an error. */
  message?: Uint8Array;
  /** The message begins with `ENVELOPE_BYTES` of room for its envelope, which spares a copy. Only for gRPC. */
  roomy?: boolean;
  error?: WireError;
  headers?: Record<string, string>;
  /** With an error: its metadata. */
  trailers?: Record<string, string>;
}

export interface WireError {
  /** 1 to 16, as in gRPC. */
  code: number;
  message: string;
  details: WireDetail[];
}

interface WireDetail {
  /** Full name of the message, such as `google.rpc.ErrorInfo`. */
  type: string;
  value: Uint8Array;
  /** The detail in JSON, for readers of Connect's errors. */
  debug?: unknown;
}

/** Errors that the server sends by itself. */
export interface TransportRefusals {
  /** A call's deadline has passed. */
  timedOut: WireError;
  /** An open stream ends with the service. */
  stopping: WireError;
  /** A call is one too many on its connection. */
  tooManyCalls: WireError;
  /** The requests that are not whole hold too much. */
  tooManyBytes: WireError;
}
