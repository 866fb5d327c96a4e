import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { type Asked, ask, askUntil, brokenPromises, ended, type Life, untilGauge } from "../support/history.ts";
import { type Member, type ReplicaSet, startReplicaSet } from "../support/replica-set.ts";
import { startService, type TestService } from "../support/service.ts";

let set: ReplicaSet;
let database: string;
const services: TestService[] = [];

beforeAll(async () => {
  set = await startReplicaSet();
}, 120_000);
afterAll(() => set.stop());
beforeEach(() => {
  database = `test-${randomUUID()}`;
});
afterEach(async () => {
  for (const { process } of set.members) process.kill("SIGCONT");
  await set.heal();
  await Promise.all(services.splice(0).map((service) => service.stop()));
}, 60_000);

async function replica(uri: string, env: Record<string, string> = {}): Promise<TestService> {
  const service = await startService({ env: { MONGODB_URI: uri, MONGODB_DATABASE: database, ...env } });
  services.push(service);
  return service;
}

/** A replica of the service on one member, past the proxies: it is not concerned by the weather. */
const replicaOn = (member: Member) => replica(member.directUri);

interface Made {
  key: string;
  user: string;
  life: Life;
}

async function make(service: TestService): Promise<Made> {
  const user = randomUUID();
  const { key } = await service.client(user).create({ scopes: ["read"] });
  return { key, user, life: { madeMs: performance.now() } };
}
async function revoke(service: TestService, made: Made): Promise<void> {
  const beganMs = performance.now();
  // On a busy machine a majority may take longer than the service waits; then the key may be revoked already.
  for (;;) {
    const error = await service
      .client(made.user)
      .revoke({})
      .then(() => undefined, ConnectError.from);
    if (error === undefined || error.code === Code.NotFound) break;
    if (error.code !== Code.Unavailable) throw error;
  }
  made.life = ended(made.life, beganMs);
}
const livesOf = (...made: Made[]) => new Map(made.map(({ key, life }) => [key, life]));

async function warm(service: TestService, ...made: Made[]): Promise<void> {
  await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 1);
  for (const { key } of made) await askUntil(service.client(), key, "VALID");
}

const othersThan = (member: Member) => set.members.filter((other) => other !== member);

test.each([true, false])(
  "the stream's primary is cut off from its majority, and the replica reaches it still (others too: %s): no key is accepted past the bound, and it recovers",
  async (reachesOthers) => {
    const graceMs = 8_000;
    const old = await set.primary();
    const other = await replicaOn(old);
    const [good, bad] = [await make(other), await make(other)];
    const cut = await replica(set.uri, { LATCHKEY_MAX_STALENESS: "400ms", LATCHKEY_OUTAGE_GRACE: `${graceMs}ms` });
    await warm(cut, good, bad);

    set.between(old, othersThan(old), { blackHole: "both" });
    if (!reachesOthers) for (const member of othersThan(old)) set.toClients(member, { cut: true });
    const history: Asked[] = [];
    let done = false;
    // What is asked all the while, of a key that stays good and of one that is revoked.
    const asking = [good, bad].flatMap(({ key }) =>
      [true, false].map(async (strong) => {
        while (!done) {
          history.push(await ask(cut.client(), key, { strong }));
          await sleep(5);
        }
      }),
    );
    const elected = await set.primary(old);
    await revoke(await replicaOn(elected), bad);
    if (reachesOthers) {
      history.push(...(await askUntil(cut.client(), bad.key, "REVOKED")));
      history.push(...(await askUntil(cut.client(), good.key, "VALID", { strong: true })));
    } else {
      history.push(...(await askUntil(cut.client(), bad.key, "DB_UNAVAILABLE")));
      history.push(...(await askUntil(cut.client(), good.key, "DB_UNAVAILABLE")));
      await set.heal();
      history.push(...(await askUntil(cut.client(), bad.key, "REVOKED")));
      history.push(...(await askUntil(cut.client(), good.key, "VALID", { strong: true })));
    }
    done = true;
    await Promise.all(asking);
    expect(brokenPromises(history, livesOf(good, bad), graceMs)).toEqual([]);
  },
  90_000,
);

test("a secondary that lags does not answer with what it still holds", async () => {
  const primary = await set.primary();
  const other = await replicaOn(primary);
  const [lagging, current] = othersThan(primary) as [Member, Member];
  const [good, bad] = [await make(other), await make(other)];
  const service = await replica(set.uri, { LATCHKEY_MAX_STALENESS: "400ms", LATCHKEY_OUTAGE_GRACE: "1h" });
  await warm(service, good);
  const direct = await MongoClient.connect(`${lagging.directUri}&readPreference=secondary`);
  const held = () => direct.db(database).collection("api_keys").findOne({ userId: bad.user });
  while ((await held())?.state !== "active") await sleep(20);

  set.between(lagging, othersThan(lagging), { blackHole: "both" });
  await revoke(other, bad);
  // The replica knows of the revocation's time, not of the key: it never had it in memory.
  for (;;) {
    const { asOfMs } = await ask(service.client(), good.key);
    if (asOfMs! > bad.life.endedWallMs!) break;
    await sleep(20);
  }
  for (const member of [primary, current]) set.toClients(member, { cut: true });
  await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 0);
  expect((await held())?.state).toBe("active");
  await direct.close();
  for (let n = 0; n < 10; n += 1) expect((await ask(service.client(), bad.key)).outcome).toBe("DB_UNAVAILABLE");
  expect((await ask(service.client(), good.key)).outcome).toBe("VALID");
  await set.heal();
  await askUntil(service.client(), bad.key, "REVOKED");
}, 90_000);
