import { create, equals, toBinary } from "@bufbuild/protobuf";
import { createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import {
  ApiKeyService,
  type BatchVerifyResponse,
  BatchVerifyResponseSchema,
  Consistency,
  Outcome,
  type VerifyResult,
  VerifyResultSchema,
  type VerifyStreamRequest,
  VerifyStreamRequestSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import { ErrorReason } from "#gen/latchkey/v1/error_reason_pb";
import { refusalOf } from "../support/errors.ts";
import { SERVICE_TOKEN, sha256, startService, type TestService } from "../support/service.ts";

let service: TestService;
const keys: string[] = [];
const unknown = "lk_0000000000000000_00000000000000000000000000000000000000000002E6xys";

beforeAll(async () => {
  service = await startService({
    env: { LATCHKEY_VERIFY_AUTH: "token", LATCHKEY_SERVICE_TOKENS: `gateway:sha256:${sha256(SERVICE_TOKEN)}` },
  });
  for (let index = 0; index < 5; index += 1) {
    keys.push((await service.client().create({ scopes: ["read", `n${index}`] })).key);
  }
  await service.client().create({ scopes: ["read"] });
});
afterAll(() => service.stop());

function clientOver(
  transport: (options: { baseUrl: string; interceptors: never[] }) => Transport,
  token = SERVICE_TOKEN,
) {
  const authorize = (next: (request: unknown) => unknown) => (request: { header: Headers }) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
  return createClient(ApiKeyService, transport({ baseUrl: service.baseUrl, interceptors: [authorize] as never[] }));
}

/** The first takes the fast path, the others do not. */
const TRANSPORTS = [
  ["gRPC", createGrpcTransport],
  ["gRPC in JSON", (options: object) => createGrpcTransport({ ...options, useBinaryFormat: false } as never)],
  ["gRPC-Web", (options: object) => createGrpcWebTransport({ ...options, httpVersion: "1.1" } as never)],
  ["Connect", (options: object) => createConnectTransport({ ...options, httpVersion: "2" } as never)],
] as const;

const requests = () => [
  { key: keys[0]!, requiredScopes: ["read"] },
  { key: "nonsense" },
  { key: `${keys[1]!}x` },
  { key: keys[1]!, requiredScopes: ["read", "write", "n1"] },
  { key: unknown },
  { key: keys[2]!, requiredScopes: ["NOT A SCOPE"] },
  { key: keys[3]!, consistency: Consistency.STRONG },
  { key: "ключ" },
  { key: keys[0]! },
];

function expectResults(results: VerifyResult[]) {
  const outcomes = results.map(({ result }) =>
    result.case === "response" ? Outcome[result.value.outcome] : ErrorReason[result.value!.reason],
  );
  expect(outcomes).toEqual([
    "VALID",
    "MALFORMED",
    "MALFORMED",
    "INSUFFICIENT_SCOPE",
    "NOT_FOUND",
    "INVALID_ARGUMENT",
    "VALID",
    "MALFORMED",
    "VALID",
  ]);
  const responses = results.map(({ result }) => (result.case === "response" ? result.value : undefined));
  expect(responses[3]!.missingScopes).toEqual(["write"]);
  expect(responses.map((response) => response?.apiKey?.scopes.join(" "))).toEqual([
    "n0 read",
    undefined,
    undefined,
    "n1 read",
    undefined,
    undefined,
    "n3 read",
    undefined,
    "n0 read",
  ]);
  for (const response of responses) if (response) expect(response.asOf).toBeDefined();
  const [failed] = results.flatMap(({ result }) => (result.case === "error" ? [result.value] : []));
  expect(failed!.message).toContain("required_scopes[0]");
}

test.each(TRANSPORTS)(
  "BatchVerify over %s answers each item in order, and a bad one fails no other",
  async (_, transport) => {
    const { results } = await clientOver(transport as never).batchVerify({ requests: requests() });
    expectResults(results);
  },
);

test.each(TRANSPORTS.filter(([name]) => name !== "gRPC-Web"))(
  "VerifyStream over %s answers each message in order",
  async (_, transport) => {
    const answers = clientOver(transport as never).verifyStream(messages(requests()));
    const results: VerifyResult[] = [];
    for await (const { result } of answers) results.push(result!);
    expectResults(results);
  },
);

async function* messages(items: object[]): AsyncGenerator<VerifyStreamRequest> {
  for (const request of items) yield create(VerifyStreamRequestSchema, { request });
}

test("the fast path and Node's own server give the same answers, but for as_of", async () => {
  const answers: BatchVerifyResponse[] = [];
  for (const [, transport] of TRANSPORTS)
    answers.push(await clientOver(transport as never).batchVerify({ requests: requests() }));
  const [fast, ...node] = answers.map(({ results }) =>
    results.map((one) => {
      if (one.result.case === "response") delete one.result.value.asOf;
      return one;
    }),
  );
  for (const other of node) {
    for (const [index, result] of fast!.entries()) expect(equals(VerifyResultSchema, result, other[index]!)).toBe(true);
  }
});

test.each(TRANSPORTS)("BatchVerify over %s takes 1 to 1,000 requests", async (_, transport) => {
  const client = clientOver(transport as never);
  const many = (count: number) => ({ requests: Array.from({ length: count }, () => ({ key: keys[0]! })) });
  const { results } = await client.batchVerify(many(1_000));
  expect(
    results.filter(({ result }) => result.case === "response" && result.value.outcome === Outcome.VALID),
  ).toHaveLength(1_000);
  for (const count of [0, 1_001]) {
    expect(await refusalOf(client.batchVerify(many(count)))).toMatchObject({
      reason: "INVALID_ARGUMENT",
      fields: ["requests"],
    });
  }
});

test.each(TRANSPORTS)("over %s nobody without a service token is answered", async (name, transport) => {
  const client = clientOver(transport as never, "not-the-token");
  expect(await refusalOf(client.batchVerify({ requests: requests() }))).toMatchObject({ reason: "UNAUTHENTICATED" });
  if (name === "gRPC-Web") return;
  const stream = async () => {
    for await (const answer of client.verifyStream(messages(requests()))) return answer;
    return undefined;
  };
  expect(await refusalOf(stream())).toMatchObject({ reason: "UNAUTHENTICATED" });
});

test("a stream stays open between messages, and each is answered when it comes", async () => {
  const client = clientOver(createGrpcTransport as never);
  let send: (item: object | undefined) => void = () => {};
  async function* slowly() {
    for (;;) {
      const item = await new Promise<object | undefined>((resolve) => {
        send = resolve;
      });
      if (item === undefined) return;
      yield create(VerifyStreamRequestSchema, { request: item });
    }
  }
  const answers = client.verifyStream(slowly())[Symbol.asyncIterator]();
  for (const key of [keys[0]!, "nonsense", keys[1]!]) {
    const answer = answers.next();
    await new Promise((resolve) => setTimeout(resolve, 20));
    send({ key });
    const { result } = (await answer).value.result!;
    expect(result.case === "response" && result.value.outcome).toBe(
      key === "nonsense" ? Outcome.MALFORMED : Outcome.VALID,
    );
  }
  const last = answers.next();
  await new Promise((resolve) => setTimeout(resolve, 20));
  send(undefined);
  expect((await last).done).toBe(true);
});

test("a stream of thousands of messages is answered whole and in order", async () => {
  const client = clientOver(createGrpcTransport as never);
  const items = Array.from({ length: 5_000 }, (_, index) => ({ key: keys[index % keys.length]! }));
  let at = 0;
  for await (const { result } of client.verifyStream(messages(items))) {
    const verdict = result!.result;
    expect(verdict.case === "response" && verdict.value.apiKey?.id).toBe(items[at]!.key.slice(3, 19));
    at += 1;
  }
  expect(at).toBe(items.length);
});

describe("1,000 items of one key with 64 long scopes", () => {
  // What clients of gRPC take by default.
  const MOST_BYTES = 4 * 1024 * 1024;
  let key: string;
  beforeAll(async () => {
    const scopes = Array.from({ length: 64 }, (_, index) => `s${index}`.padEnd(128, "x"));
    key = (await service.client().create({ name: "\u{1F511}".repeat(128), scopes })).key;
  });
  const batch = (omitRecords: boolean) => ({ requests: Array.from({ length: 1_000 }, () => ({ key })), omitRecords });

  test.each(TRANSPORTS)(
    "BatchVerify over %s answers them in 4 MiB: what doesn't fit is ANSWER_TOO_LARGE, and never without its record",
    async (_, transport) => {
      const { results } = await clientOver(transport as never).batchVerify(batch(false));
      expect(
        toBinary(BatchVerifyResponseSchema, create(BatchVerifyResponseSchema, { results })).length,
      ).toBeGreaterThan(MOST_BYTES - 10_000);
      expect(results).toHaveLength(1_000);
      const answered = results.filter(({ result }) => result.case === "response");
      expect(answered.length).toBeGreaterThan(400);
      for (const { result } of results) {
        if (result.case === "response") expect(result.value.apiKey?.scopes).toHaveLength(64);
        else
          expect([result.value!.reason, result.value!.retryAfter]).toEqual([ErrorReason.ANSWER_TOO_LARGE, undefined]);
      }
    },
  );

  test("a client that takes no more than 4 MiB is answered, and a smaller batch whole", async () => {
    const limited = (options: object) => createGrpcTransport({ ...options, readMaxBytes: MOST_BYTES } as never);
    const client = clientOver(limited);
    expect((await client.batchVerify(batch(false))).results).toHaveLength(1_000);
    const { results } = await client.batchVerify({ requests: batch(false).requests.slice(0, 400) });
    expect(results.map(({ result }) => result.case)).toEqual(Array(400).fill("response"));
  });

  test.each(TRANSPORTS)("with omit_records all of them are answered over %s, without records", async (_, transport) => {
    const { results } = await clientOver(transport as never).batchVerify(batch(true));
    const answers = results.map(
      ({ result }) => result.case === "response" && [result.value.outcome, result.value.apiKey],
    );
    expect(answers).toEqual(Array(1_000).fill([Outcome.VALID, undefined]));
  });
});
