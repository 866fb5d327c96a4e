import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { ApiKeyService, Consistency } from "../../src/client/index.ts";
import { createRandom } from "../faults/random.ts";
import { userToken } from "../support/service.ts";

export interface Load {
  /** Makes about that many calls in all, over connections that are closed at the end; resolves with their number. */
  run(calls: number, options?: { clients?: number; done?: () => boolean }): Promise<number>;
}

const USERS = 24;
const PATIENCE_MS = 5_000;

/**
 * Everything a service is asked in the course of a day: keys good, revoked, unknown and malformed, strongly and not, one by
 * one and many, by gRPC and Connect; keys made, rotated and revoked; watchers that come and go; callers that hang up.
 */
export async function createLoad(baseUrl: string, seed: number): Promise<Load> {
  const users = await Promise.all(
    Array.from({ length: USERS }, async (_, index) => {
      const headers = { authorization: `Bearer ${await userToken(`soak-${seed}-${index}`, { ttlS: 86_400 })}` };
      return { headers, keys: [] as string[] };
    }),
  );
  let runs = 0;

  async function client(random: ReturnType<typeof createRandom>, next: () => boolean): Promise<void> {
    const sessions = new Http2SessionManager(baseUrl);
    const grpc = createClient(ApiKeyService, createGrpcTransport({ baseUrl, sessionManager: sessions }));
    const connect = createClient(ApiKeyService, createConnectTransport({ baseUrl, httpVersion: "1.1" }));
    const timeoutMs = PATIENCE_MS;
    while (next()) {
      const user = random.pick(users);
      const caller = random.next() < 0.7 ? grpc : connect;
      const options = { headers: user.headers, timeoutMs };
      const given = ({ key }: { key: string }) => {
        user.keys = [...user.keys.slice(-3), key];
      };
      const key = random.pick(user.keys) ?? "lk_unknown";
      const what = random.next();
      const call = async (): Promise<unknown> => {
        if (user.keys.length === 0 || what < 0.02) return given(await caller.refresh({ scopes: ["read"] }, options));
        if (what < 0.025) return caller.revoke({}, options);
        if (what < 0.03) return given(await caller.create({ scopes: ["read"] }, options));
        if (what < 0.06) return caller.get({}, options);
        if (what < 0.14) return caller.verify({ key, consistency: Consistency.STRONG }, { timeoutMs });
        if (what < 0.18) return caller.verify({ key: key.slice(0, -1) }, { timeoutMs });
        if (what < 0.2) return caller.verify({ key, requiredScopes: ["write"] }, { timeoutMs });
        if (what < 0.22)
          return caller.batchVerify(
            { requests: users.flatMap(({ keys }) => keys.map((one) => ({ key: one }))) },
            { timeoutMs },
          );
        if (what < 0.23) return hangUp((signal) => caller.verify({ key, consistency: Consistency.STRONG }, { signal }));
        if (what < 0.24) return hangUp((signal) => take(grpc.watch({}, { signal })));
        if (what < 0.25) return take(grpc.verifyStream(repeated({ request: { key } }, 20), { timeoutMs }));
        return caller.verify({ key }, { timeoutMs });
      };
      // What comes of a call is not what is watched here; that it ends is.
      await call().catch(() => sleep(20));
    }
    sessions.abort();
  }

  return {
    async run(calls, { clients = 8, done = () => false } = {}) {
      let made = 0;
      const next = () => made < calls && !done() && ++made > 0;
      runs += 1;
      await Promise.all(
        Array.from({ length: clients }, (_, index) => client(createRandom("soak", seed, runs, index), next)),
      );
      return made;
    },
  };
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
