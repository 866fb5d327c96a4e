import type { Client } from "@connectrpc/connect";
import { afterAll, beforeAll, expect, jest, test } from "@jest/globals";
import type { AdminService } from "#gen/latchkey/v1/admin_service_pb";
import { Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { createLatchkeyAdminClient } from "../../src/client/index.ts";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

jest.setTimeout(120_000);

let service: TestService;
let other: TestService;
let admin: Client<typeof AdminService>;

beforeAll(async () => {
  service = await startService({ env: { LATCHKEY_MEMBER_METADATA: "label-*" } });
  // Nothing here ends by itself for hours: what the other replica learns, it learns by the change stream.
  other = await startService({ env: { MONGODB_DATABASE: service.database } });
  const token = () => userToken("root", { admin: true });
  admin = createLatchkeyAdminClient({ baseUrl: service.baseUrl, token, timeoutMs: 10_000 });
});
afterAll(async () => {
  await Promise.all([service.stop(), other.stop()]);
});

/** What every door of a process answers to who needs the scope `write`, and what it says of the key. */
async function doors({ baseUrl, client }: TestService, key: string) {
  const [grpc, connect] = (["grpc", "connect"] as const).map((protocol) => client("asker", { protocol }));
  const asked = { key, requiredScopes: ["write"] };
  const answers = [await grpc!.verify(asked), await connect!.verify(asked)];
  const { results } = await grpc!.batchVerify({ requests: [asked] });
  for (const { result } of results) if (result.case === "response") answers.push(result.value);
  const gateway = await fetch(`${baseUrl}/v1/authorize?scopes=write`, { headers: { authorization: `Bearer ${key}` } });
  return {
    outcomes: answers.map(({ outcome }) => Outcome[outcome]),
    scopes: answers.map(({ apiKey }) => apiKey?.scopes.join(" ")),
    names: [...answers.map(({ apiKey }) => apiKey?.name), gateway.headers.get("x-latchkey-name") ?? "refused"],
    gateway: gateway.status,
  };
}

const all = (value: string) => [value, value, value];

async function until(expected: object, key: string): Promise<void> {
  while (JSON.stringify(await doors(other, key)) !== JSON.stringify(expected)) await new Promise(setImmediate);
}

test("a narrowed scope is refused through every door, on another replica too, and every answer says what the key now is", async () => {
  const owner = service.client("alice");
  const { key } = await owner.create({ scopes: ["read", "write"], name: "old" });
  const before = { outcomes: all("VALID"), scopes: all("read write"), names: [...all("old"), "old"], gateway: 200 };
  await until(before, key);
  const { etag } = await owner.get({});
  const paths = ["scopes", "name"];
  const updated = await owner.update({ updateMask: { paths }, scopes: ["read"], name: "new", etag });
  expect(updated).toMatchObject({ apiKey: { scopes: ["read"], name: "new" }, isRepeat: false });
  expect(updated.etag).not.toBe(etag);
  const after = {
    ...{ outcomes: all("INSUFFICIENT_SCOPE"), scopes: all("read"), names: [...all("new"), "refused"], gateway: 403 },
  };
  expect(await doors(service, key)).toEqual(after);
  await until(after, key);
  expect((await owner.get({})).etag).toBe(updated.etag);
});

test("of two Updates at once with one etag exactly one wins; the other is ETAG_MISMATCH, and not to be repeated", async () => {
  const owner = service.client("bob");
  await owner.create({ scopes: ["read"] });
  const { etag } = await owner.get({});
  const rename = (one: TestService, name: string) =>
    one.client("bob").update({ updateMask: { paths: ["name"] }, name, etag });
  const all = await Promise.allSettled([service, other, service, other].map((one, index) => rename(one, `n${index}`)));
  const [won, ...others] = all.filter(({ status }) => status === "fulfilled");
  expect(others).toEqual([]);
  expect((await owner.get({})).apiKey!.name).toBe(
    (won as PromiseFulfilledResult<{ apiKey?: { name: string } }>).value.apiKey!.name,
  );
  for (const one of all.filter(({ status }) => status === "rejected"))
    expect(await refusalOf(Promise.reject((one as PromiseRejectedResult).reason))).toMatchObject({
      reason: "ETAG_MISMATCH",
    });
});

test("metadata and the end are changed one by one, and the trail has both values of each", async () => {
  const { key } = await service.client("root", { admin: true }).create({
    ...{ userId: "carol", scopes: ["read"], metadata: { plan: "free", "label-a": "x" } },
  });
  const root = service.client("root", { admin: true });
  const asked = {
    ...{ userId: "carol", updateMask: { paths: ["metadata.plan", "metadata.label-a", "ttl"] } },
    ...{ metadata: { plan: "pro" }, lifetime: { case: "ttl" as const, value: { seconds: 60n } } },
    requestId: "u".repeat(22),
  };
  expect((await root.update(asked)).apiKey).toMatchObject({ metadata: { plan: "pro" }, expiresAt: expect.anything() });
  expect(await root.update(asked)).toMatchObject({ isRepeat: true });
  const [entry] = (await admin.listAudit({ userId: "carol", action: "Update" })).entries;
  expect(entry!.changes.map(({ field, old, new: now }) => [field, old, now])).toEqual([
    ["metadata.label-a", "x", ""],
    ["metadata.plan", "free", "pro"],
    ["expires_at", "", expect.stringMatching(/^20/)],
  ]);
  expect(await refusalOf(service.client("carol").update({ updateMask: { paths: ["metadata.plan"] } }))).toMatchObject({
    ...{ reason: "ADMIN_REQUIRED" },
  });
  expect((await other.client().verify({ key })).apiKey!.metadata).toEqual({ plan: "pro" });
});

test("in JSON the mask is one text of names in lower camel case", async () => {
  const token = await userToken("dave");
  await service.client("dave").create({ scopes: ["read"], name: "x" });
  const answer = await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/Update`, {
    ...{ method: "POST", headers: { "content-type": "application/json", authorization: `Bearer ${token}` } },
    body: '{"updateMask":"name,expiresAt,metadata.label-a","expiresAt":"2999-01-01T00:00:00Z","metadata":{"label-a":"1"}}',
  });
  expect(await answer.json()).toMatchObject({
    apiKey: { expiresAt: "2999-01-01T00:00:00Z", metadata: { "label-a": "1" } },
  });
});
