import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { Agent, request } from "node:http";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { credentials, loadPackageDefinition, type ServiceError } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { afterEach, expect, test } from "@jest/globals";
import { createLatchkeyClient } from "../../src/client/index.ts";
import { haproxy } from "../gateways/gateways.ts";
import { endAfterTest, newDirectory, type ServiceProcess, serve, stopProcesses } from "../support/process.ts";
import { freePort } from "../support/replica-set.ts";
import { JWT_SECRET, PEPPER, userToken } from "../support/service.ts";

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
  await stopProcesses();
});

interface Place {
  port: number;
  ops: number;
  service: ServiceProcess;
}

/** Two processes of one service. */
async function startTwo(): Promise<{
  places: Place[];
  start: (place: Omit<Place, "service">) => Promise<ServiceProcess>;
}> {
  const database = `test-${randomUUID()}`;
  const start = ({ port, ops }: { port: number; ops: number }) =>
    serve({
      ...{ MONGODB_URI: process.env.TEST_MONGODB_URI!, MONGODB_DATABASE: database },
      ...{ LATCHKEY_JWT_SECRET: JWT_SECRET, LATCHKEY_PEPPERS: `p1:${PEPPER}` },
      ...{ LATCHKEY_LISTEN: `127.0.0.1:${port}`, LATCHKEY_OPS_LISTEN: `127.0.0.1:${ops}` },
      // Of a process that has just started, the first reads of a busy machine take long.
      ...{ LATCHKEY_DRAIN_DELAY: "5s", LATCHKEY_READ_TIMEOUT: "1m" },
    });
  const places: Place[] = [];
  for (let index = 0; index < 2; index += 1) {
    const place = { port: await freePort(), ops: await freePort() };
    places.push({ ...place, service: await start(place) });
  }
  return { places, start };
}

type Ask = (key: string) => Promise<string>;

/** HTTP/1.1 with connections that are kept, to the one address of a balancer. */
function keepAliveClient(port: number): Ask {
  const agent = new Agent({ keepAlive: true });
  cleanUps.push(() => agent.destroy());
  return (key) =>
    new Promise((resolve, reject) => {
      const headers = { "content-type": "application/json" };
      const path = "/latchkey.v1.ApiKeyService/Verify";
      const call = request({ ...{ agent, port, path, headers }, host: "127.0.0.1", method: "POST" }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk) => {
          text += chunk;
        });
        response.on("end", () => resolve(response.statusCode === 200 ? JSON.parse(text).outcome : text));
        response.on("error", reject);
      });
      call.on("error", reject).end(JSON.stringify({ key }));
    });
}

/** grpc-js, which balances by itself over all addresses, and does not ask for health. */
function grpcClient(ports: number[]): Ask {
  type Callback = (error: ServiceError | null, answer: { outcome: string }) => void;
  interface Client {
    verify(request: { key: string }, callback: Callback): void;
    close(): void;
  }
  const definition = loadPackageDefinition(
    loadSync("latchkey/v1/api_key_service.proto", { includeDirs: ["proto"], enums: String }),
  ) as unknown as {
    latchkey: { v1: { ApiKeyService: new (address: string, credentials: unknown, options: object) => Client } };
  };
  const address = `ipv4:${ports.map((port) => `127.0.0.1:${port}`).join(",")}`;
  const client = new definition.latchkey.v1.ApiKeyService(address, credentials.createInsecure(), {
    "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
  });
  cleanUps.push(() => client.close());
  return (key) =>
    new Promise((resolve, reject) => {
      client.verify({ key }, (error, answer) => (error ? reject(error) : resolve(answer.outcome)));
    });
}

/** Balances over both by what `/readyz` says, and tries nothing twice. */
async function startHaproxy(binary: string, places: Place[]): Promise<number> {
  const port = await freePort();
  const file = join(newDirectory(), "haproxy.cfg");
  const servers = places.map(
    (place, index) => `  server s${index} 127.0.0.1:${place.port} check port ${place.ops} inter 100ms fall 1 rise 1\n`,
  );
  writeFileSync(
    file,
    `defaults
  mode http
  retries 0
  timeout connect 30s
  timeout client 60s
  timeout server 60s
  timeout check 30s
listen latchkey
  bind 127.0.0.1:${port}
  option httpchk GET /readyz
${servers.join("")}`,
  );
  const child: ChildProcess = spawn(binary, ["-db", "-f", file], { stdio: "ignore" });
  endAfterTest(child);
  return port;
}

test("a rolling restart under load fails no call: gRPC clients that balance, and HTTP/1.1 behind a balancer that heeds /readyz", async () => {
  const { places, start } = await startTwo();
  const token = await userToken("alice");
  const { key } = await createLatchkeyClient({ baseUrl: places[0]!.service.url, token, timeoutMs: 60_000 }).create({
    scopes: ["read"],
  });
  const clients = new Map<string, Ask>([["grpc-js", grpcClient(places.map(({ port }) => port))]]);
  const binary = await haproxy.find().catch((error: Error) => {
    process.stderr.write(`HTTP/1.1 is not restarted under: HAProxy ${error.message}\n`);
    return undefined;
  });
  if (binary !== undefined) {
    const port = await startHaproxy(binary, places);
    const ask = keepAliveClient(port);
    while ((await ask(key).catch(() => "")) !== "OUTCOME_VALID") await sleep(50);
    clients.set("keep-alive", ask);
  }

  let ended = false;
  const failures: string[] = [];
  const answers = new Map<string, number>();
  const load = [...clients].flatMap(([name, ask]) =>
    Array.from({ length: 8 }, async () => {
      while (!ended) {
        const outcome = await ask(key).catch(String);
        answers.set(name, (answers.get(name) ?? 0) + 1);
        if (outcome !== "OUTCOME_VALID") failures.push(`${name}: ${outcome}`);
        await sleep(5);
      }
    }),
  );
  const answered = async ({ ops }: Place) => {
    const text = await (await fetch(`http://127.0.0.1:${ops}/metrics`)).text();
    return [...text.matchAll(/^latchkey_rpc_duration_seconds_count\{.*Verify",code="ok"\} (\d+)$/gm)].reduce(
      (sum, [, count]) => sum + Number(count),
      0,
    );
  };
  for (const place of places) {
    const closed = once(place.service.child, "close");
    place.service.child.kill("SIGTERM");
    expect(await closed).toEqual([0, null]);
    place.service = await start(place);
    // Until it has its share of the load again.
    while ((await answered(place)) < 100) await sleep(50);
  }
  ended = true;
  await Promise.all(load);
  expect(failures).toEqual([]);
  expect([...answers.keys()].sort()).toEqual([...clients.keys()].sort());
}, 180_000);
