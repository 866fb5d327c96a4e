import { type Client, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, expect, jest, test } from "@jest/globals";
import { type Document, MongoClient } from "mongodb";
import { Authorization, type CheckResponse } from "#gen/envoy/service/auth/v3/external_auth_pb";
import type { AdminService } from "#gen/latchkey/v1/admin_service_pb";
import { Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { createLatchkeyAdminClient } from "../../src/client/index.ts";
import { matching } from "../../src/mongo/search.ts";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

jest.setTimeout(120_000);

const PLAN = { plan: "enterprise", tenant: "Zoë & co, 7" };
let mongo: MongoClient;
let service: TestService;
let other: TestService;
let admin: Client<typeof AdminService>;

beforeAll(async () => {
  mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  const env = { LATCHKEY_GATEWAY_METADATA: "plan,tenant", LATCHKEY_MEMBER_METADATA: "label-*" };
  service = await startService({ env });
  other = await startService({ env: { ...env, MONGODB_DATABASE: service.database } });
  const token = () => userToken("root", { admin: true });
  admin = createLatchkeyAdminClient({ baseUrl: service.baseUrl, token, timeoutMs: 10_000 });
});
afterAll(async () => {
  await Promise.all([service.stop(), other.stop()]);
  await mongo.close();
});

const root = () => service.client("root", { admin: true });
const made = async (userId: string, metadata: Record<string, string>) =>
  root().create({ userId, scopes: ["read"], metadata });

test("what an admin sets stands in every answer about the key, through every door and on every replica", async () => {
  const { key, apiKey } = await made("alice", PLAN);
  expect(apiKey!.metadata).toEqual(PLAN);
  expect((await service.client("alice").get({})).apiKey!.metadata).toEqual(PLAN);
  expect((await admin.listKeys({ userId: "alice" })).apiKeys[0]!.metadata).toEqual(PLAN);
  for (const one of [service, other]) {
    for (const protocol of ["grpc", "connect"] as const) {
      const client = one.client("alice", { protocol });
      expect((await client.verify({ key })).apiKey!.metadata).toEqual(PLAN);
      const [result] = (await client.batchVerify({ requests: [{ key }] })).results;
      expect(result!.result).toMatchObject({ case: "response", value: { apiKey: { metadata: PLAN } } });
    }
    const json = await fetch(`${one.baseUrl}/latchkey.v1.ApiKeyService/Verify`, {
      ...{ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ key }) },
    });
    expect(await json.json()).toMatchObject({ apiKey: { metadata: PLAN } });
  }
  const { apiKey: next } = await service.client("alice").refresh({});
  expect(next!.metadata).toEqual(PLAN);
});

test("gateways are told the entries that are named, always, and Envoy all of them", async () => {
  const rich = await made("gateway-rich", { ...PLAN, secret: "x" });
  const poor = await service.client("gateway-poor").create({ scopes: ["read"] });
  const headersOf = async (key: string) => {
    const { status, headers } = await fetch(`${service.baseUrl}/v1/authorize`, {
      headers: { authorization: `Bearer ${key}`, "x-latchkey-meta-plan": "forged" },
    });
    const found = Object.fromEntries([...headers].filter(([name]) => name.startsWith("x-latchkey-meta-")));
    return { status, ...found };
  };
  expect(await headersOf(rich.key)).toEqual({
    ...{ status: 200, "x-latchkey-meta-plan": "enterprise", "x-latchkey-meta-tenant": "Zo%C3%AB%20&%20co%2C%207" },
  });
  expect(await headersOf(poor.key)).toEqual({
    ...{ status: 200, "x-latchkey-meta-plan": "-", "x-latchkey-meta-tenant": "-" },
  });
  const envoy = createClient(Authorization, createGrpcTransport({ baseUrl: service.baseUrl }));
  const checked = async (key: string): Promise<CheckResponse> =>
    envoy.check({ attributes: { request: { http: { headers: { authorization: `Bearer ${key}` } } } } });
  const answer = await checked(rich.key);
  expect(answer.dynamicMetadata).toMatchObject({ metadata: { ...PLAN, secret: "x" }, user: "gateway-rich" });
  expect((await checked(poor.key)).dynamicMetadata).not.toHaveProperty("metadata");
});

