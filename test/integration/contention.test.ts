import { randomUUID } from "node:crypto";
import { ConnectError } from "@connectrpc/connect";
import { errorFromJson } from "@connectrpc/connect/protocol-connect";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { type Collection, MongoClient } from "mongodb";
import { Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

let mongo: MongoClient;
const services: TestService[] = [];
beforeAll(async () => {
  mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
});
afterAll(async () => {
  await Promise.all(services.map((service) => service.stop()));
  await mongo.close();
});
const start = async (env: Record<string, string> = {}) => {
  const service = await startService({ env });
  services.push(service);
  return service;
};
interface Stored {
  _id: string;
  userId: string;
  state: string;
  rev: number;
}
const recordsOf = (service: TestService): Collection<Stored> =>
  mongo.db(service.database).collection<Stored>("api_keys");

test("CONFLICT between two processes: changes that outlast a call's retries are ABORTED with RetryInfo, and nothing is written", async () => {
  const service = await start();
  const user = randomUUID();
  const client = service.client(user);
  const { key } = await client.create({ scopes: ["read"] });
  const records = recordsOf(service);
  const before = await records.find().toArray();
  // The other process: it has changed the key, and is not done yet.
  const other = mongo.startSession();
  other.startTransaction();
  await records.updateOne({ userId: user, state: "active" }, { $inc: { rev: 1 } }, { session: other });
  for (const method of ["Refresh", "Revoke"]) {
    // A deadline that only the service keeps: a client's own clock would end the call first.
    const response = await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/${method}`, {
      method: "POST",
      headers: {
        authorization: `Bearer ${await userToken(user)}`,
        "content-type": "application/json",
        "connect-timeout-ms": "1500",
      },
      body: "{}",
    });
    const error = errorFromJson((await response.json()) as never, response.headers, new ConnectError("no error"));
    expect(await refusalOf(Promise.reject(error))).toMatchObject({ code: "Aborted", reason: "CONFLICT", retry: true });
  }
  // And one that the client keeps too. Where this machine is too busy for the answer to come in time, it is asked again.
  let reason: string | undefined;
  for (let attempt = 0; attempt < 5 && reason === undefined; attempt += 1) {
    ({ reason } = await refusalOf(client.refresh({}, { timeoutMs: 2_000 })));
  }
  expect(reason).toBe("CONFLICT");
  await other.abortTransaction();
  await other.endSession();
  expect(await records.find().toArray()).toEqual(before);
  expect((await client.verify({ key })).outcome).toBe(Outcome.VALID);
  expect((await client.refresh({})).previousKeyRevoked).toBe(true);
});

test("two processes that rotate one user's key at once: each call succeeds or may be repeated, and one key is left that verifies", async () => {
  const one = await start();
  const other = await start({ MONGODB_DATABASE: one.database });
  const user = randomUUID();
  await one.client(user).create({ scopes: ["read"] });
  const clients = [one.client(user), other.client(user)];
  const calls = Array.from({ length: 32 }, (_, index) => clients[index % 2]!.refresh({}));
  const keys: string[] = [];
  for (const result of await Promise.allSettled(calls)) {
    if (result.status === "fulfilled") keys.push(result.value.key);
    else expect(await refusalOf(Promise.reject(result.reason))).toMatchObject({ retry: true });
  }
  for (const client of clients) {
    const outcomes = await Promise.all(keys.map(async (key) => (await client.verify({ key })).outcome));
    expect(outcomes.filter((outcome) => outcome === Outcome.VALID)).toHaveLength(1);
  }
  expect(await recordsOf(one).countDocuments({ userId: user, state: "active" })).toBe(1);
}, 60_000);

test("two processes that create for one user at once: one succeeds, the others are told KEY_EXISTS or to repeat", async () => {
  const one = await start();
  const other = await start({ MONGODB_DATABASE: one.database });
  const user = randomUUID();
  const clients = [one.client(user), other.client(user)];
  const calls = Array.from({ length: 32 }, (_, index) => clients[index % 2]!.create({ scopes: ["read"] }));
  const results = await Promise.allSettled(calls);
  expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  for (const result of results) {
    if (result.status === "fulfilled") continue;
    const { reason, retry } = await refusalOf(Promise.reject(result.reason));
    expect(retry || reason === "KEY_EXISTS").toBe(true);
  }
  expect(await recordsOf(one).countDocuments({ userId: user })).toBe(1);
}, 60_000);

test("OVERLOADED: more Creates than may be hashed are RESOURCE_EXHAUSTED with RetryInfo, write nothing, and may be repeated", async () => {
  const service = await start({ LATCHKEY_HASH_CONCURRENCY: "1", LATCHKEY_HASH_QUEUE: "1" });
  const clients = Array.from({ length: 64 }, () => service.client());
  const results = await Promise.allSettled(clients.map((client) => client.create({ scopes: ["read"] })));
  const refused = results.flatMap((result, index) =>
    result.status === "rejected" ? [{ client: clients[index]!, error: result.reason as unknown }] : [],
  );
  expect(refused.length).toBeGreaterThan(0);
  expect(refused.length).toBeLessThan(64);
  for (const { error } of refused) {
    expect(await refusalOf(Promise.reject(error))).toMatchObject({
      code: "ResourceExhausted",
      reason: "OVERLOADED",
      retry: true,
    });
  }
  expect(await recordsOf(service).countDocuments()).toBe(64 - refused.length);
  expect((await refused[0]!.client.create({ scopes: ["read"] })).key).toMatch(/^lk_/);
}, 60_000);
