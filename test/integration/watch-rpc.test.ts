import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { type ClientHttp2Stream, connect as connectHttp2 } from "node:http2";
import { Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { fromBinary } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
import { afterEach, expect, jest, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import {
  ApiKeyService,
  KeyChangeKind,
  Outcome,
  type WatchResponse,
  WatchResponseSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import { createLatchkeyClient, watchKeys } from "../../src/client/index.ts";
import { createCallLog } from "../../src/edge/call-log.ts";
import { createRequestHandler } from "../../src/edge/connect/adapter.ts";
import { createInterceptors } from "../../src/edge/connect/interceptors.ts";
import { createWatch } from "../../src/edge/doors/watch.ts";
import { createAuthenticator } from "../../src/edge/tokens.ts";
import { listen } from "../../src/fastpath/listen.ts";
import { createChanges } from "../../src/keys/changes.ts";
import { createLogger } from "../../src/observe/logger.ts";
import { createMetrics } from "../../src/observe/metrics.ts";
import { startCachingClient } from "../support/caching-client.ts";
import { startProxy } from "../support/cuttable-proxy.ts";
import { refusalOf } from "../support/errors.ts";
import { JWT_SECRET, SERVICE_TOKEN, sha256, startService, type TestServiceOptions } from "../support/service.ts";

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(options?: TestServiceOptions) {
  const service = await startService(options);
  cleanUps.push(() => service.stop());
  return service;
}

interface WatchReader {
  next(): Promise<WatchResponse>;
  /** The next change, whatever heartbeats come before it. */
  nextChange(): Promise<{ kind: string; keyId: string; token: string }>;
  /** The next message that is not a change. */
  nextOther(): Promise<WatchResponse>;
  leave(): void;
}

function watch(
  client: Client<typeof ApiKeyService>,
  resumeToken = "",
  headers: Record<string, string> = {},
): WatchReader {
  const controller = new AbortController();
  cleanUps.push(() => controller.abort());
  const messages = client
    .watch({ resumeToken }, { signal: controller.signal, timeoutMs: 0, headers })
    [Symbol.asyncIterator]();
  const next = async (): Promise<WatchResponse> => {
    const { value, done } = await messages.next();
    if (done) throw new Error("the watch ended");
    return value;
  };
  return {
    next,
    async nextChange() {
      for (;;) {
        const { event, resumeToken: token } = await next();
        if (event.case === "restart") throw new Error("restart");
        if (event.case === "change") return { kind: KeyChangeKind[event.value.kind], keyId: event.value.keyId, token };
      }
    },
    async nextOther() {
      for (;;) {
        const message = await next();
        if (message.event.case !== "change") return message;
      }
    },
    leave: () => controller.abort(),
  };
}

async function collectionOf(database: string) {
  const client = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  cleanUps.push(() => client.close());
  return client.db(database).collection<{ _id: string }>("api_keys");
}

test.each(["grpc", "connect"] as const)("every kind of change is told, in order, over %s", async (protocol) => {
  let now = Date.now();
  const service = await start({ clock: () => new Date(now) });
  const client = service.client(undefined, { protocol });
  const reader = watch(client);
  expect((await reader.next()).event.case).toBe("heartbeat");

  const first = (await client.create({ scopes: ["read"] })).apiKey!.id;
  expect(await reader.nextChange()).toMatchObject({ kind: "CREATED", keyId: first });

  const second = (await client.refresh({ gracePeriod: { seconds: 60n } })).apiKey!.id;
  expect(await reader.nextChange()).toMatchObject({ kind: "RETIRING", keyId: first });
  expect(await reader.nextChange()).toMatchObject({ kind: "CREATED", keyId: second });

  await client.revoke({});
  const revoked = [await reader.nextChange(), await reader.nextChange()];
  expect(revoked.map(({ kind }) => kind)).toEqual(["REVOKED", "REVOKED"]);
  expect(revoked.map(({ keyId }) => keyId).sort()).toEqual([first, second].sort());

  const third = await client.create({ scopes: ["read"], lifetime: { case: "ttl", value: { seconds: 1n } } });
  await reader.nextChange();
  now += 2_000;
  await client.create({ scopes: ["read"] });
  expect(await reader.nextChange()).toMatchObject({ kind: "EXPIRED", keyId: third.apiKey!.id });
  expect(await reader.nextChange()).toMatchObject({ kind: "CREATED" });

  const keys = await collectionOf(service.database);
  await keys.updateOne({ _id: first }, { $set: { scopes: ["other"] }, $inc: { rev: 1 } });
  expect(await reader.nextChange()).toMatchObject({ kind: "UPDATED", keyId: first });
  await keys.deleteOne({ _id: first });
  expect(await reader.nextChange()).toMatchObject({ kind: "REMOVED", keyId: first });
});

test("heartbeats go on while nothing happens, and cover every change acknowledged before them", async () => {
  const service = await start();
  const client = service.client();
  const reader = watch(client);
  const times: number[] = [];
  for (let count = 0; count < 3; count += 1) {
    const { event } = await reader.next();
    if (event.case !== "heartbeat") throw new Error(`${event.case}`);
    times.push(timestampMs(event.value.asOf!));
    expect(times.at(-1)).toBeLessThanOrEqual(Date.now());
  }
  expect(times).toEqual([...new Set(times)].sort((a, b) => a - b));

  await client.create({ scopes: ["read"] });
  const acknowledgedMs = Date.now();
  let changes = 0;
  for (;;) {
    const { event } = await reader.next();
    if (event.case === "change") changes += 1;
    if (event.case === "heartbeat" && timestampMs(event.value.asOf!) > acknowledgedMs) break;
  }
  expect(changes).toBe(1);
});

test("a token resumes at the same process and at another, and no change is lost between", async () => {
  const here = await start();
  const there = await start({ env: { MONGODB_DATABASE: here.database } });
  const client = here.client();
  const reader = watch(client);
  await reader.next();
  const created = await client.create({ scopes: ["read"] });
  const { token } = await reader.nextChange();
  reader.leave();
  const rotated = await client.refresh({});
  for (const service of [here, there]) {
    const resumed = watch(service.client(), token);
    const told = [await resumed.nextChange(), await resumed.nextChange(), await resumed.nextChange()];
    expect(told.map(({ kind }) => kind)).toEqual(["CREATED", "REVOKED", "CREATED"]);
    expect(told.map(({ keyId }) => keyId)).toEqual([created.apiKey!.id, created.apiKey!.id, rotated.apiKey!.id]);
  }
});

test("a token that is too old, of other records, or no token at all is answered by a restart", async () => {
  const early = await start();
  const reader = watch(early.client());
  const { resumeToken: old } = await reader.next();
  await early.client().create({ scopes: ["read"] });
  const { token: fresh } = await reader.nextChange();
  const late = await start({ env: { MONGODB_DATABASE: early.database } });
  const elsewhere = await start();
  const { resumeToken: foreign } = await watch(elsewhere.client()).next();

  for (const token of [old, fresh]) {
    expect((await watch(early.client(), token).next()).event.case).not.toBe("restart");
    expect((await watch(late.client(), token).next()).event.case).toBe("restart");
  }
  for (const token of [foreign, "?", "x".repeat(16), `${fresh}A`]) {
    const { event, resumeToken } = await watch(early.client(), token).next();
    expect(event.case).toBe("restart");
    expect((await watch(early.client(), resumeToken).next()).event.case).toBe("heartbeat");
  }
});

test("when the process has to follow the records anew, its watchers are told to start again", async () => {
  const service = await start();
  const reader = watch(service.client());
  await reader.next();
  await (await collectionOf(service.database)).drop();
  while ((await reader.nextOther()).event.case !== "restart");
  while ((await reader.nextOther()).event.case !== "heartbeat");
});

test("Watch asks for the service token, and nothing else of the watch is said to strangers", async () => {
  const service = await start({
    env: { LATCHKEY_VERIFY_AUTH: "token", LATCHKEY_SERVICE_TOKENS: `gateway:sha256:${sha256(SERVICE_TOKEN)}` },
  });
  const stranger = watch(service.client());
  expect(await refusalOf(stranger.next())).toMatchObject({ code: "Unauthenticated", reason: "UNAUTHENTICATED" });
  const known = watch(service.client(), "", { authorization: `Bearer ${SERVICE_TOKEN}` });
  expect((await known.next()).event.case).toBe("heartbeat");
  const failing = watchKeys(createLatchkeyClient({ baseUrl: service.baseUrl }), {
    ...{ onChange: () => {}, onHeartbeat: () => {}, onRestart: () => {} },
    signal: new AbortController().signal,
  });
  await expect(failing).rejects.toMatchObject({ code: 16 });
});

test("a stream's opening and end are logged and counted", async () => {
  const service = await start();
  const metrics = async () => (await fetch(`http://${service.server.opsAddress}/metrics`)).text();
  const reader = watch(service.client(undefined, { protocol: "grpc" }));
  await reader.next();
  expect(service.logs()).toMatch(/"event":"stream_opened".*"method":"Watch"/);
  expect(await metrics()).toMatch(/latchkey_watchers 1\n/);
  expect(await metrics()).toMatch(/latchkey_streams_open\{method="latchkey.v1.ApiKeyService\/Watch"\} 1\n/);
  reader.leave();
  while (!/latchkey_watchers 0\n/.test(await metrics())) await sleep(10);
  while (!/latchkey_streams_ended_total\{[^}]*Watch",code="canceled"\} 1\n/i.test(await metrics())) await sleep(10);
  expect(service.logs()).toMatch(/"event":"rpc".*"method":"Watch","code":"canceled"/i);
  expect(service.logs()).not.toMatch(/"level":"error"/);
});

test("a stopping process ends its watches with UNAVAILABLE, and watchKeys goes on at its successor, told to start again", async () => {
  const first = await startService();
  const env = { MONGODB_DATABASE: first.database, LATCHKEY_LISTEN: first.server.address };
  const raw = watch(first.client());
  await raw.next();
  const events: string[] = [];
  const ending = new AbortController();
  const watching = watchKeys(createLatchkeyClient({ baseUrl: first.baseUrl }), {
    onChange: ({ keyId }) => events.push(keyId),
    onHeartbeat: () => events.push("heartbeat"),
    onRestart: () => events.push("restart"),
    onInterrupted: () => events.push("interrupted"),
    signal: ending.signal,
  });
  while (!events.includes("heartbeat")) await sleep(10);
  const ended = (async () => {
    for (;;) await raw.next();
  })();
  const refusal = refusalOf(ended);
  await first.stop();
  expect(await refusal).toMatchObject({ code: "Unavailable", reason: "STOPPING", retry: true });
  await start({ env });
  while (!events.includes("restart")) await sleep(10);
  const second = events.lastIndexOf("restart");
  while (events.indexOf("heartbeat", second) < 0) await sleep(10);
  expect(events.indexOf("interrupted")).toBeLessThan(second);
  ending.abort();
  await watching;
});

test("a watcher who goes away without a word leaves nothing on standard error", async () => {
  const complaints = jest.spyOn(console, "error").mockImplementation(() => {});
  cleanUps.push(() => complaints.mockRestore());
  const { changes, baseUrl } = await startWatchOnly({});
  const slow = await openUnread(baseUrl);
  const gone = watch(createLatchkeyClient({ baseUrl, protocol: "connect" }));
  await gone.next();
  // One waits for its caller to read when that goes; the other is written to while it goes.
  for (let count = 0; count < 9_000; count += 1) {
    changes.changed({ id: "x".repeat(16), kind: "revoked", clusterTime: 10n + BigInt(count) });
    if (count === 8_000) await sleep(50);
    if (count === 8_500) {
      slow.leave();
      gone.leave();
    }
    if (count % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  while (changes.watchers > 0) await sleep(5);
  expect(complaints).not.toHaveBeenCalled();
});

/** Watch alone, on a real socket, with changes that the test makes. */
async function startWatchOnly(options: { maxHeld?: number; maxWatchers?: number }) {
  const changes = createChanges(options);
  changes.restarted(1n);
  changes.proven(1, 2n);
  const log = createLogger({ level: "silent", output: new Writable({ write: (_chunk, _encoding, done) => done() }) });
  const rules = { key: { kind: "secret" as const, secret: JWT_SECRET }, adminClaim: { name: "role", value: "admin" } };
  const authenticator = createAuthenticator({ ...rules, clock: () => new Date() }, { kind: "none" });
  const calls = createCallLog({ log, metrics: createMetrics() });
  const audit = { note: () => {} };
  const handler = createRequestHandler({
    interceptors: createInterceptors({ calls, authenticator, audit, clock: () => new Date() }),
    maxMessageBytes: 65_536,
    routes: (router) => void router.service(ApiKeyService, createWatch({ changes, lineage: "00000000" })),
  });
  const listener = await listen({ host: "127.0.0.1", port: 0, handler });
  cleanUps.push(() => listener.close(0));
  return { changes, baseUrl: `http://${listener.address}` };
}

test("too many watchers are refused, and told when to try again", async () => {
  const { baseUrl } = await startWatchOnly({ maxWatchers: 1 });
  const client = createLatchkeyClient({ baseUrl });
  await watch(client).next();
  const refused = await refusalOf(watch(client).next());
  expect(refused).toMatchObject({ code: "ResourceExhausted", reason: "OVERLOADED", retry: true });
});

test("a reader that does not take what it is told is told to start again, and one that does gets everything", async () => {
  const { changes, baseUrl } = await startWatchOnly({ maxHeld: 2_000 });
  let fastSeen = 0;
  let fastRestarts = 0;
  const ending = new AbortController();
  const fast = watchKeys(createLatchkeyClient({ baseUrl }), {
    onChange: () => {
      fastSeen += 1;
    },
    onRestart: () => {
      fastRestarts += 1;
    },
    onHeartbeat: () => {},
    signal: ending.signal,
  });
  const slow = await openUnread(baseUrl);
  while (changes.watchers < 2) await sleep(5);

  // Far more than the socket, HTTP/2's window and what is held take together.
  const TOTAL = 60_000;
  const ids: string[] = [];
  while (ids.length < TOTAL) {
    for (let count = 0; count < 500; count += 1) {
      const id = String(ids.length).padStart(16, "0");
      ids.push(id);
      changes.changed({ id, kind: "revoked", clusterTime: 10n + BigInt(ids.length) });
    }
    while (fastSeen < ids.length) await new Promise((resolve) => setImmediate(resolve));
  }
  changes.proven(2, 10n + BigInt(TOTAL + 1));
  const told = await slow.readUntil(({ event }) => event.case === "heartbeat" && timestampMs(event.value.asOf!) === 2);
  const shown = told.map(({ event }) => (event.case === "change" ? event.value.keyId : `${event.case}`));
  const restart = shown.indexOf("restart");
  expect(restart).toBeGreaterThan(1);
  // Whole up to the restart, and nothing lost that it does not own up to.
  expect(shown.slice(1, restart)).toEqual(ids.slice(0, restart - 1));
  expect(fastRestarts).toBe(0);
  ending.abort();
  await fast;
}, 60_000);

/** A gRPC call of Watch whose answer stays in the socket until it is read. */
async function openUnread(baseUrl: string) {
  const session = connectHttp2(baseUrl);
  cleanUps.push(() => session.destroy());
  const stream: ClientHttp2Stream = session.request({
    ":method": "POST",
    ":path": "/latchkey.v1.ApiKeyService/Watch",
    "content-type": "application/grpc",
    te: "trailers",
  });
  stream.end(Buffer.alloc(5));
  await once(stream, "response");
  return {
    leave: () => session.destroy(),
    async readUntil(isLast: (message: WatchResponse) => boolean): Promise<WatchResponse[]> {
      const messages: WatchResponse[] = [];
      let buffered = Buffer.alloc(0);
      for await (const chunk of stream) {
        buffered = Buffer.concat([buffered, chunk]);
        while (buffered.length >= 5 && buffered.length >= 5 + buffered.readUInt32BE(1)) {
          const length = buffered.readUInt32BE(1);
          const message = fromBinary(WatchResponseSchema, buffered.subarray(5, 5 + length));
          messages.push(message);
          if (isLast(message)) return messages;
          buffered = buffered.subarray(5 + length);
        }
      }
      throw new Error("the stream ended");
    },
  };
}

const HOURS_MS = 6 * 3_600_000;

test("a client that keeps answers learns of a revocation by the watch, whichever processes it asks", async () => {
  const here = await start();
  const there = await start({ env: { MONGODB_DATABASE: here.database } });
  const cache = startCachingClient({ verifier: here.client(), watcher: there.client(), boundMs: HOURS_MS });
  cleanUps.push(() => cache.stop());
  for (let round = 0; round < 5; round += 1) {
    const owner = here.client(randomUUID());
    const { key } = await owner.create({ scopes: ["read"] });
    while (cache.recall(key) !== Outcome.VALID) expect(await cache.ask(key)).toBe(Outcome.VALID);
    await owner.revoke({});
    while (cache.recall(key) === Outcome.VALID) await sleep(1);
    expect(await cache.ask(key)).toBe(Outcome.REVOKED);
  }
  expect(cache.restarts).toBe(0);
});

test("while keys are revoked and networks vanish, a client that follows the rules accepts none later than its bound", async () => {
  const BOUND_MS = 1_500;
  const here = await start({ env: { LATCHKEY_MAX_STALENESS: "400ms" } });
  const there = await start({ env: { MONGODB_DATABASE: here.database, LATCHKEY_MAX_STALENESS: "400ms" } });
  const proxy = await startProxy(there.server.address);
  cleanUps.push(() => proxy.close());
  const watcher = createLatchkeyClient({ baseUrl: `http://${proxy.address}` });
  const cache = startCachingClient({ verifier: here.client(), watcher, boundMs: BOUND_MS, silenceMs: 3_000 });
  cleanUps.push(() => cache.stop());

  const revokedAtMs = new Map<string, number>();
  const accepted: { key: string; atMs: number }[] = [];
  const keys: { key: string; revoke: () => Promise<unknown> }[] = [];
  for (let index = 0; index < 12; index += 1) {
    const owner = here.client(randomUUID());
    keys.push({ key: (await owner.create({ scopes: ["read"] })).key, revoke: () => owner.revoke({}) });
  }
  let hammering = true;
  const hammer = (async () => {
    while (hammering) {
      for (const { key } of keys) {
        const recalled = cache.recall(key);
        if (recalled === Outcome.VALID) accepted.push({ key, atMs: Date.now() });
        else if (recalled === undefined) await cache.ask(key);
      }
      await sleep(1);
    }
  })();
  const acceptedSince = (atMs: number, key: string) => accepted.some((one) => one.key === key && one.atMs >= atMs);
  for (const [index, { key, revoke }] of keys.entries()) {
    const fromMs = Date.now();
    while (!acceptedSince(fromMs, key)) await sleep(5);
    // Every third: the watch goes silent before, so that only the bound can end what is kept.
    const silent = index % 3 === 2;
    if (silent) proxy.blackHole(true);
    await revoke();
    revokedAtMs.set(key, Date.now());
    while (cache.recall(key) === Outcome.VALID) await sleep(1);
    if (silent) proxy.blackHole(false);
  }
  hammering = false;
  await hammer;
  const late = accepted.filter(({ key, atMs }) => atMs > revokedAtMs.get(key)! + BOUND_MS);
  expect(late).toEqual([]);
  expect(accepted.length).toBeGreaterThan(keys.length);
}, 60_000);

test("a deadline beyond what a timer can count does not end a watch, and one that passes ends it with its reason", async () => {
  const service = await start();
  const session = connectHttp2(service.baseUrl);
  cleanUps.push(() => session.destroy());
  const watched = (timeout: string) => {
    const path = "/latchkey.v1.ApiKeyService/Watch";
    const stream = session.request({
      ...{
        ":method": "POST",
        ":path": path,
        "content-type": "application/grpc",
        te: "trailers",
        "grpc-timeout": timeout,
      },
    });
    stream.on("error", () => {});
    stream.end(Buffer.alloc(5));
    return stream;
  };
  // 25 days.
  const long = watched("36000M");
  for (let heartbeats = 0; heartbeats < 3; heartbeats += 1) await once(long, "data");
  expect(long.closed).toBe(false);
  long.close();
  const short = watched("200m");
  short.resume();
  const [trailers] = await once(short, "trailers");
  expect(trailers["grpc-status"]).toBe("4");
  const status = Buffer.from(trailers["grpc-status-details-bin"], "base64").toString("latin1");
  expect(status).toContain("DEADLINE_EXCEEDED");
});
