import { randomUUID } from "node:crypto";
import { Agent, request } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterAll, afterEach, beforeAll, expect, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/health/v1/health_pb";
import { Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { OPERATION_TIMEOUT_MS } from "../../src/mongo/connection.ts";
import { type ReplicaSet, startReplicaSet } from "../support/replica-set.ts";
import { startService, type TestService } from "../support/service.ts";

let set: ReplicaSet;
let service: TestService;
beforeAll(async () => {
  set = await startReplicaSet({ size: 1 });
}, 120_000);
afterEach(async () => {
  cut(false);
  await service.stop();
});
afterAll(() => set.stop());

const cut = (cut: boolean) => set.toClients(set.members[0]!, cut ? { cut } : {});
const start = async (outageGrace: string) => {
  service = await startService({ env: { MONGODB_URI: set.uri, LATCHKEY_OUTAGE_GRACE: outageGrace } });
};

const SERVICES = ["", "latchkey.v1.ApiKeyService", "envoy.service.auth.v3.Authorization", "latchkey.v1.AdminService"];

/** What health says of each service. */
async function healthOf(): Promise<string[]> {
  const health = createClient(Health, createGrpcTransport({ baseUrl: service.baseUrl }));
  const answers = await Promise.all(SERVICES.map((name) => health.check({ service: name })));
  return answers.map(({ status }) => Status[status]);
}

async function readyz(): Promise<{ status: number; text: string }> {
  const answer = await fetch(`http://${service.server.opsAddress}/readyz`);
  return { status: answer.status, text: await answer.text() };
}

async function untilHealth(wanted: string[]): Promise<void> {
  while (JSON.stringify(await healthOf()) !== JSON.stringify(wanted)) await sleep(50);
}

/** A busy machine may take MongoDB for away now and then. */
async function untilAllIsWell(): Promise<void> {
  while (!/^ready\n(\[\+\] \w+: ok\n)+$/.test((await readyz()).text)) await sleep(50);
  await untilHealth(ALL);
}

const ALL = SERVICES.map(() => "SERVING");
const NONE = SERVICES.map(() => "NOT_SERVING");
const CHANGES_ALONE_FAIL = ["SERVING", "SERVING", "SERVING", "NOT_SERVING"];

test("while MongoDB is away and keys are answered from memory, the service is ready, and only what changes keys is not", async () => {
  await start("10m");
  const { key } = await service.client().create({ scopes: ["read"] });
  await untilAllIsWell();

  cut(true);
  await untilHealth(CHANGES_ALONE_FAIL);
  const { status, text } = await readyz();
  expect({ status, text }).toEqual({
    status: 200,
    text: expect.stringMatching(/^ready\n(?:.*\n)*\[\+\] keys: ok\n\[-\] database: MongoDB does not answer/),
  });
  expect((await service.client().verify({ key })).outcome).toBe(Outcome.VALID);

  cut(false);
  await untilHealth(ALL);
}, 120_000);

test("past the grace nothing is ready, /readyz says what to do, and it comes back by itself", async () => {
  await start("0s");
  await untilHealth(ALL);
  cut(true);
  await untilHealth(NONE);
  expect(await readyz()).toEqual({
    status: 503,
    text: expect.stringMatching(/^not ready\n(?:.*\n)*\[-\] keys: .*LATCHKEY_OUTAGE_GRACE \(0s\).*\n\[-\] database: /),
  });
  cut(false);
  await untilAllIsWell();
}, 120_000);

test("from the drain on nothing is ready, whatever the database does, and calls are still answered until the stop", async () => {
  await start("30s");
  await untilHealth(ALL);
  service.server.drain();
  expect(await healthOf()).toEqual(NONE);
  expect(await readyz()).toEqual({ status: 503, text: expect.stringContaining("[-] calls: The service is stopping.") });
  expect((await service.client().create({ scopes: ["read"] })).key).toMatch(/^lk_/);
}, 120_000);

test("from the drain on each answer over HTTP/1.1 is its connection's last, so that no request meets the close of an idle one", async () => {
  await start("30s");
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const connectionOf = (path: string) =>
    new Promise((resolve, reject) => {
      const headers = { "content-type": "application/json" };
      request(service.baseUrl + path, { ...{ agent, headers }, method: "POST" }, (response) => {
        response.resume().on("end", () => resolve(response.headers.connection));
      })
        .on("error", reject)
        .end("{}");
    });
  const paths = ["Verify", "Get"].map((method) => `/latchkey.v1.ApiKeyService/${method}`).concat("/v1/authorize");
  for (const path of paths) {
    expect(await connectionOf(path)).toBe("keep-alive");
    service.server.drain();
    // On the connection of before, and on one that is made now.
    expect([await connectionOf(path), await connectionOf(path)]).toEqual(["close", "close"]);
    await service.stop();
    await start("30s");
  }
  agent.destroy();
}, 120_000);

test("an index that takes longer to build than any operation may last is waited for, and the start says so", async () => {
  const database = `test-${randomUUID()}`;
  const mongo = await MongoClient.connect(set.members[0]!.directUri);
  const hold = (mode: "alwaysOn" | "off") =>
    mongo.db("admin").command({ configureFailPoint: "hangAfterStartingIndexBuild", mode });
  const said: string[] = [];
  try {
    // Of an empty collection no index has to be built.
    await mongo.db(database).collection<{ _id: string }>("audit").insertOne({ _id: "an entry of long ago" });
    await hold("alwaysOn");
    const env = { MONGODB_URI: set.uri, MONGODB_DATABASE: database };
    const starting = startService({ env, say: (line) => void said.push(line) });
    await sleep(OPERATION_TIMEOUT_MS + 2_000);
    expect(said.join()).toContain(`Making the indexes of the database "${database}" takes a while`);
    await hold("off");
    service = await starting;
  } finally {
    await hold("off");
    await mongo.close();
  }
  await untilAllIsWell();
}, 120_000);
