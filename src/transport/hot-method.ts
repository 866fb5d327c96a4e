import type { IncomingHttpHeaders } from "node:http";

/**
 * A unary method that is asked so often that it is served without Connect. Calls that are out of the ordinary in any way
 * (compression, GET, streaming content types, malformed frames, oversize …) never come here: the stock path takes them.
 */
export interface HotMethod {
  /** `/latchkey.v1.ApiKeyService/Verify` */
  path: string;
  /**
   * Called once the request's one message is whole. What is returned at once is written at once; `undefined` leaves the
   * call to the stock path, from its beginning. Must not throw or reject: the caller would be told INTERNAL.
   */
  answer(call: HotCall): HotAnswer | Promise<HotAnswer> | undefined;
}

export type Protocol = "grpc" | "grpc-web" | "connect";

export interface HotCall {
  /** The message alone, without its envelope: protobuf, or JSON as it came. Not to be kept: it is a part of a larger buffer. */
  readonly message: Buffer;
  readonly json: boolean;
  readonly protocol: Protocol;
  /** Pseudo-headers included over HTTP/2. */
  readonly headers: IncomingHttpHeaders;
  /** What the caller gives it, from now on; at least 1. */
  readonly timeoutMs: number | undefined;
  /** Aborted at the deadline, or when the caller goes away before the answer. Made when first asked for. */
  signal(): AbortSignal;
}

/** Names of headers and trailers are in lower case. `cache-control: no-store` is added to each answer. */
export interface HotAnswer {
  /** Encoded as the request was; not needed with an error. */
  message?: Uint8Array;
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

export interface WireDetail {
  /** Full name of the message, such as `google.rpc.ErrorInfo`. */
  type: string;
  value: Uint8Array;
  /** The detail in JSON, for readers of Connect's errors. */
  debug?: unknown;
}
