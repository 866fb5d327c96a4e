import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test } from "@jest/globals";
import { createLatchkeyClient, Outcome } from "../../src/client/index.ts";
import { readDevSecrets } from "../../src/embedded/dev-secrets.ts";
import { launch, newDirectory, runToEnd, type ServiceProcess, serve, stopProcesses } from "../support/process.ts";
import { userToken } from "../support/service.ts";

afterEach(stopProcesses);

const two = (dataDir: string, env: Record<string, string> = {}) =>
  serve({ LATCHKEY_DATA_DIR: dataDir, LATCHKEY_WORKERS: "2", LATCHKEY_LOG_LEVEL: "debug", ...env });

const clientOf = async ({ url }: ServiceProcess, dataDir: string, user: string) =>
  createLatchkeyClient({
    ...{ baseUrl: url, timeoutMs: 30_000 },
    token: await userToken(user, { secret: readDevSecrets(dataDir)!.jwtSecret }),
  });

/** Each client has a connection of its own, and so a worker of its own. */
const strangers = ({ url }: ServiceProcess, count: number) =>
  Array.from({ length: count }, () => createLatchkeyClient({ baseUrl: url, timeoutMs: 30_000 }));

/** By worker, how many calls of Verify each has answered. */
const answeredBy = (service: ServiceProcess): Map<number, number> => {
  const counts = new Map<number, number>();
  for (const { method, worker } of service.events("rpc")) {
    if (method === "Verify") counts.set(Number(worker), (counts.get(Number(worker)) ?? 0) + 1);
  }
  return counts;
};

const metricsOf = async ({ opsUrl }: ServiceProcess): Promise<string> => (await fetch(`${opsUrl}/metrics`)).text();

const pidsOfWorkers = ({ child }: ServiceProcess): number[] =>
  readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8")
    .trim()
    .split(" ")
    .map(Number)
    .filter((pid) => readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("cli/main.js"));

const isAlive = (pid: number): boolean => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

test("two workers share one port, their metrics are one, and a key revoked through any is refused by all", async () => {
  const dataDir = newDirectory();
  const service = await two(dataDir);
  expect(service.events("ready").length).toBe(1);
  const { key } = await (await clientOf(service, dataDir, "alice")).create({ scopes: ["read"] });
  const verifiers = strangers(service, 4);
  let asked = 0;
  const ask = () =>
    Promise.all(
      verifiers.map(async (client) => {
        asked += 1;
        return (await client.verify({ key })).outcome;
      }),
    );
  // Connections go to the next worker that is free: a busy one may be passed over.
  while (answeredBy(service).size < 2) {
    expect(await ask()).toEqual(verifiers.map(() => Outcome.VALID));
    verifiers.push(...strangers(service, 1));
  }
  expect(await metricsOf(service)).toMatch(new RegExp(`latchkey_verify_total\\{outcome="valid"\\} ${asked}\\n`));
  expect(await metricsOf(service)).toMatch(/latchkey_workers 2\n/);
  expect((await fetch(`${service.opsUrl}/readyz`)).status).toBe(200);

  await (await clientOf(service, dataDir, "alice")).revoke({});
  while ((await ask()).some((outcome) => outcome !== Outcome.REVOKED));
});

test("a worker that is killed is replaced, even when it was one of all, and the service goes on at the same address", async () => {
  const dataDir = newDirectory();
  const service = await two(dataDir);
  const { key } = await (await clientOf(service, dataDir, "alice")).create({ scopes: ["read"] });
  const outcome = async () => (await createLatchkeyClient({ baseUrl: service.url }).verify({ key })).outcome;

  const [victim, other] = pidsOfWorkers(service);
  process.kill(victim!, "SIGKILL");
  // The other answers all the while: a call is lost only with the worker that had it.
  while (service.events("worker_ended").length === 0) await sleep(5);
  expect(await outcome()).toBe(Outcome.VALID);
  while (service.events("worker_started").length === 0) await sleep(20);
  expect(service.events("worker_ended")).toMatchObject([{ pid: victim, signal: "SIGKILL" }]);
  expect(pidsOfWorkers(service)).toContain(other);
  expect(pidsOfWorkers(service).length).toBe(2);

  for (const pid of pidsOfWorkers(service)) process.kill(pid, "SIGKILL");
  while (service.events("worker_ended").length < 3) await sleep(5);
  expect((await fetch(`${service.opsUrl}/readyz`)).status).toBe(503);
  while ((await fetch(`${service.opsUrl}/readyz`)).status !== 200) await sleep(20);
  expect(await outcome()).toBe(Outcome.VALID);
  while (!/latchkey_workers_lost 3\n/.test(await metricsOf(service))) await sleep(20);
}, 60_000);

test("kill -9 of the first process ends its workers and mongod, and the next start works", async () => {
  const dataDir = newDirectory();
  const first = await two(dataDir);
  const { key } = await (await clientOf(first, dataDir, "alice")).create({ scopes: ["read"] });
  const mongod = Number(readFileSync(join(dataDir, "db", "mongod.lock"), "utf8"));
  const left = [...pidsOfWorkers(first), mongod];
  expect(left.length).toBe(3);
  first.child.kill("SIGKILL");
  while (left.some(isAlive)) await sleep(20);
  const second = await two(dataDir, { LATCHKEY_LISTEN: new URL(first.url).host });
  expect((await strangers(second, 1)[0]!.verify({ key })).outcome).toBe(Outcome.VALID);
}, 60_000);

test("SIGTERM under load, sent to every process as a terminal's Ctrl-C is, drops no call that is under way", async () => {
  const dataDir = newDirectory();
  const service = await two(dataDir, { LATCHKEY_HASH_CONCURRENCY: "2" });
  const clients = await Promise.all(
    Array.from({ length: 8 }, (_, index) => clientOf(service, dataDir, `user-${index}`)),
  );
  // A connection for each before the load.
  await Promise.all(clients.map((client) => client.verify({ key: "" })));
  const calls = clients.map((client) => client.create({ scopes: ["read"] }));
  await Promise.any(calls);
  const ended = once(service.child, "exit");
  for (const pid of pidsOfWorkers(service)) process.kill(pid, "SIGTERM");
  service.child.kill("SIGTERM");
  expect((await Promise.all(calls)).length).toBe(clients.length);
  expect(await ended).toEqual([0, null]);
  expect(service.events("worker_ended")).toEqual([]);
}, 60_000);

test("a port that is taken ends all of them with one sentence and exit code 1", async () => {
  const blocker = createServer().listen(0, "127.0.0.1");
  await once(blocker, "listening");
  const taken = `127.0.0.1:${(blocker.address() as { port: number }).port}`;
  const { code, output } = await runToEnd(["serve"], {
    ...{ LATCHKEY_DATA_DIR: newDirectory(), LATCHKEY_WORKERS: "2", LATCHKEY_LISTEN: taken },
  });
  expect({ code, output }).toEqual({ code: 1, output: expect.stringContaining(`${taken} is in use`) });
  expect(output.match(/is in use/g)).toHaveLength(1);
  expect(output).not.toMatch(/\n\s+at /);
  blocker.close();
}, 60_000);

test("a setting that is no number of workers is refused before anything is started", async () => {
  const { child, output } = launch(["serve"], { LATCHKEY_WORKERS: "0" });
  expect(await once(child, "close")).toEqual([1, null]);
  expect(output()).toContain("it must be a whole number from 1 to 1024, or auto");
});
