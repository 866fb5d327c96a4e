import { setTimeout as sleep } from "node:timers/promises";
import { type DescMessage, fromBinary, fromJson, fromJsonString, type JsonValue } from "@bufbuild/protobuf";
import { base64Decode } from "@bufbuild/protobuf/wire";
import { type ContextKey, createContextKey, createContextValues } from "@connectrpc/connect";
import type { UniversalHandler, UniversalServerRequest } from "@connectrpc/connect/protocol";
import { compressionBrotli, compressionGzip } from "@connectrpc/connect-node";
import { ENVELOPE_BYTES } from "../../fastpath/fast-method.ts";
import type { HeldBytes } from "../../fastpath/held-bytes.ts";
import { envelopeLength } from "../../fastpath/wire-format.ts";
import { type FieldViolation, invalid, KeyError } from "../../keys/errors.ts";
import { tooMany } from "../errors.ts";
import { repeatedName } from "./repeated-names.ts";

/** Set on a request whose message can't be decoded: the interceptors refuse it before the handler runs. */
export const undecodable: ContextKey<KeyError | undefined> = createContextKey<KeyError | undefined>(undefined);

/**
 * Decodes a unary message before Connect does, so that a malformed one is INVALID_ARGUMENT with a reason in every
 * protocol. Connect says INTERNAL for malformed protobuf, takes unknown JSON fields in silence (`{"tll":"60s"}` would
 * make a permanent key), and repeats what V8 says of bad JSON, which quotes the input: it may hold a key.
 */
export function refuseUndecodable(handler: UniversalHandler, maxBytes: number, held: HeldBytes): UniversalHandler {
  if (handler.method.methodKind !== "unary") return handler;
  const { input } = handler.method;

  const strict = async (request: UniversalServerRequest) => {
    const { read, bytes, replay } = await readAtMost(request.body, maxBytes + ENVELOPE_BYTES, held);
    const message = read === "whole" ? await messageOf(request, bytes, maxBytes) : read;
    const fault = request.contextValues?.get(undecodable) ?? faultOf(input, message, maxBytes);
    if (read !== "whole") await readOn(replay);
    if (fault === undefined) return handler({ ...request, body: replay });
    const contextValues = (request.contextValues ?? createContextValues()).set(undecodable, fault);
    return handler({ ...request, ...emptyMessage(request), contextValues });
  };
  return Object.assign(strict, handler);
}

/** A body that Connect can't decode as it came: protobuf as it is, or nothing to make something of. */
type Arrived = Uint8Array | "too large" | "too many" | "undecodable";

/** Set on a request of a method that answers whatever comes; undefined: a message that was decoded. */
export const arrived: ContextKey<Arrived | undefined> = createContextKey<Arrived | undefined>(undefined);

/**
 * For a method that must answer whatever comes, since its callers take errors for something else. Its handler gets an empty
 * message where there is no other, and finds in `arrived` what there was.
 */
export function admitUndecodable(handler: UniversalHandler, maxBytes: number, held: HeldBytes): UniversalHandler {
  const admit = async (request: UniversalServerRequest) => {
    const { read, bytes, replay } = await readAtMost(request.body, maxBytes + ENVELOPE_BYTES, held);
    const message = read === "whole" ? await messageOf(request, bytes, maxBytes) : read;
    let what: Arrived | undefined;
    if (message === "too large" || message === "too many") what = message;
    else if (message === "unknown encoding" || request.contextValues?.get(undecodable)) what = "undecodable";
    else if (message !== undefined && decodingFault(handler.method.input, message) !== undefined) {
      what = message.json ? "undecodable" : message.bytes;
    }
    if (what === undefined) return handler({ ...request, body: replay });
    if (read !== "whole") await readOn(replay);
    const contextValues = (request.contextValues ?? createContextValues()).delete(undecodable).set(arrived, what);
    return handler({ ...request, ...emptyMessage(request), contextValues });
  };
  return Object.assign(admit, handler);
}

