import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { type ConnectRouter, createClient, type Interceptor } from "@connectrpc/connect";
import { connectNodeAdapter, createConnectTransport } from "@connectrpc/connect-node";
import { type ClientReadableStream, credentials, loadPackageDefinition, type ServiceError } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { afterEach, expect, jest, test } from "@jest/globals";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/health/v1/health_pb";
import { createHealth, type HealthService } from "../../src/edge/connect/health.ts";
import { toConnectError } from "../../src/edge/errors.ts";
import { listen } from "../../src/fastpath/listen.ts";
import { createReadiness } from "../../src/observe/readiness.ts";

type Answer = { status: string };
type Callback<A> = (error: ServiceError | null, answer: A) => void;
interface HealthClient {
  check(request: { service: string }, callback: Callback<Answer>): void;
  list(request: object, callback: Callback<{ statuses: Record<string, Answer> }>): void;
  watch(request: { service: string }): ClientReadableStream<Answer>;
  close(): void;
}

const packageFile = createRequire(import.meta.url).resolve("grpc-health-check/package.json");
const proto = join(dirname(packageFile), "proto/health/v1/health.proto");
const definition = loadPackageDefinition(loadSync(proto, { enums: String, defaults: true })) as unknown as {
  grpc: { health: { v1: { Health: new (address: string, credentials: unknown) => HealthClient } } };
};

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

/** Readiness with one condition that all need: whether it holds is for the test to say. */
function readinessOf(services: string[]) {
  const readiness = createReadiness(services);
  const all = readiness.condition("all", readiness.services, "not yet");
  return { readiness, set: (serving: boolean) => all.set(serving ? undefined : "not now") };
}

async function start(services = ["test.A", "test.B"]) {
  const { readiness, set } = readinessOf(services);
  const health = createHealth(readiness);
  const mapped: Interceptor = (next) => (request) =>
    next(request).catch((error) => {
      throw toConnectError(error, "");
    });
  const handler = connectNodeAdapter({ routes: (router) => health.routes(router), interceptors: [mapped] });
  const listener = await listen({ host: "127.0.0.1", port: 0, handler });
  cleanUps.push(() => listener.close(0));
  const openClient = () => {
    const client = new definition.grpc.health.v1.Health(listener.address, credentials.createInsecure());
    cleanUps.push(() => client.close());
    return client;
  };
  return { health, readiness, set, listener, openClient, client: openClient() };
}

