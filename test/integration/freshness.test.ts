import { randomBytes, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, expect, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { formatKey, randomBase62 } from "../../src/keys/text.ts";
import { watchKeys } from "../../src/mongo/change-stream.ts";
import { createClusterTime } from "../../src/mongo/cluster-time.ts";
import { SERVER_CODES } from "../../src/mongo/server-errors.ts";
import { type Asked, ask, askUntil, brokenPromises, ended, gauge, type Life, untilGauge } from "../support/history.ts";
import { type ReplicaSet, startReplicaSet } from "../support/replica-set.ts";
import { startService, type TestService } from "../support/service.ts";
import type { Weather } from "../support/tcp-proxy.ts";

/** So long that nothing but the change stream can be why a revoked key is refused. */
const ONLY_THE_STREAM = { LATCHKEY_MAX_STALENESS: "1h", LATCHKEY_OUTAGE_GRACE: "24h" };

let set: ReplicaSet;
let database: string;
let mongo: MongoClient;
const services: TestService[] = [];

beforeAll(async () => {
  set = await startReplicaSet({ size: 1, oplogMb: 1 });
  mongo = await MongoClient.connect(set.members[0]!.directUri);
}, 120_000);
afterAll(async () => {
  await mongo.close();
  await set.stop();
});
afterEach(async () => {
  weather({});
  await Promise.all(services.splice(0).map((service) => service.stop()));
});

const weather = (now: Weather) => set.toClients(set.members[0]!, now);

/** A replica of the service that reaches MongoDB through the proxy, or past it. */
async function replica(env: Record<string, string>, { behindProxy = true } = {}): Promise<TestService> {
  const uri = behindProxy ? set.uri : set.members[0]!.directUri;
  const service = await startService({ env: { MONGODB_URI: uri, MONGODB_DATABASE: database, ...env } });
  services.push(service);
  return service;
}

/** `behind`: replicas behind the proxy, by their settings; `other`: one that is not, through which keys are managed. */
async function replicas<T extends Record<string, string>[]>(
  ...behind: T
): Promise<{ other: TestService; behind: TestService[] }> {
  database = `test-${randomUUID()}`;
  const other = await replica({}, { behindProxy: false });
  return { other, behind: await Promise.all(behind.map((env) => replica(env))) };
}

const anyone = (service: TestService) => service.client();

/** A key of a new user, made through `service`. */
async function make(service: TestService): Promise<{ key: string; user: string; life: Life }> {
  const user = randomUUID();
  const { key } = await service.client(user).create({ scopes: ["read"] });
  return { key, user, life: { madeMs: performance.now() } };
}

async function revoke(service: TestService, made: { user: string; life: Life }): Promise<void> {
  const beganMs = performance.now();
  await service.client(made.user).revoke({});
  made.life = ended(made.life, beganMs);
}

/** `made` is in memory, and believed. */
async function warm(service: TestService, ...made: { key: string }[]): Promise<void> {
  await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 1);
  for (const { key } of made) await askUntil(anyone(service), key, "VALID");
}

test("a revocation, a rotation and a grace period through one replica are seen by the other, by the change stream alone", async () => {
  const { other, behind } = await replicas(ONLY_THE_STREAM);
  const [watching] = behind as [TestService];
  const [revoked, rotated, retiring] = [await make(other), await make(other), await make(other)];
  await warm(watching, revoked, rotated, retiring);
  await revoke(other, revoked);
  await askUntil(anyone(watching), revoked.key, "REVOKED");
  await other.client(rotated.user).refresh({});
  await askUntil(anyone(watching), rotated.key, "REVOKED");
  await other.client(retiring.user).refresh({ gracePeriod: { nanos: 1_000_000 } });
  await askUntil(anyone(watching), retiring.key, "REVOKED");
});

test("a write through a replica is in its own memory before it is acknowledged, though the stream brings nothing", async () => {
  const { behind } = await replicas(ONLY_THE_STREAM);
  const [own] = behind as [TestService];
  const made = await make(own);
  await warm(own, made);
  // Long enough that no event of the revocation comes back before the next call is answered.
  weather({ delayMs: { toClient: 1_000 } });
  await revoke(own, made);
  expect((await ask(anyone(own), made.key)).outcome).toBe("REVOKED");
});

const FAULTS: [string, Weather][] = [
  ["cut", { cut: true }],
  ["black-holed", { blackHole: "both" }],
  ["black-holed on the way back", { blackHole: "toClient" }],
  ["slower than a read may take", { delayMs: { toClient: 2_500 } }],
];

