import { randomUUID } from "node:crypto";
import { gzipSync } from "node:zlib";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "@jest/globals";
import { BadRequestSchema, ErrorInfoSchema } from "#gen/google/rpc/error_details_pb";
import { CreateRequestSchema } from "#gen/latchkey/v1/api_key_service_pb";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

let service: TestService;
let user: string;
beforeAll(async () => {
  service = await startService();
});
afterAll(() => service.stop());

const post = async (method: string, body: string | Uint8Array, headers: Record<string, string> = {}) => {
  user = randomUUID();
  const response = await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/${method}`, {
    method: "POST",
    headers: { authorization: `Bearer ${await userToken(user)}`, "content-type": "application/json", ...headers },
    body,
  });
  const text = await response.text();
  const error = /^\{/.test(text)
    ? (JSON.parse(text) as { code?: string; message?: string; details?: { type: string; value: string }[] })
    : {};
  const detail = (type: string) => Buffer.from(error.details?.find((one) => one.type === type)?.value ?? "", "base64");
  const reason = fromBinary(ErrorInfoSchema, detail("google.rpc.ErrorInfo")).reason;
  const fields = fromBinary(BadRequestSchema, detail("google.rpc.BadRequest")).fieldViolations.map(
    ({ field }) => field,
  );
  return { status: response.status, code: error.code, message: error.message, reason, fields, text };
};
const invalidIn = (...fields: string[]) => ({
  status: 400,
  code: "invalid_argument",
  reason: "INVALID_ARGUMENT",
  fields,
});
const ok = { scopes: ["read"] };

// Whatever was sent: nothing was written, and the process still answers.
afterEach(async () => {
  expect(await refusalOf(service.client(user).get({}))).toMatchObject({ reason: "NO_KEY" });
});

describe("fields", () => {
  test.each<[string, object, string[]]>([
    ["a blank name", { ...ok, name: " \t " }, ["name"]],
    ["a name of 129 characters", { ...ok, name: "x".repeat(129) }, ["name"]],
    ["a control character in the name", { ...ok, name: "a\u0007b" }, ["name"]],
    ["half a surrogate pair in the name", { ...ok, name: "\ud800" }, ["name"]],
    ["no scopes", {}, ["scopes"]],
    ["65 scopes", { scopes: Array.from({ length: 65 }, (_, index) => `s${index}`) }, ["scopes"]],
    ["an upper-case scope", { scopes: ["Read"] }, ["scopes[0]"]],
    ["an empty scope", { scopes: ["read", ""] }, ["scopes[1]"]],
    ["a scope of 129 characters", { scopes: ["x".repeat(129)] }, ["scopes[0]"]],
    ["a pattern as a scope", { scopes: ["read:*"] }, ["scopes[0]"]],
    ["a ttl of zero", { ...ok, ttl: "0s" }, ["ttl"]],
    ["a negative ttl", { ...ok, ttl: "-5s" }, ["ttl"]],
    ["a ttl below a second", { ...ok, ttl: "0.999999s" }, ["ttl"]],
    ["a ttl beyond the year 9999", { ...ok, ttl: "315576000000s" }, ["ttl"]],
    ["expires_at in the past", { ...ok, expiresAt: "2001-01-01T00:00:00Z" }, ["expires_at"]],
    ["expires_at in the year 20000", { ...ok, expiresAt: "20000-01-01T00:00:00Z" }, ["expires_at"]],
    ["an empty user_id", { ...ok, userId: "" }, ["user_id"]],
    ["several faults", { name: "", scopes: ["A"], ttl: "0s" }, ["name", "scopes[0]", "ttl"]],
  ])("Create refuses %s, and names the field", async (_name, request, fields) => {
    expect(await post("Create", JSON.stringify(request))).toMatchObject(invalidIn(...fields));
  });

  test("expires_at in the year 20000 is refused in protobuf too", async () => {
    const expiresAt = {
      case: "expiresAt" as const,
      value: { $typeName: "google.protobuf.Timestamp" as const, seconds: 568_971_820_800n, nanos: 0 },
    };
    const body = toBinary(CreateRequestSchema, {
      $typeName: "latchkey.v1.CreateRequest",
      ...{ scopes: ["read"], metadata: {} },
      lifetime: expiresAt,
    });
    expect(await post("Create", body, { "content-type": "application/proto" })).toMatchObject(invalidIn("expires_at"));
  });

  test.each<[string, string, object, string[]]>([
    ["Refresh", "a negative grace period", { ...ok, gracePeriod: "-1s" }, ["grace_period"]],
    ["Refresh", "a grace period beyond the longest", { ...ok, gracePeriod: "604801s" }, ["grace_period"]],
    ["Revoke", "a reason of 513 characters", { reason: "x".repeat(513) }, ["reason"]],
    ["Revoke", "the reserved reason", { reason: "superseded" }, ["reason"]],
    ["Verify", "a senseless required scope", { key: "", requiredScopes: ["No!"] }, ["required_scopes[0]"]],
    ["Verify", "65 required scopes", { key: "", requiredScopes: Array(65).fill("a") }, ["required_scopes"]],
    ["Verify", "an unknown consistency", { key: "", consistency: 9 }, ["consistency"]],
  ])("%s refuses %s", async (method, _name, request, fields) => {
    expect(await post(method, JSON.stringify(request))).toMatchObject(invalidIn(...fields));
  });
});

describe("messages", () => {
  const canary = "lk_canarycanary0000";
  test.each<[string, string | Uint8Array, Record<string, string>, string]>([
    ["an unknown JSON field", '{"scopes":["read"],"tll":"60s"}', {}, "tll"],
    ["an unknown enum name", '{"key":"x","consistency":"CONSISTENCY_NEVER"}', {}, "consistency"],
    ["both of a oneof", '{"scopes":["read"],"ttl":"60s","expiresAt":"2100-01-01T00:00:00Z"}', {}, "lifetime"],
    ["a wrong type", `{"scopes":"${canary}"}`, {}, "scopes"],
    ["broken JSON", `{"key":"${canary}`, {}, ""],
    ["JSON that is not an object", `"${canary}"`, {}, ""],
    ["an empty body", "", {}, ""],
    [
      "invalid UTF-8 in JSON",
      Buffer.concat([Buffer.from('{"key":"'), Buffer.of(0xc3, 0x28), Buffer.from('"}')]),
      {},
      "",
    ],
    ["malformed protobuf", Buffer.of(0x0a, 0xff), { "content-type": "application/proto" }, ""],
    ["invalid UTF-8 in protobuf", Buffer.of(0x0a, 0x02, 0xc3, 0x28), { "content-type": "application/proto" }, ""],
    [
      "malformed protobuf, compressed",
      gzipSync(Buffer.of(0x0a, 0xff)),
      { "content-type": "application/proto", "content-encoding": "gzip" },
      "",
    ],
  ])("%s is INVALID_ARGUMENT with a reason, and the answer does not quote it", async (_name, body, headers, field) => {
    const method =
      field === "consistency" || _name.includes("protobuf") || _name.includes("JSON")
        ? field === "tll"
          ? "Create"
          : "Verify"
        : "Create";
    const answer = await post(method, body, headers);
    expect(answer).toMatchObject(invalidIn(field));
    expect(answer.text).not.toContain("canary");
  });

  test("malformed protobuf over gRPC and gRPC-Web is INVALID_ARGUMENT too", async () => {
    const frame = Buffer.of(0, 0, 0, 0, 2, 0x0a, 0xff);
    for (const type of ["application/grpc-web+proto", "application/grpc-web"]) {
      const response = await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/Verify`, {
        method: "POST",
        headers: { "content-type": type },
        body: frame,
      });
      const status = response.headers.get("grpc-status") ?? /grpc-status: (\d+)/.exec(await response.text())?.[1];
      expect(status).toBe("3");
    }
  });

  test("a body of 70 KiB is RESOURCE_EXHAUSTED, and not to be repeated", async () => {
    const answer = await post("Create", JSON.stringify({ scopes: ["read"], name: "x".repeat(70 * 1_024) }));
    expect(answer).toMatchObject({ status: 429, code: "resource_exhausted", reason: "MESSAGE_TOO_LARGE", fields: [] });
    expect(answer.text).not.toContain("RetryInfo");
  });

  test("so is a body that inflates to 70 KiB; one of an unknown compression is UNIMPLEMENTED", async () => {
    const packed = gzipSync(JSON.stringify({ scopes: ["read"], name: "x".repeat(70 * 1_024) }));
    expect(await post("Create", packed, { "content-encoding": "gzip" })).toMatchObject({
      ...{ status: 429, code: "resource_exhausted", reason: "MESSAGE_TOO_LARGE" },
    });
    expect(await post("Create", packed, { "content-encoding": "zap" })).toMatchObject({
      ...{ status: 501, code: "unimplemented", reason: "UNIMPLEMENTED" },
    });
  });

  test("unknown methods are unimplemented, unknown content types 415, other verbs 405", async () => {
    expect(await post("Nothing", "{}")).toMatchObject({ status: 404, reason: "UNIMPLEMENTED" });
    expect((await post("Create", "x", { "content-type": "text/plain" })).status).toBe(415);
    expect((await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/Verify`)).status).toBe(405);
  });

  test("Verify can't be asked by GET, and answers to GET are not to be stored", async () => {
    const query = `?connect=v1&encoding=json&message=${encodeURIComponent("{}")}`;
    const verify = await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/Verify${query}`);
    expect(verify.status).toBe(405);
    const get = await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/Get${query}`, {
      headers: { authorization: `Bearer ${await userToken(randomUUID())}` },
    });
    expect({ status: get.status, cache: get.headers.get("cache-control") }).toEqual({ status: 404, cache: "no-store" });
  });
});
