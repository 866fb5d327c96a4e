import { once } from "node:events";
import { Agent, get, type IncomingMessage } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { Authorization } from "#gen/envoy/service/auth/v3/external_auth_pb";
import { ApiKeyService, Consistency } from "../../src/client/index.ts";
import { createRandom, type Random } from "../faults/random.ts";
import { userToken } from "../support/service.ts";

export interface Load {
  /** Makes about that many calls in all, over connections that are closed at the end. */
  run(calls: number, options?: { clients?: number; done?: () => boolean }): Promise<Made>;
}

export interface Made {
  calls: number;
  /** Those that could not be answered: UNAVAILABLE and the like. */
  failed: number;
}

const USERS = 24;
const PATIENCE_MS = 5_000;

/** Calls over one connection. */
const CALLS_A_CONNECTION = 60;
/** Answers all the same. */
const REFUSALS = new Set([Code.AlreadyExists, Code.NotFound, Code.Canceled]);

/**
 * Everything a service is asked in the course of a day: keys good, revoked, unknown and malformed, strongly and not, one by
 * one and many, by gRPC, Connect and gateways; keys made, rotated and revoked; watchers that come and go; callers that hang up.
 */
export async function createLoad(baseUrl: string, seed: number): Promise<Load> {
  const users = await Promise.all(
    Array.from({ length: USERS }, async (_, index) => {
      const headers = { authorization: `Bearer ${await userToken(`soak-${seed}-${index}`, { ttlS: 86_400 })}` };
      return { headers, keys: [] as string[] };
    }),
  );
  let runs = 0;

  /** One connection of each kind, for as long as `next` says. */
  async function connection(random: Random, next: () => boolean): Promise<number> {
    const sessionManager = new Http2SessionManager(baseUrl);
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const transport = createGrpcTransport({ baseUrl, sessionManager });
    const grpc = createClient(ApiKeyService, transport);
    const envoy = createClient(Authorization, transport);
    const connect = createClient(
      ApiKeyService,
      createConnectTransport({ baseUrl, httpVersion: "1.1", nodeOptions: { agent } }),
    );
    const timeoutMs = PATIENCE_MS;
    const call = async (): Promise<unknown> => {
      const user = random.pick(users);
      const caller = random.next() < 0.7 ? grpc : connect;
      const options = { headers: user.headers, timeoutMs };
      const given = ({ key }: { key: string }) => {
        user.keys = [...user.keys.slice(-3), key];
      };
      const key = random.pick(user.keys) ?? "lk_unknown";
      const what = random.next();
      if (user.keys.length === 0 || what < 0.02) return given(await caller.refresh({ scopes: ["read"] }, options));
      if (what < 0.025) return caller.revoke({}, options);
      if (what < 0.03) return given(await caller.create({ scopes: ["read"] }, options));
      if (what < 0.06) return caller.get({}, options);
      if (what < 0.14) return caller.verify({ key, consistency: Consistency.STRONG }, { timeoutMs });
      if (what < 0.18) return caller.verify({ key: key.slice(0, -1) }, { timeoutMs });
      if (what < 0.2) return caller.verify({ key, requiredScopes: ["write"] }, { timeoutMs });
      if (what < 0.22) {
        const requests = users.flatMap(({ keys }) => keys.map((one) => ({ key: one })));
        return caller.batchVerify({ requests }, { timeoutMs });
      }
      if (what < 0.23) return hangUp((signal) => caller.verify({ key, consistency: Consistency.STRONG }, { signal }));
      if (what < 0.24) return hangUp((signal) => take(grpc.watch({}, { signal })));
      if (what < 0.25) return take(grpc.verifyStream(repeated({ request: { key } }, 20), { timeoutMs }));
      if (what < 0.35) return envoy.check(checkOf(key), { timeoutMs });
      if (what < 0.45) return forwardAuth(baseUrl, agent, key);
      return caller.verify({ key }, { timeoutMs });
    };
    let failed = 0;
    for (let calls = 0; calls < CALLS_A_CONNECTION && next(); calls += 1) {
      await call().catch((error: unknown) => {
        if (!REFUSALS.has(ConnectError.from(error).code)) failed += 1;
        return sleep(20);
      });
    }
    sessionManager.abort();
    agent.destroy();
    return failed;
  }

  return {
    async run(calls, { clients = 8, done = () => false } = {}) {
      const made: Made = { calls: 0, failed: 0 };
      let ended = false;
      const next = () => {
        ended = made.calls >= calls || done();
        if (!ended) made.calls += 1;
        return !ended;
      };
      runs += 1;
      const client = async (index: number) => {
        const random = createRandom("soak", seed, runs, index);
        while (!ended) made.failed += await connection(random, next);
      };
      await Promise.all(Array.from({ length: clients }, (_, index) => client(index)));
      return made;
    },
  };
}

function checkOf(key: string) {
  return { attributes: { request: { http: { headers: { authorization: `Bearer ${key}` } } } } };
}

async function forwardAuth(baseUrl: string, agent: Agent, key: string): Promise<void> {
  const request = get(`${baseUrl}/v1/authorize`, { agent, headers: { authorization: `Bearer ${key}` } });
  const [response] = (await once(request, "response")) as [IncomingMessage];
  response.resume();
  await once(response, "end");
  if (response.statusCode! >= 500) throw new ConnectError(`${response.statusCode}`, Code.Unavailable);
}

async function hangUp(call: (signal: AbortSignal) => Promise<unknown>): Promise<void> {
  const abort = new AbortController();
  const ended = call(abort.signal).catch(() => {});
  await sleep(5);
  abort.abort();
  await ended;
}

async function take(answers: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of answers);
}

async function* repeated<T>(value: T, times: number): AsyncIterable<T> {
  for (let n = 0; n < times; n += 1) yield value;
}