test.each(FAULTS)(
  "network %s: keys in memory are good within the grace and UNAVAILABLE past it; strong calls at once; it heals by itself, and no memory is lost",
  async (_, fault) => {
    const graceMs = 1_500;
    const { other, behind } = await replicas(
      { LATCHKEY_MAX_STALENESS: "300ms", LATCHKEY_OUTAGE_GRACE: "1h" },
      { LATCHKEY_MAX_STALENESS: "300ms", LATCHKEY_OUTAGE_GRACE: `${graceMs}ms` },
    );
    const [patient, strict] = behind as [TestService, TestService];
    const [good, bad, untouched] = [await make(other), await make(other), await make(other)];
    for (const service of behind) await warm(service, good, bad, untouched);

    weather(fault);
    await revoke(other, bad);
    const history: Asked[] = [];
    const lost = async (key: string) => {
      history.push(...(await askUntil(anyone(strict), key, "DB_UNAVAILABLE")));
    };
    await Promise.all([lost(good.key), lost(bad.key)]);
    const lives = new Map([good, bad].map(({ key, life }) => [key, life]));
    expect(brokenPromises(history, lives, graceMs)).toEqual([]);
    // Once the grace is over it stays over.
    expect((await ask(anyone(strict), good.key)).outcome).toBe("DB_UNAVAILABLE");

    await untilGauge(patient, "latchkey_view_fresh", (fresh) => fresh === 0);
    const inOutage = await ask(anyone(patient), good.key);
    expect(inOutage.outcome).toBe("VALID");
    expect(await gauge(patient, "latchkey_outage")).toBe(1);
    expect((await ask(anyone(patient), good.key, { strong: true })).outcome).toBe("DB_UNAVAILABLE");

    weather({});
    for (const service of behind) {
      const healing = [
        ...(await askUntil(anyone(service), bad.key, "REVOKED")),
        ...(await askUntil(anyone(service), good.key, "VALID", { strong: true })),
      ];
      expect(brokenPromises(healing, lives, service === strict ? graceMs : 3_600_000)).toEqual([]);
      await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 1);
      const after = (await askUntil(anyone(service), good.key, "VALID")).at(-1)!;
      expect(after.asOfMs).toBeGreaterThan(inOutage.asOfMs!);
      // The third key was not asked for since: it is still there only if the stream went on from where it was.
      expect(await gauge(service, "latchkey_view_keys")).toBe(3);
    }
  },
  120_000,
);

test("a grace of 0: as soon as the view is not fresh and MongoDB does not answer, calls are UNAVAILABLE", async () => {
  const maxStalenessMs = 300;
  const { other, behind } = await replicas({
    ...{ LATCHKEY_MAX_STALENESS: `${maxStalenessMs}ms`, LATCHKEY_OUTAGE_GRACE: "0s" },
  });
  const [service] = behind as [TestService];
  const made = await make(other);
  await warm(service, made);
  weather({ blackHole: "both" });
  await revoke(other, made);
  const history = await askUntil(anyone(service), made.key, "DB_UNAVAILABLE");
  expect(brokenPromises(history, new Map([[made.key, made.life]]), maxStalenessMs)).toEqual([]);
});

test("where MongoDB answers but the stream is late, the staleness holds: every call reads", async () => {
  const maxStalenessMs = 150;
  const { other, behind } = await replicas({
    LATCHKEY_MAX_STALENESS: `${maxStalenessMs}ms`,
    LATCHKEY_READ_TIMEOUT: "10s",
    // Nothing but a read can be why a key is accepted.
    LATCHKEY_OUTAGE_GRACE: "0s",
  });
  const [service] = behind as [TestService];
  const [good, bad] = [await make(other), await make(other)];
  await warm(service, good, bad);
  weather({ delayMs: { toClient: 200 } });
  await revoke(other, bad);
  const history = await askUntil(anyone(service), bad.key, "REVOKED");
  history.push(...(await askUntil(anyone(service), good.key, "VALID")));
  const lives = new Map([good, bad].map(({ key, life }) => [key, life]));
  expect(brokenPromises(history, lives, maxStalenessMs)).toEqual([]);
  expect(await gauge(service, "latchkey_view_fresh")).toBe(0);
}, 60_000);

test("when the stream's history is gone, the memory is cleared: a key revoked meanwhile is refused, and the stream goes on", async () => {
  const { other, behind } = await replicas(ONLY_THE_STREAM);
  const [service] = behind as [TestService];
  const [revoked, later] = [await make(other), await make(other)];
  await warm(service, revoked, later);
  weather({ cut: true });
  await revoke(other, revoked);
  const oplog = mongo.db("local").collection("oplog.rs");
  const [revocation] = await oplog.find().sort({ $natural: -1 }).limit(1).toArray();
  const filler = mongo.db(database).collection<{ _id: number; text: string }>("filler");
  for (let n = 0; ; n += 1) {
    await filler.replaceOne({ _id: 0 }, { text: randomBytes(500_000).toString("hex") }, { upsert: true });
    const [oldest] = await oplog.find().sort({ $natural: 1 }).limit(1).toArray();
    if (oldest!.ts.greaterThan(revocation!.ts)) break;
    if (n % 10 === 9) await sleep(100);
  }
  weather({});
  await askUntil(anyone(service), revoked.key, "REVOKED");
  expect(service.logs()).toContain(`"code":${SERVER_CODES.DB_ERROR.ChangeStreamHistoryLost}`);
  await warm(service, later);
  await revoke(other, later);
  await askUntil(anyone(service), later.key, "REVOKED");
}, 120_000);

