import { randomUUID } from "node:crypto";
import http2 from "node:http2";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { BadRequestSchema, ErrorInfoSchema } from "#gen/google/rpc/error_details_pb";
import { CreateRequestSchema } from "#gen/latchkey/v1/api_key_service_pb";
import { envelope } from "../../src/fastpath/wire-format.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

// grpc-java takes 8 KiB of metadata; beyond it, its users see RESOURCE_EXHAUSTED and not what was wrong.
const MOST_BYTES = 6 * 1024;

let service: TestService;
let session: http2.ClientHttp2Session;
beforeAll(async () => {
  const env = { LATCHKEY_SCOPES: "*,!u*", LATCHKEY_MEMBER_SCOPES: "!f*,!admin" };
  service = await startService({ env });
  session = http2.connect(service.baseUrl);
});
afterAll(async () => {
  session.close();
  await service.stop();
});

interface Answer {
  /** Names, values and what stands between them, of headers and trailers. */
  bytes: number;
  error: ConnectError;
}

/** The answer to a call over gRPC, as it is on the wire. */
async function call(path: string, message: Uint8Array, headers: Record<string, string> = {}): Promise<Answer> {
  const authorization = `Bearer ${await userToken(randomUUID())}`;
  const asked = { ":path": path, ":method": "POST", "content-type": "application/grpc", te: "trailers", authorization };
  const stream = session.request({ ...asked, ...headers });
  stream.end(envelope(message));
  const blocks: string[] = [];
  const values = new Map<string, string>();
  const note = (block: http2.IncomingHttpHeaders) => {
    for (const [name, value] of Object.entries(block)) {
      blocks.push(`${name}: ${value}\r\n`);
      values.set(name, String(value));
    }
  };
  stream.on("response", note).on("trailers", note).resume();
  await new Promise((resolve, reject) => stream.once("close", () => resolve(undefined)).once("error", reject));
  const error = new ConnectError(
    decodeURIComponent(values.get("grpc-message") ?? ""),
    Number(values.get("grpc-status")),
  );
  const status = Buffer.from(values.get("grpc-status-details-bin") ?? "", "base64");
  for (const [, type, value] of anysIn(status)) error.details.push({ type, value });
  return { bytes: Buffer.byteLength(blocks.join("")), error };
}

/** The details in a `google.rpc.Status`. */
function anysIn(status: Buffer): [number, string, Uint8Array<ArrayBuffer>][] {
  return fieldsIn(status)
    .filter(([number]) => number === 3)
    .map(([, any]) => {
      const [type, value] = [1, 2].map((wanted) => fieldsIn(any).find(([number]) => number === wanted)?.[1]);
      return [3, String(type).replace("type.googleapis.com/", ""), new Uint8Array(value ?? [])];
    });
}

function fieldsIn(bytes: Buffer): [number, Buffer][] {
  const fields: [number, Buffer][] = [];
  const varint = (from: number): [number, number] => {
    const byte = bytes[from]!;
    if (byte < 0x80) return [byte, from + 1];
    const [rest, end] = varint(from + 1);
    return [(byte & 0x7f) + rest * 128, end];
  };
  for (let at = 0; at < bytes.length; ) {
    const [tag, start] = varint(at);
    const [value, end] = varint(start);
    const isText = (tag & 7) === 2;
    fields.push([tag >>> 3, isText ? bytes.subarray(end, end + value) : Buffer.alloc(0)]);
    at = isText ? end + value : end;
  }
  return fields;
}

const CREATE = "/latchkey.v1.ApiKeyService/Create";
const createWith = (scopes: string[], name?: string) =>
  toBinary(CreateRequestSchema, create(CreateRequestSchema, { scopes, ...(name !== undefined && { name }) }));
const many = (count: number, first: string, filler = ":") =>
  Array.from({ length: count }, (_, index) => `${first}${index}`.padEnd(128, filler));

test.each<[string, string[]]>([
  ["64 malformed scopes", many(64, "!")],
  ["64 malformed scopes in another script", many(64, "\u{1F511}", "\u{1F511}").map((scope) => scope.slice(0, 128))],
  ["64 scopes that this service does not know", many(64, "u")],
  ["64 scopes of which half are malformed and half not known", [...many(32, "!"), ...many(32, "u")]],
  ["400 scopes", many(400, "a").map((scope) => scope.slice(0, 100))],
])("Create with %s is INVALID_ARGUMENT within 6 KiB, with ten fields and their number", async (_name, scopes) => {
  const { bytes, error } = await call(CREATE, createWith(scopes, " "));
  expect(error.code).toBe(Code.InvalidArgument);
  expect(bytes).toBeLessThanOrEqual(MOST_BYTES);
  const [info] = error.findDetails(ErrorInfoSchema);
  const [bad] = error.findDetails(BadRequestSchema);
  expect(info?.reason).toBe("INVALID_ARGUMENT");
  const fields = bad!.fieldViolations.map(({ field }) => field);
  expect(new Set(fields).size).toBe(fields.length);
  const inAll = Number(info?.metadata.violations ?? fields.length);
  expect(fields).toHaveLength(Math.min(inAll, 10));
  if (scopes.length === 64) expect(inAll).toBe(65);
});

test("Create with 64 scopes that a member may not grant is SCOPE_FORBIDDEN within 6 KiB, with ten of them and their number", async () => {
  const { bytes, error } = await call(CREATE, createWith(many(64, "f")));
  expect(bytes).toBeLessThanOrEqual(MOST_BYTES);
  const [info] = error.findDetails(ErrorInfoSchema);
  expect(info).toMatchObject({ reason: "SCOPE_FORBIDDEN", metadata: { scopes_forbidden: "64" } });
  expect(info!.metadata.scopes!.split(",")).toEqual(many(64, "f").sort().slice(0, 10));
});

test.each(["grpc-encoding", "grpc-timeout", "content-type"])(
  "an error about a %s of 12 KiB stays within 6 KiB",
  async (name) => {
    const value = name === "content-type" ? `application/grpc+${"x".repeat(12_000)}` : "x".repeat(12_000);
    for (const path of [CREATE, "/latchkey.v1.ApiKeyService/Verify", "/latchkey.v1.ApiKeyService/None"]) {
      const { bytes } = await call(path, createWith(["read"]), { [name]: value });
      expect(bytes).toBeLessThanOrEqual(MOST_BYTES);
    }
  },
);

test("a token of which the service says what is wrong is refused within 6 KiB", async () => {
  const sub = "\u{1F511}".repeat(2_000);
  const { bytes, error } = await call(CREATE, createWith(["read"]), {
    authorization: `Bearer ${await userToken(sub)}`,
  });
  expect(error.code).toBe(Code.Unauthenticated);
  expect(bytes).toBeLessThanOrEqual(MOST_BYTES);
  expect(fromBinary(ErrorInfoSchema, toBinary(ErrorInfoSchema, error.findDetails(ErrorInfoSchema)[0]!)).reason).toBe(
    "UNAUTHENTICATED",
  );
});
