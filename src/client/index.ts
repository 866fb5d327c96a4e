import type { DescService } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "#gen/google/rpc/error_details_pb";
import { AdminService } from "#gen/latchkey/v1/admin_service_pb";
import { ApiKeyService } from "#gen/latchkey/v1/api_key_service_pb";

export * from "#gen/latchkey/v1/admin_service_pb";
export * from "#gen/latchkey/v1/api_key_service_pb";
export { ErrorReason } from "#gen/latchkey/v1/error_reason_pb";
export { KeyRefused, requireKey } from "./require-key.ts";
export { type WatchKeysOptions, watchKeys } from "./watch-keys.ts";

export interface LatchkeyClientOptions {
  /** For example `http://127.0.0.1:8080`. */
  baseUrl: string;
  /** The bearer token: a user token, or a service token for Verify and Watch. A function is asked at each call. */
  token?: string | (() => string | Promise<string>);
  /** Default: `grpc`. */
  protocol?: "grpc" | "connect";
  /** Default: 5,000. A call may override it. */
  timeoutMs?: number;
  /** For `https`, PEM: whom to trust instead of the well-known authorities, and this side's own certificate and key. */
  tls?: { ca?: string | Buffer; cert?: string | Buffer; key?: string | Buffer } | undefined;
}

/** A typed client of `latchkey.v1.ApiKeyService`. Calls fail with a ConnectError; `describeError` tells the reason. */
export function createLatchkeyClient(options: LatchkeyClientOptions): Client<typeof ApiKeyService> {
  return clientOf(ApiKeyService, options);
}

/** As `createLatchkeyClient`, of `latchkey.v1.AdminService`; the token is an admin's. */
export function createLatchkeyAdminClient(options: LatchkeyClientOptions): Client<typeof AdminService> {
  return clientOf(AdminService, options);
}

function clientOf<Service extends DescService>(service: Service, options: LatchkeyClientOptions): Client<Service> {
  const { baseUrl, token, protocol = "grpc", timeoutMs = 5_000, tls } = options;
  const authorize: Interceptor = (next) => async (request) => {
    const value = typeof token === "function" ? await token() : token;
    if (value !== undefined) request.header.set("authorization", `Bearer ${sendable(value)}`);
    return next(request);
  };
  const common = { baseUrl, interceptors: [authorize], defaultTimeoutMs: timeoutMs, ...(tls && { nodeOptions: tls }) };
  return createClient(
    service,
    protocol === "grpc" ? createGrpcTransport(common) : createConnectTransport({ ...common, httpVersion: "1.1" }),
  );
}

/** A value that a header can't hold would be quoted by the error of who sets it. */
function sendable(token: string): string {
  if (/^[\x21-\x7e]+$/.test(token)) return token;
  throw new ConnectError("The token must be one line of visible ASCII characters.", Code.InvalidArgument);
}

export interface LatchkeyError {
  /** The word of `ErrorReason`, for example `KEY_EXISTS`; undefined when the service was not reached. */
  reason: string | undefined;
  /** The canonical code, for example `AlreadyExists`. */
  code: string;
  message: string;
  fields: { field: string; description: string }[];
  /** Set when the call may be repeated, after this time. */
  retryAfterMs: number | undefined;
}

/** The reason, code, fields and pause of a failed call. */
export function describeError(error: unknown): LatchkeyError {
  const failure = ConnectError.from(error);
  const [info] = failure.findDetails(ErrorInfoSchema);
  const [bad] = failure.findDetails(BadRequestSchema);
  const [retry] = failure.findDetails(RetryInfoSchema);
  const delay = retry?.retryDelay;
  return {
    reason: info?.reason,
    code: Code[failure.code] ?? "Unknown",
    message: failure.rawMessage,
    fields: (bad?.fieldViolations ?? []).map(({ field, description }) => ({ field, description })),
    retryAfterMs: retry && (delay ? Number(delay.seconds) * 1_000 + delay.nanos / 1_000_000 : 0),
  };
}
