import {
  create,
  type DescMessage,
  type DescMethod,
  fromBinary,
  fromJson,
  type JsonObject,
  toBinary,
  toJsonString,
} from "@bufbuild/protobuf";
import type { Code } from "@connectrpc/connect";
import { ApiKeyService, VerifyRequestSchema, VerifyResponseSchema } from "#gen/latchkey/v1/api_key_service_pb";
import type { Answer } from "./calls.ts";

export const VERIFY_PATH = `/${ApiKeyService.typeName}/${ApiKeyService.method.verify.name}`;

/** A way to ask: protocol and encoding. */
export type Wire = "grpc" | "grpc-web" | "connect" | "connect-json";

export const CONTENT_TYPES: Record<Wire, string> = {
  grpc: "application/grpc",
  "grpc-web": "application/grpc-web+proto",
  connect: "application/proto",
  "connect-json": "application/json",
};

export function headersOf(wire: Wire): Record<string, string> {
  const type = { "content-type": CONTENT_TYPES[wire] };
  if (wire === "grpc") return { ...type, te: "trailers" };
  return wire === "grpc-web" ? { ...type, "x-grpc-web": "1" } : { ...type, "connect-protocol-version": "1" };
}

/** A method of the service, if this build of it has one of that name. */
export function methodNamed(name: string): { desc: DescMethod; path: string } | undefined {
  const desc = ApiKeyService.methods.find((method) => method.name === name);
  return desc && { desc, path: `/${ApiKeyService.typeName}/${desc.name}` };
}

export function verifyRequest(key: string): Uint8Array {
  return toBinary(VerifyRequestSchema, create(VerifyRequestSchema, { key }));
}

export function verifyBody(wire: Wire, key: string): Buffer {
  if (wire === "connect-json") {
    return Buffer.from(toJsonString(VerifyRequestSchema, create(VerifyRequestSchema, { key })));
  }
  const message = verifyRequest(key);
  return wire === "connect" ? Buffer.from(message) : enveloped(message);
}

/** The request of a method that takes many keys, whatever its fields are called: `key`, a message that has it, or a list of either. */
export function requestWithKeys({ input }: DescMethod, keys: string[]): Uint8Array {
  return toBinary(input, fromJson(input, jsonWithKeys(input, keys)));
}

function jsonWithKeys(message: DescMessage, keys: string[]): JsonObject {
  if (message.field.key !== undefined) return { key: keys[0]! };
  for (const field of message.fields) {
    if (field.fieldKind === "message") return { [field.jsonName]: jsonWithKeys(field.message, keys) };
    if (field.fieldKind !== "list") continue;
    const { message: item } = field;
    return { [field.jsonName]: item === undefined ? keys : keys.map((key) => jsonWithKeys(item, [key])) };
  }
  throw new Error(`${message.typeName} takes no keys`);
}

/** Whether a call failed with one of these codes; see `messageIn`. */
export function failedWith(error: unknown, ...codes: Code[]): boolean {
  return error instanceof Error && codes.some((code) => error.message.startsWith(`grpc-status ${code}:`));
}

/** How many times an answer of any shape says that a key is good. */
export function countValid({ output }: DescMethod, message: Uint8Array): number {
  return toJsonString(output, fromBinary(output, message)).split('"OUTCOME_VALID"').length - 1;
}

export function outcomeOf(wire: Wire, answer: Answer): string {
  if (answer.status !== 200) throw new Error(`HTTP ${answer.status}: ${answer.body.toString("utf8").slice(0, 300)}`);
  if (wire === "connect-json") return String(JSON.parse(answer.body.toString("utf8")).outcome);
  const message = wire === "connect" ? answer.body : messageIn(answer);
  return (JSON.parse(toJsonString(VerifyResponseSchema, fromBinary(VerifyResponseSchema, message))) as JsonObject)
    .outcome as string;
}

/** The first message of a gRPC or gRPC-Web answer. Throws when there is an error instead. */
export function messageIn({ body, headers, trailers }: Answer): Buffer {
  const status = trailers["grpc-status"] ?? headers["grpc-status"];
  if ((status !== undefined && status !== "0") || body.length < 5) {
    const message = trailers["grpc-message"] ?? headers["grpc-message"] ?? "";
    throw new Error(`grpc-status ${status}: ${decodeURIComponent(message)}`);
  }
  return body.subarray(5, 5 + body.readUInt32BE(1));
}

export function enveloped(message: Uint8Array): Buffer {
  const frame = Buffer.alloc(5 + message.length);
  frame.writeUInt32BE(message.length, 1);
  frame.set(message, 5);
  return frame;
}
