import { randomUUID } from "node:crypto";
import { fromBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import fc from "fast-check";
import { type Collection, MongoClient } from "mongodb";
import { BadRequestSchema, ErrorInfoSchema } from "#gen/google/rpc/error_details_pb";
import { startService, type TestService, userToken } from "../support/service.ts";

let service: TestService;
let mongo: MongoClient;
let records: Collection;
let token: string;
beforeAll(async () => {
  service = await startService();
  mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  records = mongo.db(service.database).collection("api_keys");
  token = await userToken(randomUUID());
});
afterAll(async () => {
  // Whatever was sent: nothing was written, and the process still answers.
  expect(await records.countDocuments()).toBe(0);
  const live = await fetch(`http://${service.server.opsAddress}/livez`);
  expect(live.status).toBe(200);
  await mongo.close();
  await service.stop();
});

const METHODS = ["Create", "Get", "Refresh", "Revoke", "Verify"];
const CANONICAL = Object.keys(Code)
  .filter((name) => Number.isNaN(Number(name)))
  .map((name) => name.replace(/(?<!^)[A-Z]/g, (letter) => `_${letter}`).toLowerCase());

interface Answer {
  status: number;
  code: string | undefined;
  reason: string;
  fields: string[];
}

async function post(method: string, body: string | Uint8Array, headers: Record<string, string>): Promise<Answer> {
  const response = await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/${method}`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, ...headers },
    body,
  });
  const bytes = Buffer.from(await response.arrayBuffer());
  if (response.status === 200) return { status: 200, code: undefined, reason: "", fields: [] };
  const { code, details = [] } = JSON.parse(bytes.toString()) as {
    code?: string;
    details?: { type: string; value: string }[];
  };
  const detail = (type: string) => Buffer.from(details.find((one) => one.type === type)?.value ?? "", "base64");
  return {
    status: response.status,
    code,
    reason: fromBinary(ErrorInfoSchema, detail("google.rpc.ErrorInfo")).reason,
    fields: fromBinary(BadRequestSchema, detail("google.rpc.BadRequest")).fieldViolations.map(({ field }) => field),
  };
}

test("any bytes as protobuf: an answer or a canonical refusal with a reason, never a defect", async () => {
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...METHODS), fc.uint8Array({ maxLength: 200 }), async (method, bytes) => {
      const { status, code, reason } = await post(method, bytes, { "content-type": "application/proto" });
      if (status === 200) return expect(method).toBe("Verify");
      expect(CANONICAL).toContain(code);
      expect(["INVALID_ARGUMENT", "NO_KEY", "ADMIN_REQUIRED"]).toContain(reason);
    }),
    { numRuns: 300 },
  );
}, 60_000);

test("any JSON: an answer or a canonical refusal with a reason, never a defect", async () => {
  const body = fc.oneof(
    fc.json({ maxDepth: 3 }),
    fc.string({ maxLength: 100 }),
    fc
      .dictionary(fc.constantFrom("key", "name", "scopes", "ttl", "expiresAt", "userId", "reason"), fc.jsonValue())
      .map((one) => JSON.stringify({ ...one, scopes: [] })),
  );
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...METHODS), body, async (method, json) => {
      const { status, code, reason } = await post(method, json, { "content-type": "application/json" });
      if (status === 200) return expect(method).toBe("Verify");
      expect(CANONICAL).toContain(code);
      expect(["INVALID_ARGUMENT", "NO_KEY", "ADMIN_REQUIRED"]).toContain(reason);
    }),
    { numRuns: 300 },
  );
}, 60_000);

test("whichever field is bad and however the others are good, the refusal is INVALID_ARGUMENT and names that field alone", async () => {
  const good = {
    name: fc.string({ unit: fc.constantFrom(..."ab é😀"), minLength: 1, maxLength: 100 }).map((text) => `a${text}`),
    scopes: fc.uniqueArray(fc.constantFrom("read", "write", "a:b", "x.y/z"), { minLength: 1 }),
    ttl: fc.integer({ min: 1, max: 10 ** 9 }).map((seconds) => `${seconds}s`),
  };
  const bad: Record<string, fc.Arbitrary<unknown>> = {
    name: fc.oneof(
      fc.constantFrom("", " ", "\t\n", "a\u0000b", "a\u0085b"),
      fc.integer({ min: 129, max: 400 }).map((length) => "x".repeat(length)),
    ),
    "scopes[0]": fc
      .oneof(
        fc.string({ unit: "grapheme" }).filter((text) => !/^[a-z0-9][a-z0-9._:/-]{0,127}$/.test(text)),
        fc.integer({ min: 129, max: 400 }).map((length) => "x".repeat(length)),
      )
      .map((scope) => [scope]),
    scopes: fc.oneof(
      fc.constant([]),
      fc.integer({ min: 65, max: 200 }).map((count) => Array(count).fill("read")),
    ),
    ttl: fc.oneof(
      fc.integer({ min: -(10 ** 9), max: 0 }).map((seconds) => `${seconds}s`),
      fc.integer({ min: 0, max: 999 }).map((ms) => `0.${String(ms).padStart(3, "0")}s`),
      fc.integer({ min: 3 * 10 ** 11, max: 315_576_000_000 }).map((seconds) => `${seconds}s`),
    ),
    user_id: fc.constant(""),
  };
  const jsonName = (field: string) => (field === "user_id" ? "userId" : field.replace(/\[.*/, ""));
  const request = fc
    .constantFrom(...Object.keys(bad))
    .chain((field) => fc.tuple(fc.constant(field), fc.record(good), bad[field]!))
    .map(([field, others, value]) => ({ field, body: { ...others, [jsonName(field)]: value } }));
  await fc.assert(
    fc.asyncProperty(request, async ({ field, body }) => {
      const answer = await post("Create", JSON.stringify(body), { "content-type": "application/json" });
      expect(answer).toEqual({ status: 400, code: "invalid_argument", reason: "INVALID_ARGUMENT", fields: [field] });
    }),
    { numRuns: 300 },
  );
}, 60_000);

test("whatever stands in place of a user token is UNAUTHENTICATED", async () => {
  const printable = fc.string({
    unit: fc.constantFrom(...Array.from({ length: 94 }, (_, at) => String.fromCharCode(33 + at))),
  });
  const authorization = fc.oneof(
    printable,
    printable.map((text) => `Bearer ${text}`),
    fc.tuple(printable, printable, printable).map((parts) => `Bearer ${parts.join(".")}`),
    fc
      .nat(token.length - 1)
      .map((at) => `Bearer ${token.slice(0, at)}${token[at] === "A" ? "B" : "A"}${token.slice(at + 1)}`),
  );
  await fc.assert(
    fc.asyncProperty(authorization, async (value) => {
      // The last character of a signature may carry bits that say nothing.
      fc.pre(value.slice(0, -1) !== `Bearer ${token}`.slice(0, -1));
      const { code, reason } = await post("Create", '{"scopes":["read"]}', {
        "content-type": "application/json",
        authorization: value,
      });
      expect({ code, reason }).toEqual({ code: "unauthenticated", reason: "UNAUTHENTICATED" });
    }),
    { numRuns: 300 },
  );
}, 60_000);