function faultOf(input: DescMessage, message: Unpacked, maxBytes: number): KeyError | undefined {
  if (message === "too large") return messageTooLarge(maxBytes);
  if (message === "too many") return tooMany("large requests at once");
  if (message === "unknown encoding") return unknownEncoding();
  return message && decodingFault(input, message);
}

function messageTooLarge(maxBytes: number): KeyError {
  return new KeyError("MESSAGE_TOO_LARGE", `The message has more than ${maxBytes} bytes.`);
}

/**
 * The unread rest of a message holds up all else on its connection, and Connect resets a stream that it has answered before
 * its end: what was not read of it then counts against the memory of its HTTP/2 session for good (Node 24), and soon its other
 * streams are refused. So the rest is read first, for a while; the transport's time limits end what goes on.
 */
async function readOn(body: AsyncIterable<Uint8Array>): Promise<void> {
  const toEnd = async () => {
    try {
      for await (const _ of body);
    } catch {
      // Whoever breaks off has nothing more to be read.
    }
  };
  await Promise.race([toEnd(), sleep(READ_ON_MS, undefined, { ref: false })]);
}

const READ_ON_MS = 1_000;

/** Of messages. */
export const COMPRESSIONS = [compressionGzip, compressionBrotli];
export const ENCODINGS: string[] = COMPRESSIONS.map(({ name }) => name);

export function unknownEncoding(): KeyError {
  return new KeyError("UNIMPLEMENTED", `The message is compressed by none of ${ENCODINGS.join(", ")}.`);
}

interface Message {
  bytes: Uint8Array;
  json: boolean;
}

type Unpacked = Message | "too large" | "too many" | "unknown encoding" | undefined;

/** The message's bytes, or undefined where Connect is to say what is wrong (framing, broken compression, content type). */
async function messageOf(
  request: UniversalServerRequest,
  body: Uint8Array | undefined,
  maxBytes: number,
): Promise<Unpacked> {
  if (request.method === "GET") return messageOfQuery(request, maxBytes);
  const type = request.header.get("content-type") ?? "";
  const match = /^application\/(grpc-web|grpc|)(?:\+?(proto|json))?(?:$|[ ;])/i.exec(type);
  if (match === null || body === undefined) return undefined;
  const json = match[2]?.toLowerCase() === "json";
  if (match[1] === "") return unpack(body, request.header.get("content-encoding"), json, maxBytes);
  const length = body.length >= ENVELOPE_BYTES ? envelopeLength(body) : -1;
  if (body.length !== ENVELOPE_BYTES + length) return undefined;
  const compressed = ((body[0] ?? 0) & 1) === 1;
  return unpack(body.subarray(ENVELOPE_BYTES), compressed ? request.header.get("grpc-encoding") : null, json, maxBytes);
}

async function messageOfQuery(request: UniversalServerRequest, maxBytes: number): Promise<Unpacked> {
  const query = new URL(request.url).searchParams;
  const text = query.get("message") ?? "";
  try {
    const bytes = query.get("base64") === "1" ? base64Decode(text) : new TextEncoder().encode(text);
    return await unpack(bytes, query.get("compression"), query.get("encoding") === "json", maxBytes);
  } catch {
    // No base64: as undecodable as a message can be.
    return { bytes: Uint8Array.of(0xff), json: false };
  }
}

async function unpack(bytes: Uint8Array, encoding: string | null, json: boolean, maxBytes: number): Promise<Unpacked> {
  if (encoding === null || encoding === "identity") return { bytes, json };
  const compression = COMPRESSIONS.find(({ name }) => name === encoding);
  if (compression === undefined) return "unknown encoding";
  try {
    return { bytes: await compression.decompress(bytes, maxBytes), json };
  } catch (error) {
    const { cause } = error as { cause?: NodeJS.ErrnoException };
    return cause?.code === "ERR_BUFFER_TOO_LARGE" ? "too large" : undefined;
  }
}

function decodingFault(input: DescMessage, { bytes, json }: Message): KeyError | undefined {
  let text = "";
  try {
    if (json) {
      text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
      fromJsonString(input, text);
    } else fromBinary(input, bytes);
    return undefined;
  } catch {
    const found = json ? jsonFaults(input, text) : [];
    const whole = `the message is not a well-formed ${input.typeName} in ${json ? "JSON" : "protobuf"}`;
    return invalid(found.length > 0 ? found : [{ field: "", description: whole }]);
  }
}