test("ListKeys finds keys by entries, all of them, exactly, by an index and in the order of ids", async () => {
  for (let index = 0; index < 6; index += 1)
    await made(`searched-${index}`, { plan: index % 2 === 0 ? "even" : "odd", "n-1": String(index % 3) });
  const found = async (metadata: Record<string, string>, pageSize = 0) =>
    (await admin.listKeys({ metadata, pageSize })).apiKeys.map(({ userId }) => userId).sort();
  expect(await found({ plan: "even" })).toEqual(["searched-0", "searched-2", "searched-4"]);
  expect(await found({ plan: "even", "n-1": "1" })).toEqual(["searched-4"]);
  expect(await found({ plan: "eve" })).toEqual([]);
  expect(await found({ plan: "even" }, 2)).toHaveLength(2);
  expect(await refusalOf(admin.listKeys({ metadata: { "a.b": "$gt" } }))).toMatchObject({ fields: ["metadata.a.b"] });

  const keys = mongo.db(service.database).collection("api_keys");
  const explained = await keys
    .find(matching({ metadata: ["plan=even"] }, undefined, new Date()) as Document)
    .sort({ _id: 1 })
    .limit(2)
    .explain("executionStats");
  expect(JSON.stringify(explained.queryPlanner.winningPlan)).toContain('"indexName":"keys_of_metadata"');
  expect(JSON.stringify(explained.queryPlanner.winningPlan)).not.toContain('"SORT"');
  expect(explained.executionStats.totalDocsExamined).toBe(2);
});

test("metadata that can't be are INVALID_ARGUMENT, by name; members' own go where they may", async () => {
  const many = Object.fromEntries(Array.from({ length: 17 }, (_, index) => [`n${index}`, ""]));
  expect(await refusalOf(made("bad", many))).toMatchObject({ reason: "INVALID_ARGUMENT", fields: ["metadata"] });
  expect(await refusalOf(made("bad", { Plan: "x", "latchkey-x": "", ok: "a\r\nb" }))).toMatchObject({
    fields: expect.arrayContaining(["metadata.Plan", "metadata.latchkey-x", "metadata.ok"]),
  });
  const member = service.client("member");
  expect(await refusalOf(member.create({ scopes: ["read"], metadata: { plan: "x" } }))).toMatchObject({
    ...{ reason: "ADMIN_REQUIRED" },
  });
  const { key, apiKey } = await member.create({ scopes: ["read"], metadata: { "label-a": "x" } });
  expect(apiKey!.metadata).toEqual({ "label-a": "x" });
  expect((await member.verify({ key })).outcome).toBe(Outcome.VALID);
});

test("a name that stands twice in JSON is refused, and named", async () => {
  const token = await userToken("root", { admin: true });
  const post = async (body: string) => {
    const answer = await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/Create`, {
      ...{ method: "POST", headers: { "content-type": "application/json", authorization: `Bearer ${token}` }, body },
    });
    return { status: answer.status, text: await answer.text() };
  };
  const metadata = '{"plan":"a","pl\\u0061n":"b"}';
  expect(await post(`{"userId":"twice","scopes":["read"],"metadata":${metadata}}`)).toMatchObject({
    ...{ status: 400, text: expect.stringContaining("metadata.plan") },
  });
  expect(await post('{"scopes":["read"],"userId":"twice","scopes":["admin"]}')).toMatchObject({ status: 400 });
  expect(await post('{"userId":"twice","scopes":["read"],"metadata":{"a":"\\"a\\":{","b":"b"}}')).toMatchObject({
    ...{ status: 200 },
  });
});