async function call<A>(start: (callback: Callback<A>) => void): Promise<A> {
  return new Promise((resolve, reject) => {
    start((error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** What a watch says, one by one; undefined when it has ended well. */
function reader(stream: ClientReadableStream<Answer>): () => Promise<string | undefined> {
  const answers = stream[Symbol.asyncIterator]();
  return async () => (await answers.next()).value?.status;
}

/** For what the server learns from the network in its own time. */
async function untilNobodyWatches(health: HealthService): Promise<void> {
  while (health.watchers > 0) await new Promise((resolve) => setTimeout(resolve, 5));
}

/** The implementation itself, for a reader that takes its answers when the test says so. */
function watchDirectly(health: HealthService) {
  let implementation: { watch(request: object, context: object): AsyncGenerator<{ status: Status }> } | undefined;
  health.routes({
    service: (_service: unknown, given: never) => {
      implementation = given;
    },
  } as unknown as ConnectRouter);
  return (service: string) => implementation!.watch({ service }, { signal: new AbortController().signal });
}

test("Check and List tell the state of the whole and of each service", async () => {
  const { set, client } = await start();
  for (const [serving, status] of [
    [false, "NOT_SERVING"],
    [true, "SERVING"],
  ] as const) {
    set(serving);
    for (const service of ["", "test.A", "test.B"])
      expect(await call<Answer>((done) => client.check({ service }, done))).toEqual({ status });
    expect(await call((done) => client.list({}, done))).toEqual({
      statuses: { "": { status }, "test.A": { status }, "test.B": { status } },
    });
  }
});

test("each service has a state of its own, by the conditions that it needs", async () => {
  const { readiness, set, client } = await start();
  set(true);
  const changes = readiness.condition("changes", ["test.B"], "nothing can be changed");
  const statusOf = async (service: string) => (await call<Answer>((done) => client.check({ service }, done))).status;
  const next = reader(client.watch({ service: "test.B" }));
  expect(await Promise.all(["", "test.A", "test.B"].map(statusOf))).toEqual(["SERVING", "SERVING", "NOT_SERVING"]);
  expect(await next()).toBe("NOT_SERVING");
  changes.set(undefined);
  expect(await next()).toBe("SERVING");
  changes.set("nothing can be changed again");
  expect(await next()).toBe("NOT_SERVING");
  expect(await statusOf("")).toBe("SERVING");
});

test("Check of an unknown service is NOT_FOUND", async () => {
  const { set, client } = await start();
  set(true);
  await expect(call((done) => client.check({ service: "no.Such" }, done))).rejects.toMatchObject({ code: 5 });
});

test("Watch tells the state at once, then each change, and nothing twice", async () => {
  const { set, client } = await start();
  const next = reader(client.watch({ service: "test.A" }));
  expect(await next()).toBe("NOT_SERVING");
  set(false);
  set(true);
  expect(await next()).toBe("SERVING");
  set(true);
  set(false);
  expect(await next()).toBe("NOT_SERVING");
});

test("Watch of an unknown service says SERVICE_UNKNOWN, and stays open until the drain", async () => {
  const { health, set, client } = await start();
  const [unknown, known] = [reader(client.watch({ service: "no.Such" })), reader(client.watch({ service: "" }))];
  expect(await unknown()).toBe("SERVICE_UNKNOWN");
  expect(await known()).toBe("NOT_SERVING");
  set(true);
  expect(await known()).toBe("SERVING");
  expect(health.watchers).toBe(2);
  health.drain();
  expect(await unknown()).toBeUndefined();
});

test("what is not ready any more is NOT_SERVING to who watches, and the drain ends every watch after it was told so", async () => {
  const { health, set, client } = await start();
  set(true);
  const watches = ["", "test.A"].map((service) => reader(client.watch({ service })));
  for (const next of watches) expect(await next()).toBe("SERVING");
  set(false);
  for (const next of watches) expect(await next()).toBe("NOT_SERVING");
  health.drain();
  for (const next of watches) expect(await next()).toBeUndefined();
  expect(await call<Answer>((done) => client.check({ service: "" }, done))).toEqual({ status: "NOT_SERVING" });
  const late = reader(client.watch({ service: "" }));
  expect([await late(), await late()]).toEqual(["NOT_SERVING", undefined]);
  await untilNobodyWatches(health);
});

test("a reader that is slow to take one state gets the latest next, and the drain before the end", async () => {
  const { readiness, set } = readinessOf([]);
  const health = createHealth(readiness);
  const watch = watchDirectly(health)("");
  expect((await watch.next()).value).toEqual({ status: Status.NOT_SERVING });
  for (const serving of [true, false, true]) set(serving);
  expect((await watch.next()).value).toEqual({ status: Status.SERVING });
  set(false);
  health.drain();
  expect((await watch.next()).value).toEqual({ status: Status.NOT_SERVING });
  expect((await watch.next()).done).toBe(true);
  expect(health.watchers).toBe(0);
});

test("a watch is forgotten when its client cancels it, ends its connection, or asks over HTTP/1.1 and goes", async () => {
  const { health, listener, client } = await start();
  const cancelled = client.watch({ service: "" }).on("error", () => {});
  await reader(cancelled)();
  expect(health.watchers).toBe(1);
  cancelled.cancel();
  await untilNobodyWatches(health);

  // Connect keeps quiet about a client that left, but does not recognise Node's errors in jest's realm as errors.
  const logged = jest.spyOn(console, "error").mockImplementation(() => {});
  cleanUps.push(() => logged.mockRestore());
  const transport = createConnectTransport({ baseUrl: `http://${listener.address}`, httpVersion: "1.1" });
  const leave = new AbortController();
  const overHttp1 = createClient(Health, transport).watch({ service: "" }, { signal: leave.signal });
  const answers = overHttp1[Symbol.asyncIterator]();
  expect((await answers.next()).value?.status).toBe(Status.NOT_SERVING);
  expect(health.watchers).toBe(1);
  leave.abort();
  await expect(answers.next()).rejects.toThrow();
  await untilNobodyWatches(health);

  const cut = client.watch({ service: "" }).on("error", () => {});
  await reader(cut)();
  await listener.close(0);
  await untilNobodyWatches(health);
});

test("watches are bounded; one more is RESOURCE_EXHAUSTED until another ends", async () => {
  const health = createHealth(createReadiness([]));
  const watch = watchDirectly(health);
  const first = watch("");
  await first.next();
  for (let count = 1; count < 10_000; count++) await watch("").next();
  const refusal = await watch("")
    .next()
    .catch((error: unknown) => error);
  expect(refusal).toMatchObject({ reason: "OVERLOADED", retryAfterMs: 1_000 });
  await first.return(undefined);
  expect((await watch("").next()).value).toEqual({ status: Status.SERVING });
});