test("when the server does not take the stream's token, it begins anew", async () => {
  const { other, behind } = await replicas(ONLY_THE_STREAM);
  const [service] = behind as [TestService];
  const made = await make(other);
  await warm(service, made);
  const failPoint = (mode: object | string) =>
    mongo.db("admin").command({
      configureFailPoint: "failCommand",
      mode,
      data: {
        failCommands: ["getMore", "aggregate"],
        errorCode: SERVER_CODES.DB_ERROR.InvalidResumeToken,
        appName: "latchkey",
      },
    });
  await failPoint("alwaysOn");
  await untilGauge(service, "latchkey_view_keys", (keys) => keys === 0);
  await failPoint("off");
  await warm(service, made);
  await revoke(other, made);
  await askUntil(anyone(service), made.key, "REVOKED");
}, 60_000);

test.each(["collection", "database"])("when the %s is dropped, no key of it is good any more", async (what) => {
  const { other, behind } = await replicas(ONLY_THE_STREAM);
  const [service] = behind as [TestService];
  const made = await make(other);
  await warm(service, made);
  if (what === "collection") await mongo.db(database).dropCollection("api_keys");
  else await mongo.db(database).dropDatabase();
  await askUntil(anyone(service), made.key, "NOT_FOUND");
});

test("a record that was changed or deleted by hand is seen too", async () => {
  const { other, behind } = await replicas(ONLY_THE_STREAM);
  const [service] = behind as [TestService];
  const [changed, deleted] = [await make(other), await make(other)];
  await warm(service, changed, deleted);
  const records = mongo.db(database).collection("api_keys");
  await records.updateOne({ userId: changed.user }, { $set: { state: "revoked" } });
  await askUntil(anyone(service), changed.key, "REVOKED");
  await records.deleteOne({ userId: deleted.user });
  await askUntil(anyone(service), deleted.key, "NOT_FOUND");
});

test("a flood of ids that nobody has does not stop good keys, in memory or not", async () => {
  // The flood comes from the process that answers it: on a busy machine a read may take long.
  const { other, behind } = await replicas({ LATCHKEY_READ_TIMEOUT: "20s" });
  const [service] = behind as [TestService];
  const made = await Promise.all(Array.from({ length: 20 }, () => make(other)));
  await warm(service, made[0]!);
  let flooding = true;
  const flood = Array.from({ length: 64 }, async () => {
    const client = anyone(service);
    while (flooding) {
      const [id, secret] = [randomBase62(16, randomBytes), randomBase62(43, randomBytes)];
      expect((await ask(client, formatKey({ prefix: "lk", id, secret }))).outcome).toBe("NOT_FOUND");
    }
  });
  for (const { key } of made) {
    for (const again of [made[0]!.key, key]) expect((await ask(anyone(service), again)).outcome).toBe("VALID");
  }
  flooding = false;
  await Promise.all(flood);
}, 60_000);

/** Verifies through both replicas while keys are made, rotated and revoked through both; returns what was broken. */
async function hammer(
  verifying: TestService[],
  managing: TestService[],
  { boundMs, rounds }: { boundMs: number; rounds: number },
): Promise<{ broken: string[]; accepted: number; refused: number }> {
  const lives = new Map<string, Life>();
  const history: Asked[] = [];
  const users = Array.from({ length: 4 }, () => randomUUID());
  let done = false;
  const keysOf = new Map<string, string[]>();
  const verifiers = verifying.flatMap((service) =>
    [true, false].map(async (strong) => {
      const client = anyone(service);
      while (!done) {
        for (const keys of keysOf.values()) {
          await Promise.all(
            keys.slice(-2).map(async (key) => {
              history.push(await ask(client, key, { strong }));
            }),
          );
        }
        await sleep(1);
      }
    }),
  );
  const managers = users.map(async (user, index) => {
    const keys: string[] = [];
    keysOf.set(user, keys);
    for (let round = 0; round < rounds; round += 1) {
      const client = managing[(round + index) % managing.length]!.client(user);
      const beganMs = performance.now();
      const last = keys.at(-1);
      // A user without a key makes one; one with a key rotates it twice, then revokes it.
      if (round % 4 === 3) await client.revoke({});
      else {
        const { key } = await client.refresh({ scopes: ["read"] });
        lives.set(key, { madeMs: performance.now() });
        keys.push(key);
      }
      if (round % 4 > 0) lives.set(last!, ended(lives.get(last!)!, beganMs));
      // Long enough for Verify to be asked within and past the bound.
      await sleep(20 + (round % 3) * 30);
    }
  });
  await Promise.all(managers);
  await sleep(2 * boundMs);
  done = true;
  await Promise.all(verifiers);
  const count = (outcome: string) => history.filter((asked) => asked.outcome === outcome).length;
  return { broken: brokenPromises(history, lives, boundMs), accepted: count("VALID"), refused: count("REVOKED") };
}

