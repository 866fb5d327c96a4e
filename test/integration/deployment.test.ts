import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterAll, expect, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/health/v1/health_pb";
import { Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { connect } from "../../src/mongo/connection.ts";
import { ensureSchema } from "../../src/mongo/schema.ts";
import { SERVER_CODES } from "../../src/mongo/server-errors.ts";
import { refusalOf } from "../support/errors.ts";
import { createMongods, freePort } from "../support/replica-set.ts";
import { startService } from "../support/service.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";

const mongods = createMongods();
afterAll(() => mongods.stop());

test("a standalone server is refused with a sentence that says why and what to do", async () => {
  const port = await freePort();
  await mongods.run(port);
  await expect(connect(`mongodb://127.0.0.1:${port}/`)).rejects.toThrow(/standalone MongoDB server.*--replSet/s);
});

test("an unreachable deployment and a malformed URI are one sentence each, without the password", async () => {
  for (const uri of [
    `mongodb://user:canary@127.0.0.1:${await freePort()}/?replicaSet=rs0`,
    "mongodb://user:canary@@@",
  ]) {
    const error = await connect(uri).catch((thrown: Error) => thrown);
    expect(error).toMatchObject({ name: "StartupError", message: expect.stringContaining("MONGODB_URI") });
    expect((error as Error).message).not.toContain("canary");
  }
});

test("a connection that is slow to come, as the first ones are on a busy machine, is waited for at the start", async () => {
  const { host } = new URL(process.env.TEST_MONGODB_URI!);
  const proxy = await startTcpProxy({ to: Number(host.split(":")[1]) });
  const connecting = connect(`mongodb://127.0.0.1:${proxy.port}/?directConnection=true`);
  // The first connection has found the server; the next ones are for commands.
  while (proxy.connections() < 2) await sleep(1);
  proxy.set({ blackHole: "both" });
  await sleep(3_000);
  proxy.set({});
  await (await connecting).close();
  await proxy.close();
});

test("a conflicting index is reported and left alone; the schema can be ensured twice, and at once by several", async () => {
  const client = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  const names = [`test-${randomUUID()}`, `test-${randomUUID()}`];
  const [conflicting, clean] = names.map((name) => client.db(name));
  await conflicting!.collection("api_keys").createIndex({ createdAt: 1 }, { name: "one_active_key_per_user" });
  await expect(ensureSchema(conflicting!)).rejects.toThrow(/conflicts with "one_active_key_per_user"/);
  expect(await conflicting!.collection("api_keys").indexExists("one_active_key_per_user")).toBe(true);
  await Promise.all([ensureSchema(clean!), ensureSchema(clean!)]);
  await ensureSchema(clean!);
  await expect(clean!.collection<{ _id: string }>("api_keys").insertOne({ _id: "bad" })).rejects.toThrow(/validation/);
  await client.close();
});

test("whatever else MongoDB refuses at the start is one sentence, without the command", async () => {
  const client = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  const db = client.db(`test-${randomUUID()}`);
  await db.createCollection("audit", { viewOn: "elsewhere", pipeline: [] });
  await expect(ensureSchema(db)).rejects.toMatchObject({
    name: "StartupError",
    message: `The collections of the database "${db.databaseName}" can't be read, made or altered (CommandNotSupportedOnView). Check that MongoDB is well, and that nothing else uses this database.`,
  });
  await client.close();
});

test("the database itself refuses a second active key and a second retiring one of a user", async () => {
  const service = await startService();
  const user = randomUUID();
  await service.client(user).create({ scopes: ["read"] });
  await service.client(user).refresh({ gracePeriod: { seconds: 60n } });
  const client = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  const keys = client.db(service.database).collection<{ _id: string; state: string }>("api_keys");
  for (const state of ["active", "retiring"]) {
    const copy = (await keys.findOne({ userId: user, state }))!;
    await expect(keys.insertOne({ ...copy, _id: "A".repeat(16) })).rejects.toMatchObject({
      code: SERVER_CODES.CONFLICT.DuplicateKey,
    });
  }
  await client.close();
  await service.stop();
});

test("on a three-member replica set everything works; without a primary, changes are DB_UNAVAILABLE and health says so of what changes keys alone, and it recovers", async () => {
  const ports = [await freePort(), await freePort(), await freePort()];
  const members = await Promise.all(ports.map((port) => mongods.run(port, "--replSet", "three")));
  const first = await MongoClient.connect(`mongodb://127.0.0.1:${ports[0]}/?directConnection=true`);
  await first.db("admin").command({
    replSetInitiate: {
      _id: "three",
      members: ports.map((port, index) => ({ _id: index, host: `127.0.0.1:${port}`, priority: index === 0 ? 2 : 1 })),
      settings: { electionTimeoutMillis: 2_000 },
    },
  });
  await first.close();
  const uri = `mongodb://${ports.map((port) => `127.0.0.1:${port}`).join(",")}/?replicaSet=three`;
  // What the URI says of reads and writes changes nothing.
  let service: Awaited<ReturnType<typeof startService>> | undefined;
  for (let attempt = 0; service === undefined; attempt += 1) {
    service = await startService({ env: { MONGODB_URI: `${uri}&readPreference=secondary&w=1` } }).catch((error) => {
      if (attempt > 10) throw error;
      return undefined;
    });
  }
  const client = service.client();
  const { key } = await client.create({ scopes: ["read"] });
  const { key: next } = await client.refresh({});
  expect((await client.verify({ key })).outcome).toBe(Outcome.REVOKED);
  expect((await client.verify({ key: next })).outcome).toBe(Outcome.VALID);

  for (const member of members.slice(1)) member.kill("SIGSTOP");
  const health = createClient(Health, createGrpcTransport({ baseUrl: service.baseUrl }));
  const healthOf = async (name: string) => (await health.check({ service: name })).status;
  const untilHealth = async (wanted: Status) => {
    while ((await healthOf("latchkey.v1.AdminService")) !== wanted) await sleep(100);
  };
  expect(await refusalOf(client.refresh({}))).toMatchObject({
    code: "Unavailable",
    reason: "DB_UNAVAILABLE",
    retry: true,
  });
  await untilHealth(Status.NOT_SERVING);
  for (const member of members.slice(1)) member.kill("SIGCONT");
  await untilHealth(Status.SERVING);
  // The interrupted Refresh may have been made or not: there is one active key, and Verify agrees with Get.
  const { apiKey } = await client.get({});
  const answer = await client.verify({ key: next });
  expect(answer.outcome).toBe(apiKey?.id === answer.apiKey?.id ? Outcome.VALID : Outcome.REVOKED);
  await service.stop();
}, 120_000);
