import { randomBytes, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, type ConnectError } from "@connectrpc/connect";
import { createLatchkeyClient, Outcome } from "../../src/client/index.ts";
import { type ServiceProcess, serve, stopProcesses } from "../support/process.ts";
import { JWT_SECRET, PEPPER, SERVICE_TOKEN, sha256, userToken } from "../support/service.ts";
import { startTcpProxy, type TcpProxy } from "../support/tcp-proxy.ts";
import { ALICE, BOB, type Keys, LARGEST, NAME } from "./rows.ts";
import { startUpstream, type Upstream } from "./upstream.ts";

/** All that stands around a gateway. */
export interface World {
  keys: Keys;
  /** When `keys.revoked` was. */
  revokedAtMs: number;
  upstream: Upstream;
  /** The Latchkey that the gateway asks, and the wire to it. */
  latchkey: ServiceProcess;
  wire: TcpProxy;
  /** Between Latchkey and MongoDB. */
  database: TcpProxy;
  /** Another Latchkey, for who may ask either. */
  second: ServiceProcess;
  /** One that wants the gateway's token, takes keys from the query too, and has to hash every key anew. */
  strict: ServiceProcess;
  newKey(user: string): Promise<string>;
  stop(): Promise<void>;
}

const BUSY = [Code.Unavailable, Code.ResourceExhausted, Code.DeadlineExceeded];

export async function createWorld(databaseName: string): Promise<World> {
  try {
    return await startWorld(databaseName);
  } catch (error) {
    await stopProcesses();
    throw error;
  }
}

async function startWorld(databaseName: string): Promise<World> {
  const upstream = await startUpstream();
  const uri = new URL(process.env.TEST_MONGODB_URI!);
  const database = await startTcpProxy({ to: Number(uri.port) });
  const direct = new URL(uri);
  direct.port = String(database.port);
  direct.searchParams.delete("replicaSet");
  direct.searchParams.set("directConnection", "true");

  const common = {
    MONGODB_DATABASE: databaseName,
    LATCHKEY_JWT_SECRET: JWT_SECRET,
    LATCHKEY_PEPPERS: `p1:${PEPPER}`,
    LATCHKEY_REQUEST_KEYS: `r1:${randomBytes(32).toString("base64")}`,
    LATCHKEY_OPS_LISTEN: "127.0.0.1:0",
    // As the gateways' timeouts here are: for a machine that is busy with more than this.
    LATCHKEY_GATEWAY_TIMEOUT: "10s",
    LATCHKEY_GATEWAY_METADATA: Object.keys(LARGEST.metadata).join(","),
  };
  const latchkey = await served({ ...common, MONGODB_URI: direct.href });
  const [second, strict] = await Promise.all([
    served({ ...common, MONGODB_URI: uri.href }),
    served({
      ...{ ...common, MONGODB_URI: uri.href, LATCHKEY_PEPPERS: `p2:${Buffer.alloc(32, 8).toString("base64")}` },
      ...{ LATCHKEY_HASH_CONCURRENCY: "1", LATCHKEY_HASH_QUEUE: "1" },
      LATCHKEY_GATEWAY_KEY_FROM: "bearer,header:x-api-key,query:api_key",
      ...{ LATCHKEY_VERIFY_AUTH: "token", LATCHKEY_SERVICE_TOKENS: `gateway:sha256:${sha256(SERVICE_TOKEN)}` },
    }),
  ]);
  const wire = await startTcpProxy({ to: portOf(latchkey) });

  const clientOf = async (user: string, admin = false) =>
    createLatchkeyClient({ baseUrl: second.url, token: await userToken(user, { admin }), timeoutMs: 30_000 });
  /** Asked for until it is made, on a machine that is busy with more than this: a request id makes one key of all tries. */
  const newKey = async (user: string, fields: object = {}): Promise<string> => {
    // Metadata are for admins.
    const client = await clientOf(user, true);
    const asked = { scopes: ["read"], requestId: randomUUID(), ...fields };
    for (;;) {
      const made = await client.create(asked).catch((error: ConnectError) => {
        if (!BUSY.includes(error.code)) throw error;
      });
      if (made !== undefined) return made.key;
    }
  };

  const alice = await newKey(ALICE, { name: NAME });
  const bob = await newKey(BOB, { scopes: ["read", "write"] });
  const { user: largestUser, ...largestKey } = LARGEST;
  const largest = await newKey(largestUser, largestKey);
  const revoked = await newKey("carol");
  const suspended = await newKey("stopped");
  await (await clientOf("stopped")).suspend({});
  const expired = await newKey("dave", { lifetime: { case: "ttl", value: { seconds: 1n } } });
  // Held good before it was revoked: nothing remembers that.
  const verify = createLatchkeyClient({ baseUrl: latchkey.url, timeoutMs: 30_000 });
  const outcomeOf = async (key: string) => (await verify.verify({ key })).outcome;
  while ((await outcomeOf(revoked)) !== Outcome.VALID) await sleep(20);
  await (await clientOf("carol")).revoke({});
  const revokedAtMs = Date.now();
  while ((await outcomeOf(suspended)) !== Outcome.SUSPENDED) await sleep(20);
  while ((await outcomeOf(expired)) !== Outcome.EXPIRED) await sleep(50);
  for (const key of [alice, bob, largest]) while ((await outcomeOf(key)) !== Outcome.VALID) await sleep(20);

  return {
    ...{
      keys: { alice, bob, largest, revoked, suspended, expired },
      revokedAtMs,
      upstream,
      latchkey,
      wire,
      database,
      second,
      strict,
    },
    newKey: (user) => newKey(user),
    async stop() {
      await Promise.all([wire.close(), database.close(), upstream.close()]);
      await stopProcesses();
    },
  };
}

/** Where the machine is too busy with more than this, a start may give MongoDB up: it is tried again. */
async function served(env: Record<string, string>): Promise<ServiceProcess> {
  for (let tries = 1; ; tries += 1) {
    try {
      return await serve(env);
    } catch (error) {
      if (tries === 5 || !(error as Error).message.includes("MongoDB could not be reached")) throw error;
    }
  }
}

export function portOf(service: ServiceProcess): number {
  return Number(new URL(service.url).port);
}