test("under a hammer through two replicas no key is accepted after its end was acknowledged (strong) or past the bound (default), and no good key is refused", async () => {
  const { other, behind } = await replicas({ LATCHKEY_MAX_STALENESS: "300ms" });
  const both = [other, behind[0]!];
  const { broken, accepted, refused } = await hammer(both, both, { boundMs: 1_000, rounds: 32 });
  expect(broken).toEqual([]);
  expect(accepted).toBeGreaterThan(0);
  expect(refused).toBeGreaterThan(0);
}, 120_000);

test("the hammer's check can fail: a replica that hears of nothing, and believes its memory for hours, is found out", async () => {
  const { other, behind } = await replicas(ONLY_THE_STREAM);
  const [deaf] = behind as [TestService];
  const made = await make(other);
  await warm(deaf, made);
  weather({ cut: true });
  await revoke(other, made);
  const boundMs = 10;
  await sleep(2 * boundMs);
  const asked = await ask(anyone(deaf), made.key);
  const lives = new Map([[made.key, made.life]]);
  expect(brokenPromises([asked], lives, boundMs)).toEqual([expect.stringMatching(/^default: accepted/)]);
  expect(brokenPromises([{ ...asked, strong: true }], lives, 3_600_000)).toEqual([
    expect.stringMatching(/^strong: accepted/),
  ]);
  const claimsToKnow = { ...asked, asOfMs: made.life.endedWallMs! + 1 };
  expect(brokenPromises([claimsToKnow], lives, 3_600_000)).toEqual(["accepted as of a time after its end"]);
  const refused = { ...asked, outcome: "NOT_FOUND", beganMs: made.life.madeMs + 0.1, endedMs: made.life.madeMs + 0.2 };
  expect(brokenPromises([refused], lives, boundMs)).toEqual(["a good key was called NOT_FOUND"]);
});

test("a watch can be stopped as soon as it was begun", async () => {
  const sink = { restarted: () => {}, changed: () => {}, proven: () => {} };
  const watch = watchKeys({
    ...{ db: mongo.db(`test-${randomUUID()}`), clusterTime: createClusterTime(), maxStalenessMs: 1_000, sink },
    ...{ wallMs: Date.now },
  });
  await watch.stop();
  expect(watch.opened).toBe(0);
});

test("with a long staleness the stream is asked often enough that its connection is never silent for long", async () => {
  const client = new MongoClient(set.members[0]!.directUri, { monitorCommands: true });
  const awaits: number[] = [];
  client.on("commandStarted", ({ commandName, command }) => {
    if (commandName === "getMore") awaits.push(command.maxTimeMS);
  });
  const sink = { restarted: () => {}, changed: () => {}, proven: () => {} };
  const watch = watchKeys({
    ...{ db: client.db(`test-${randomUUID()}`), clusterTime: createClusterTime(), maxStalenessMs: 3_600_000, sink },
    ...{ wallMs: Date.now },
  });
  while (awaits.length === 0) await sleep(10);
  await watch.stop();
  await client.close();
  expect(Math.max(...awaits)).toBeLessThanOrEqual(1_000);
});

test("a proof is as old as its heartbeat was sent, however late it comes back", async () => {
  const delayMs = 300;
  const client = await MongoClient.connect(set.uri);
  weather({ delayMs: { toClient: delayMs } });
  const ages: number[] = [];
  const sink = {
    restarted: () => {},
    changed: () => {},
    proven: ({ monotonicMs }: { monotonicMs: number }) => ages.push(performance.now() - monotonicMs),
  };
  const watch = watchKeys({
    ...{ db: client.db(`test-${randomUUID()}`), clusterTime: createClusterTime(), maxStalenessMs: 4_000, sink },
    ...{ wallMs: Date.now },
  });
  while (ages.length < 2) await sleep(10);
  await watch.stop();
  await client.close();
  // Timers may be a millisecond early.
  expect(Math.min(...ages)).toBeGreaterThan(delayMs - 5);
});
