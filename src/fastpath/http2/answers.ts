import { ENVELOPE_BYTES, type FastAnswer, type WireError } from "../fast-method.ts";
import { httpDate } from "../http1/http-date.ts";
import { bodyOf, headersOf } from "../unary.ts";
import {
  connectStatus,
  EMPTY,
  envelope,
  FORMATS,
  type Format,
  type Headers,
  OK_TRAILERS,
  putEnvelopeHead,
  statusFirst,
  statusTrailers,
} from "../wire-format.ts";
import { Flag, FRAME_HEAD_BYTES, MAX_FRAME_BYTES, putHead, Type } from "./frames.ts";
import { encodeFields } from "./hpack.ts";
import type { Output } from "./output.ts";
import type { Sender } from "./sender.ts";
import type { StreamWindow } from "./windows.ts";

/** Answers a call, and ends its stream. */
export function writeAnswer(
  sender: Sender,
  output: Output,
  of: StreamWindow,
  format: Format,
  answer: FastAnswer,
): void {
  if (format.protocol !== "grpc") {
    const { status, headers, bytes } = bodyOf(format, answer);
    const block = encodeFields([":status", String(status), ...fieldsOf(headers), "date", httpDate()]);
    output.putHeaders(bytes.length === 0 ? Flag.END_STREAM : 0, of.id, block);
    if (bytes.length > 0) sender.send(of, asBuffer(bytes), undefined);
    return;
  }
  const { error, trailers, message } = answer;
  if (error === undefined && trailers === undefined && answer.headers === undefined && message !== undefined) {
    if (writePlain(sender, output, of, format, message, answer.roomy === true)) return;
  }
  const head = encodeFields([":status", "200", ...fieldsOf(headersOf(format, answer)), "date", httpDate()]);
  const status = error === undefined ? OK_TRAILERS : { "cache-control": "no-store", ...statusTrailers(error) };
  const last = encodeFields(fieldsOf(statusFirst<string | number>({ ...trailers, ...status })));
  const content = answer.roomy ? message!.subarray(ENVELOPE_BYTES) : (message ?? EMPTY);
  output.putHeaders(0, of.id, head);
  sender.send(of, error === undefined ? envelope(content) : EMPTY, last);
}

/** The usual answer, put where it is sent from. False when it is not to be sent in one go. */
function writePlain(
  sender: Sender,
  output: Output,
  { id, credit }: StreamWindow,
  { contentType }: Format,
  message: Uint8Array,
  roomy: boolean,
): boolean {
  const dataBytes = message.length + (roomy ? 0 : ENVELOPE_BYTES);
  if (output.tableShrunk) return false;
  if (dataBytes > MAX_FRAME_BYTES || dataBytes > sender.roomOf(credit)) return false;
  const head = plainHead(contentType);
  const size = 3 * FRAME_HEAD_BYTES + head.length + dataBytes + OK_BLOCK.length;
  const { slab, start } = output.reserve(size);
  let at = putHead(slab, start, head.length, Type.HEADERS, Flag.END_HEADERS, id);
  slab.set(head, at);
  at = putHead(slab, at + head.length, dataBytes, Type.DATA, 0, id);
  if (!roomy) at = putEnvelopeHead(slab, at, message.length);
  slab.set(message, at);
  if (roomy) putEnvelopeHead(slab, at, message.length - ENVELOPE_BYTES);
  at += message.length;
  at = putHead(slab, at, OK_BLOCK.length, Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, id);
  slab.set(OK_BLOCK, at);
  sender.window.sent(dataBytes);
  return true;
}

/** Refuses a call of whatever protocol in headers alone, for which no window is needed. */
export function writeRefusal(output: Output, id: number, list: readonly string[], error: WireError): void {
  const type = list.find((_, index) => index % 2 === 1 && list[index - 1] === "content-type") ?? "";
  const isGrpc = type.startsWith("application/grpc");
  const contentType = FORMATS.get(type)?.contentType ?? "application/grpc";
  const fields: Headers = isGrpc
    ? { "content-type": contentType, "cache-control": "no-store", ...statusTrailers(error) }
    : { "content-length": 0, "cache-control": "no-store", "retry-after": 1 };
  const status = isGrpc ? 200 : connectStatus(error.code);
  output.putHeaders(
    Flag.END_STREAM,
    id,
    encodeFields([":status", String(status), ...fieldsOf(fields), "date", httpDate()]),
  );
}

/** The answer to a stream of messages begins. */
export function putStreamHead(output: Output, id: number): void {
  output.putHeaders(0, id, plainHead(GRPC.contentType));
}

const GRPC = FORMATS.get("application/grpc")!;
const OK_BLOCK = encodeFields(fieldsOf(OK_TRAILERS));
let plainHeads = new Map<string, Buffer>();
let plainHeadsDate = "";

/** The headers of a gRPC answer that adds none. */
function plainHead(contentType: string): Buffer {
  const date = httpDate();
  if (date !== plainHeadsDate) {
    plainHeadsDate = date;
    plainHeads = new Map();
  }
  let head = plainHeads.get(contentType);
  if (head === undefined) {
    const { head: headers } = FORMATS.get(contentType)!;
    head = encodeFields([":status", "200", ...fieldsOf(headers), "date", date]);
    plainHeads.set(contentType, head);
  }
  return head;
}

export function fieldsOf(headers: Headers): string[] {
  return Object.entries(headers).flatMap(([name, value]) => [name, String(value)]);
}

export function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}
