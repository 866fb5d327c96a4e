import type { Client } from "@connectrpc/connect";
import { afterAll, beforeAll, expect, jest, test } from "@jest/globals";
import type { AdminService } from "#gen/latchkey/v1/admin_service_pb";
import { KeyChangeKind, Outcome, State } from "#gen/latchkey/v1/api_key_service_pb";
import { createLatchkeyAdminClient, createLatchkeyClient } from "../../src/client/index.ts";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

jest.setTimeout(120_000);

let service: TestService;
let other: TestService;
let admin: Client<typeof AdminService>;

beforeAll(async () => {
  service = await startService();
  other = await startService({ env: { MONGODB_DATABASE: service.database } });
  const token = () => userToken("root", { admin: true });
  admin = createLatchkeyAdminClient({ baseUrl: service.baseUrl, token, timeoutMs: 10_000 });
});
afterAll(async () => {
  await Promise.all([service.stop(), other.stop()]);
});

const root = () => service.client("root", { admin: true });

/** What every door of a process says of a key. */
async function doors({ baseUrl, client }: TestService, key: string) {
  const [grpc, connect] = (["grpc", "connect"] as const).map((protocol) => client("asker", { protocol }));
  const { results } = await grpc!.batchVerify({ requests: [{ key }] });
  const [item] = results.map(({ result }) => (result.case === "response" ? result.value.outcome : undefined));
  const gateway = await fetch(`${baseUrl}/v1/authorize`, { headers: { authorization: `Bearer ${key}` } });
  return [
    (await grpc!.verify({ key })).outcome,
    (await connect!.verify({ key })).outcome,
    item,
    gateway.status === 200 ? Outcome.VALID : `${gateway.status} ${JSON.parse(await gateway.text()).reason}`,
  ];
}

const GOOD = [Outcome.VALID, Outcome.VALID, Outcome.VALID, Outcome.VALID];
const STOPPED = [Outcome.SUSPENDED, Outcome.SUSPENDED, Outcome.SUSPENDED, "403 SUSPENDED"];

async function until(expected: unknown[], key: string): Promise<void> {
  while (JSON.stringify(await doors(other, key)) !== JSON.stringify(expected)) await new Promise(setImmediate);
}

test("a suspended key is refused through every door, on another replica too, and good again when it is resumed", async () => {
  const owner = service.client("alice");
  const { key } = await owner.create({ scopes: ["read"] });
  await until(GOOD, key);
  const { apiKey } = await owner.suspend({ reason: "lost" });
  expect(apiKey).toMatchObject({ state: State.SUSPENDED, suspensionReason: "lost", suspendedByAdmin: false });
  expect(await doors(service, key)).toEqual(STOPPED);
  await until(STOPPED, key);
  expect(await owner.get({})).toMatchObject({ apiKey: { state: State.SUSPENDED } });
  expect((await admin.listKeys({ userId: "alice", state: State.SUSPENDED })).apiKeys).toHaveLength(1);
  expect((await admin.listKeys({ userId: "alice", state: State.ACTIVE })).apiKeys).toHaveLength(0);
  expect(await refusalOf(owner.refresh({}))).toMatchObject({ reason: "KEY_SUSPENDED" });
  expect((await owner.resume({})).apiKey?.state).toBe(State.ACTIVE);
  expect(await doors(service, key)).toEqual(GOOD);
  await until(GOOD, key);
});

test("whoever does not hold the secret does not learn that a key is suspended", async () => {
  const { key, apiKey } = await service.client("bob").create({ scopes: ["read"] });
  await service.client("bob").suspend({});
  const { key: stranger } = await service.client("carol").create({ scopes: ["read"] });
  const { formatKey, parseKey } = await import("../../src/keys/text.ts");
  const forged = formatKey({ ...parseKey(stranger, ["lk"])!, id: apiKey!.id });
  expect((await service.client().verify({ key: forged })).outcome).toBe(Outcome.NOT_FOUND);
  expect((await service.client().verify({ key })).outcome).toBe(Outcome.SUSPENDED);
});

test("an admin's suspension outlives its key, in the database", async () => {
  const owner = service.client("dave");
  await owner.create({ scopes: ["read"] });
  await root().suspend({ userId: "dave", reason: "abuse" });
  expect(await refusalOf(owner.resume({}))).toMatchObject({ reason: "ADMIN_REQUIRED" });
  await owner.revoke({});
  expect(await refusalOf(owner.create({ scopes: ["read"] }))).toMatchObject({ reason: "KEY_SUSPENDED" });
  expect(await refusalOf(other.client("dave").refresh({ scopes: ["read"] }))).toMatchObject({
    reason: "KEY_SUSPENDED",
  });
  expect((await root().resume({ userId: "dave" })).apiKey).toBeUndefined();
  expect((await owner.create({ scopes: ["read"] })).apiKey?.state).toBe(State.ACTIVE);
});

test("watchers are told of both, and the trail who did so and why", async () => {
  const owner = service.client("erin");
  const { apiKey } = await owner.create({ scopes: ["read"] });
  const kinds: KeyChangeKind[] = [];
  const leave = new AbortController();
  const client = createLatchkeyClient({ baseUrl: other.baseUrl });
  const heard = (async () => {
    for await (const { event } of client.watch({}, { signal: leave.signal })) {
      if (event.case === "heartbeat" && kinds.length === 0)
        void owner.suspend({ reason: "audit" }).then(() => owner.resume({}));
      if (event.case === "change" && event.value.keyId === apiKey!.id) kinds.push(event.value.kind);
      if (kinds.length === 2) return;
    }
  })();
  await heard;
  leave.abort();
  expect(kinds).toEqual([KeyChangeKind.UPDATED, KeyChangeKind.UPDATED]);
  const { entries } = await admin.listAudit({ keyId: apiKey!.id });
  const told = entries.map(({ action, actorId, statedReason }) => [action, actorId, statedReason]);
  expect(told).toEqual([
    ["Resume", "erin", ""],
    ["Suspend", "erin", "audit"],
    ["Create", "erin", ""],
  ]);
});