function repeatedFault(path: string): FieldViolation {
  return { field: /^[\w.-]{1,128}$/.test(path) ? path : "", description: "stands twice in its object" };
}

/** Names the members that can't be decoded, each tried by itself, and never a value: it could be a key. */
function jsonFaults(input: DescMessage, text: string): FieldViolation[] {
  const members = membersOf(text);
  if (members === undefined) return [];
  const repeated = repeatedName(text);
  if (repeated !== undefined) return [repeatedFault(repeated)];
  const fieldOf = (name: string) => input.fields.find((field) => field.jsonName === name || field.name === name);
  const faults = Object.entries(members).flatMap(([name, value]) => {
    try {
      fromJson(input, { [name]: value });
      return [];
    } catch {
      const field = fieldOf(name);
      if (field !== undefined) return [{ field: field.name, description: "does not hold a value of its type" }];
      const shown = /^[A-Za-z_]\w{0,63}$/.test(name) ? name : "";
      return [{ field: shown, description: `is not a field of ${input.typeName}` }];
    }
  });
  const present = Object.keys(members).map(fieldOf);
  const crowded = input.oneofs.filter((oneof) => present.filter((field) => field?.oneof === oneof).length > 1);
  return faults.concat(
    crowded.map(({ name, fields }) => ({
      field: name,
      description: `takes only one of ${fields.map((field) => field.name).join(" and ")}`,
    })),
  );
}

/** undefined: it is no JSON object. */
function membersOf(text: string): Record<string, JsonValue> | undefined {
  try {
    const value = JSON.parse(text) as JsonValue;
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Reads up to `maxBytes`, for as long as `held` has room for what came in pieces; `bytes` is undefined where that is not all. `replay`
 * yields the same body again in either case.
 */
async function readAtMost(body: UniversalServerRequest["body"], maxBytes: number, held: HeldBytes) {
  const source = (body as AsyncIterable<Uint8Array>)[Symbol.asyncIterator]();
  const chunks: Uint8Array[] = [];
  let size = 0;
  let failure: unknown;
  let ended = false;
  let counted = 0;
  let read: "whole" | "too large" | "too many" = "whole";
  while (!ended && read === "whole") {
    try {
      const next = await source.next();
      if (next.done) ended = true;
      else {
        chunks.push(next.value);
        size += next.value.length;
        const hasRoom = chunks.length === 1 || held.take(size - counted);
        if (hasRoom && chunks.length > 1) counted = size;
        if (size > maxBytes) read = "too large";
        else if (!hasRoom) read = "too many";
      }
    } catch (error) {
      failure = error;
      break;
    }
  }
  held.give(counted);
  async function* replay(): AsyncGenerator<Uint8Array> {
    yield* chunks;
    if (failure !== undefined) throw failure;
    if (!ended) yield* { [Symbol.asyncIterator]: () => source };
  }
  return { read, bytes: ended ? Buffer.concat(chunks) : undefined, replay: replay() };
}

/** A stand-in that decodes in the request's own protocol, so that Connect reaches the interceptors. */
function emptyMessage(request: UniversalServerRequest): Pick<UniversalServerRequest, "url" | "header" | "body"> {
  const header = new Headers(request.header);
  for (const name of ["content-encoding", "content-length", "grpc-encoding"]) header.delete(name);
  const type = header.get("content-type") ?? "";
  const json = Buffer.from(/json/i.test(type) ? "{}" : "");
  const body = /grpc/i.test(type) ? Buffer.concat([Buffer.from([0, 0, 0, 0, json.length]), json]) : json;
  const url = new URL(request.url);
  for (const name of ["message", "base64", "compression"]) url.searchParams.delete(name);
  if (url.searchParams.get("encoding") === "json") url.searchParams.set("message", "{}");
  async function* once() {
    yield body;
  }
  return { url: url.toString(), header, body: once() };
}
