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
import { Authorization, CheckRequestSchema, CheckResponseSchema } from "#gen/envoy/service/auth/v3/external_auth_pb";
import { ApiKeyService, VerifyRequestSchema, VerifyResponseSchema } from "#gen/latchkey/v1/api_key_service_pb";
import type { Answer } from "./calls.ts";

export const VERIFY_PATH = `/${ApiKeyService.typeName}/${ApiKeyService.method.verify.name}`;

export const CHECK_PATH = `/${Authorization.typeName}/${Authorization.method.check.name}`;

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

/** What Envoy asks about a browser's request to a route that needs a scope: nineteen headers, and both ends of the connection. */
export function checkRequest(key: string): Uint8Array {
  const headers = {
    ":authority": "shop.example.com",
    ":method": "GET",
    ":path": "/v1/orders/81723?expand=lines&limit=50",
    ":scheme": "https",
    accept: "application/json, text/plain, */*",
    "accept-encoding": "gzip, deflate, br, zstd",
    "accept-language": "en-GB,en;q=0.9,de;q=0.8",
    authorization: `Bearer ${key}`,
    "cache-control": "no-cache",
    "content-type": "application/json",
    referer: "https://shop.example.com/orders",
    "sec-ch-ua": '"Chromium";v="138", "Not=A?Brand";v="8"',
    "sec-fetch-mode": "cors",
    "sec-fetch-site": "same-origin",
    "user-agent":
      "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
    "x-envoy-internal": "true",
    "x-forwarded-for": "203.0.113.7",
    "x-forwarded-proto": "https",
    "x-request-id": "6f5a1b2c-9d38-4c55-9a0f-7a3f4b1e2d11",
  };
  const { ":path": path, ":authority": host, ":method": method, ":scheme": scheme } = headers;
  const http = { id: "6151408362364163871", ...{ method, headers, path, host, scheme }, protocol: "HTTP/2" };
  const message = create(CheckRequestSchema, {
    attributes: {
      ...{ source: {}, destination: {}, contextExtensions: { "latchkey-scopes": "read" } },
      request: { time: { seconds: 1_764_000_000n, nanos: 123_456_000 }, http },
    },
  });
  // Peer.address, which the subset of the contract leaves out: socket_address { address, port_value }.
  const address = Buffer.from([0x0a, 14, 0x12, 9, ...Buffer.from("10.0.0.17"), 0x18, 0xb8, 0x4d]);
  for (const peer of [message.attributes!.source!, message.attributes!.destination!]) {
    peer.$unknown = [{ no: 1, wireType: 2, data: Buffer.concat([Buffer.of(address.length), address]) }];
  }
  return toBinary(CheckRequestSchema, message);
}

/** Throws unless a Check was answered, and the request may pass. */
export function expectAllowed(answer: Answer): void {
  const { status, httpResponse } = fromBinary(CheckResponseSchema, messageIn(answer));
  if (status?.code !== 0 || httpResponse.case !== "okResponse") throw new Error(`Check: ${httpResponse.case}`);
}
