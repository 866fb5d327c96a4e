import { afterEach, expect, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { createLatchkeyClient } from "../../src/client/index.ts";
import { readDevSecrets } from "../../src/embedded/dev-secrets.ts";
import { newDirectory, runToEnd, serve, stopProcesses } from "../support/process.ts";
import { JWT_SECRET, PEPPER, startService, userToken } from "../support/service.ts";

afterEach(stopProcesses);

const NEW_PEPPER = Buffer.alloc(32, 8).toString("base64");

test("`latchkey peppers` counts keys by pepper, and a key leaves the old one when it is used", async () => {
  const now = new Date();
  const old = await startService({ env: { LATCHKEY_PEPPERS: `p1:${PEPPER}` } });
  const { key } = await old.client("a").create({ scopes: ["read"] });
  await old.client("b").create({ scopes: ["read"] });
  await old.client("b").refresh({});
  await old.client("c").create({ scopes: ["read"] });
  await old.client("c").refresh({ gracePeriod: { seconds: 600n } });
  await old.client("d").create({ scopes: ["read"] });
  await old.client("e").create({ scopes: ["read"] });
  await old.stop();
  const mongo = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  const keys = mongo.db(old.database).collection("api_keys");
  await keys.updateOne({ userId: "d" }, { $set: { expiresAt: new Date(now.getTime() - 1_000) } });
  await keys.updateOne({ userId: "e" }, { $unset: { fingerprint: "" } });
  await mongo.close();

  const ring = `p2:${NEW_PEPPER},p1:${PEPPER}`;
  const env = {
    MONGODB_URI: process.env.TEST_MONGODB_URI!,
    MONGODB_DATABASE: old.database,
    LATCHKEY_JWT_SECRET: JWT_SECRET,
    LATCHKEY_PEPPERS: ring,
  };
  const report = async () => JSON.parse((await runToEnd(["peppers", "--json"], env)).output);
  const [newest, oldest, none] = [{ pepper: "p2" }, { pepper: "p1" }, { pepper: null }];
  expect(await report()).toMatchObject({
    newest: "p2",
    outdated: 5,
    // Of p1: a, b, and c's two are good; b's first is revoked, d has run out.
    peppers: [
      { ...newest, good: 0, all: 0 },
      { ...oldest, good: 4, all: 6 },
      { ...none, good: 1, all: 1 },
    ],
  });

  const next = await startService({ env: { MONGODB_DATABASE: old.database, LATCHKEY_PEPPERS: ring } });
  await next.client().verify({ key });
  // The fingerprint is renewed after the answer.
  for (let moved = 0; moved === 0; ) moved = (await report()).peppers[0].good;
  expect(await report()).toMatchObject({ outdated: 4, peppers: [{ good: 1 }, { good: 3 }, { good: 1 }] });
  await next.stop();

  const { code, output } = await runToEnd(["peppers"], env);
  expect(code).toBe(0);
  expect(output).toContain("4 good key(s) are not under p2");
  for (const secret of [PEPPER, NEW_PEPPER, JWT_SECRET]) expect(output).not.toContain(secret);
}, 60_000);

test("it works beside a running service's embedded database, and says what to do where none runs", async () => {
  const dataDir = newDirectory();
  const nowhere = await runToEnd(["peppers"], { LATCHKEY_DATA_DIR: dataDir });
  expect(nowhere).toEqual({ code: 1, output: expect.stringContaining("Start the service there") });
  const service = await serve({ LATCHKEY_DATA_DIR: dataDir });
  const secret = readDevSecrets(dataDir)!.jwtSecret;
  const token = await userToken("alice", { secret });
  await createLatchkeyClient({ baseUrl: service.url, token }).create({ scopes: ["read"] });
  const { code, output } = await runToEnd(["peppers"], { LATCHKEY_DATA_DIR: dataDir });
  expect({ code, output }).toEqual({
    code: 0,
    output: expect.stringMatching(/(dev-[0-9a-f]{8}) +1 +1 +newest\nEvery good key is under \1,/),
  });
}, 60_000);
