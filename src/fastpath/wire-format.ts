import { ENVELOPE_BYTES, type Protocol, type TransportRefusals, type WireError } from "./fast-method.ts";

export type Headers = Record<string, string | number>;

/** How one content type is read and answered. */
export interface Format {
  protocol: Protocol;
  json: boolean;
  /** Of the answer; the same that Node's own server gives. */
  contentType: string;
  /** Headers of an answer that adds none. */
  head: Headers;
  /** Names what the message was compressed with. */
  encodingHeader: "grpc-encoding" | "content-encoding";
  timeoutHeader: "grpc-timeout" | "connect-timeout-ms";
}

function format(protocol: Protocol, json: boolean, contentType: string): Format {
  const [encodingHeader, timeoutHeader] =
    protocol === "connect"
      ? (["content-encoding", "connect-timeout-ms"] as const)
      : (["grpc-encoding", "grpc-timeout"] as const);
  const head = { "cache-control": "no-store", "content-type": contentType };
  return { protocol, json, contentType, head, encodingHeader, timeoutHeader };
}

/** By content type, spelled as clients spell it; other spellings are Node's own server's. */
export const FORMATS: ReadonlyMap<string | undefined, Format> = new Map<string, Format>([
  ["application/grpc", format("grpc", false, "application/grpc+proto")],
  ["application/grpc+proto", format("grpc", false, "application/grpc+proto")],
  ["application/grpc+json", format("grpc", true, "application/grpc+json")],
  ["application/grpc-web", format("grpc-web", false, "application/grpc-web+proto")],
  ["application/grpc-web+proto", format("grpc-web", false, "application/grpc-web+proto")],
  ["application/grpc-web+json", format("grpc-web", true, "application/grpc-web+json")],
  ["application/proto", format("connect", false, "application/proto")],
  ["application/json", format("connect", true, "application/json")],
  // As .NET, Java and PowerShell send it.
  ["application/json; charset=utf-8", format("connect", true, "application/json")],
]);

/** Flags of an envelope. */
export const COMPRESSED_FLAG = 1;
const TRAILER_FLAG = 0x80;

export function envelope(message: Uint8Array): Buffer {
  const framed = Buffer.allocUnsafe(ENVELOPE_BYTES + message.length);
  putEnvelope(framed, 0, 0, message);
  return framed;
}

/** gRPC-Web has its trailers in a second envelope. */
export function envelopeWithTrailers(message: Uint8Array | undefined, trailers: Uint8Array): Buffer {
  const start = message === undefined ? 0 : ENVELOPE_BYTES + message.length;
  const framed = Buffer.allocUnsafe(start + ENVELOPE_BYTES + trailers.length);
  if (message !== undefined) putEnvelope(framed, 0, 0, message);
  putEnvelope(framed, start, TRAILER_FLAG, trailers);
  return framed;
}

function putEnvelope(target: Buffer, at: number, flags: number, content: Uint8Array): void {
  target.set(content, putEnvelopeHead(target, at, content.length, flags));
}

/** Returns where the content begins. */
export function putEnvelopeHead(target: Buffer, at: number, length: number, flags = 0): number {
  target[at] = flags;
  target[at + 1] = length >>> 24;
  target[at + 2] = length >>> 16;
  target[at + 3] = length >>> 8;
  target[at + 4] = length;
  return at + ENVELOPE_BYTES;
}

/** Bytes of the content behind the head at `at`. */
export function envelopeLength(bytes: Uint8Array, at = 0): number {
  return bytes[at + 1]! * 0x1000000 + ((bytes[at + 2]! << 16) | (bytes[at + 3]! << 8) | bytes[at + 4]!);
}

export function webTrailers(trailers: Record<string, string>): Buffer {
  const lines = Object.entries(statusFirst(trailers)).map(([name, value]) => `${name}: ${value}\r\n`);
  return Buffer.from(lines.join(""), "latin1");
}

/** Of Node's timers: a longer one ends at once. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;
export const EMPTY: Buffer = Buffer.alloc(0);
export const OK_TRAILERS = { "grpc-status": "0" };

/** Where nobody has better words. */
export const PLAIN_REFUSALS: TransportRefusals = {
  timedOut: { code: 4, message: "the operation timed out", details: [] },
  stopping: { code: 14, message: "The service is stopping. Open the stream again.", details: [] },
  tooManyCalls: { code: 8, message: "There are too many calls at once on this connection.", details: [] },
  tooManyBytes: { code: 8, message: "There are too many large requests at once.", details: [] },
};

const UNIT_MS: Record<string, number> = { H: 3_600_000, M: 60_000, S: 1_000, m: 1, u: 1e-3, n: 1e-6 };

/** The header's milliseconds; NaN when it is none that is served here: malformed, or so short that it has passed. */
export function timeoutFrom({ timeoutHeader }: Format, text: string): number {
  const timeoutMs = readTimeout(timeoutHeader, text);
  return timeoutMs >= 1 ? timeoutMs : Number.NaN;
}

/**
 * The header's milliseconds, no more than a timer can count; NaN when it is malformed. Of any number of digits: clients write
 * nine and more, though gRPC has eight.
 */
export function readTimeout(header: Format["timeoutHeader"], text: string): number {
  const isGrpc = header === "grpc-timeout";
  const value = digits(text, isGrpc ? text.length - 1 : text.length);
  const unitMs = isGrpc ? (UNIT_MS[text.charAt(text.length - 1)] ?? Number.NaN) : 1;
  return Math.min(value * unitMs, MAX_TIMEOUT_MS);
}

function digits(text: string, count: number): number {
  if (count < 1) return Number.NaN;
  let value = 0;
  for (let index = 0; index < count; index++) {
    const digit = text.charCodeAt(index) - 48;
    if (digit < 0 || digit > 9) return Number.NaN;
    value = value * 10 + digit;
  }
  return value;
}

/** The end of a call, in gRPC's trailers or gRPC-Web's last envelope; in gRPC's order. */
export function statusTrailers(error: WireError): Record<string, string> {
  const trailers: Record<string, string> = {
    "grpc-status": String(error.code),
    "grpc-message": escapeMessage(error.message),
  };
  if (error.details.length > 0) trailers["grpc-status-details-bin"] = base64(encodeStatus(error));
  return trailers;
}

/** As gRPC has `grpc-message`: some clients undo less than all escapes, and show people the rest. No blank may stand at an end. */
export function escapeMessage(message: string): string {
  return message
    .toWellFormed()
    .replace(/[^\x20-\x24\x26-\x7e]+/g, encodeURIComponent)
    .replace(/^ | $/g, "%20");
}

const STATUS_FIRST = ["grpc-status", "grpc-message", "grpc-status-details-bin"];

/** The same trailers: the status, then all others by name. */
export function statusFirst<T>(trailers: Record<string, T>): Record<string, T> {
  const ordered: Record<string, T> = {};
  for (const name of STATUS_FIRST) if (name in trailers) ordered[name] = trailers[name]!;
  for (const name of Object.keys(trailers).sort()) ordered[name] = trailers[name]!;
  return ordered;
}

/** `google.rpc.Status` by hand: the transport knows no protobuf runtime. */
function encodeStatus({ code, message, details }: WireError): Buffer {
  const anys = details.map(({ type, value }) =>
    field(3, Buffer.concat([field(1, Buffer.from(`type.googleapis.com/${type}`)), field(2, value)])),
  );
  return Buffer.concat([Buffer.of(0x08, code), field(2, Buffer.from(message)), ...anys]);
}

/** A length-delimited field, left out when empty, as proto3 has it. */
function field(number: number, content: Uint8Array): Buffer {
  if (content.length === 0) return Buffer.alloc(0);
  return Buffer.concat([Buffer.of((number << 3) | 2, ...varint(content.length)), content]);
}

function varint(value: number): number[] {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...varint(value >>> 7)];
}

/** Connect's JSON error. */
export function connectError({ code, message, details }: WireError): Buffer {
  const body = {
    code: codeName(code),
    ...(message !== "" && { message }),
    ...(details.length > 0 && {
      details: details.map(({ type, value, debug }) => ({
        type,
        ...(debug !== undefined && { debug }),
        value: base64(value),
      })),
    }),
  };
  return Buffer.from(JSON.stringify(body));
}

/** A canonical code in lower case, such as `deadline_exceeded`. */
export function codeName(code: number): string {
  return CONNECT_CODES[code]?.name ?? String(code);
}

export function connectStatus(code: number): number {
  return CONNECT_CODES[code]?.status ?? 500;
}

const CONNECT_CODES: Record<number, { name: string; status: number }> = {
  1: { name: "canceled", status: 499 },
  2: { name: "unknown", status: 500 },
  3: { name: "invalid_argument", status: 400 },
  4: { name: "deadline_exceeded", status: 504 },
  5: { name: "not_found", status: 404 },
  6: { name: "already_exists", status: 409 },
  7: { name: "permission_denied", status: 403 },
  8: { name: "resource_exhausted", status: 429 },
  9: { name: "failed_precondition", status: 400 },
  10: { name: "aborted", status: 409 },
  11: { name: "out_of_range", status: 400 },
  12: { name: "unimplemented", status: 501 },
  13: { name: "internal", status: 500 },
  14: { name: "unavailable", status: 503 },
  15: { name: "data_loss", status: 500 },
  16: { name: "unauthenticated", status: 401 },
};

/** Without padding, as binary headers and Connect's details are written. */
function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("base64").replace(/=+$/, "");
}

/**
 * `piece` behind `body`, which is undefined or comes from here. A buffer of its own: a piece would keep alive all that it came
 * with. Room is doubled: to copy all for each of many small pieces would let one client take all of the processor.
 */
export function append(body: Buffer | undefined, piece: Buffer): Buffer {
  const start = body?.length ?? 0;
  const length = start + piece.length;
  if (body !== undefined && body.buffer.byteLength >= length) {
    Buffer.from(body.buffer).set(piece, start);
    return Buffer.from(body.buffer, 0, length);
  }
  const roomier = Buffer.allocUnsafeSlow(2 * length);
  if (body !== undefined) roomier.set(body);
  roomier.set(piece, start);
  return roomier.subarray(0, length);
}
