import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { existsSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterEach, expect, test } from "@jest/globals";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/health/v1/health_pb";
import { createLatchkeyClient, Outcome } from "../../src/client/index.ts";
import { parseAnyKey } from "../../src/keys/text.ts";
import { endAfterTest, newDirectory, runToEnd, serve as serveWith, stopProcesses } from "../support/process.ts";
import { SERVICE_TOKEN, sha256, userToken } from "../support/service.ts";

afterEach(stopProcesses);

/** With an embedded MongoDB in `dataDir`. */
const serve = (dataDir: string, env: Record<string, string> = {}) => serveWith({ LATCHKEY_DATA_DIR: dataDir, ...env });

const tokenFor = async (dataDir: string, user: string) =>
  (await runToEnd(["token", "--user", user], { LATCHKEY_DATA_DIR: dataDir })).output;

test("SIGTERM stops service and mongod with exit code 0, and the data is there at the next start", async () => {
  const dataDir = newDirectory();
  const first = await serve(dataDir);
  const token = await tokenFor(dataDir, "alice");
  const { key } = await createLatchkeyClient({ baseUrl: first.url, token }).create({ scopes: ["read"] });
  const mongod = Number(readFileSync(join(dataDir, "db", "mongod.lock"), "utf8"));
  first.child.kill("SIGTERM");
  expect(await once(first.child, "exit")).toEqual([0, null]);
  expect(() => process.kill(mongod, 0)).toThrow();
  const second = await serve(dataDir);
  expect((await createLatchkeyClient({ baseUrl: second.url }).verify({ key })).outcome).toBe(Outcome.VALID);
});

test("npm start passes a signal on: sent to npm alone, it ends npm, the service and mongod", async () => {
  const dataDir = newDirectory();
  const npm = spawn("npm", ["start"], {
    env: {
      ...{ PATH: process.env.PATH, HOME: process.env.HOME, LATCHKEY_DATA_DIR: dataDir },
      ...{ LATCHKEY_LISTEN: "127.0.0.1:0", LATCHKEY_OPS_LISTEN: "off" },
    },
    stdio: ["ignore", "pipe", "ignore"],
  });
  endAfterTest(npm);
  let output = "";
  npm.stdout.on("data", (chunk) => {
    output += chunk;
  });
  while (!output.includes('"event":"ready"')) await new Promise((resolve) => setTimeout(resolve, 20));
  const mongod = Number(readFileSync(join(dataDir, "db", "mongod.lock"), "utf8"));
  npm.kill("SIGTERM");
  // Closed: by the service too, which writes to it.
  await once(npm, "close");
  expect(output).toContain('"event":"stopped"');
  expect(() => process.kill(mongod, 0)).toThrow();
}, 60_000);

test("Ctrl-C under npm, which reaches the service twice, still stops it cleanly", async () => {
  const { child, output } = await serve(newDirectory());
  const closed = once(child, "close");
  child.kill("SIGINT");
  while (!output().includes('"event":"stopping"')) await once(child.stdout!, "data");
  child.kill("SIGINT");
  expect(await closed).toEqual([0, null]);
  expect(output().match(/"event":"(stopping|stopped)"/g)).toEqual(['"event":"stopping"', '"event":"stopped"']);
});

test.each(["1", "2"])(
  "from SIGTERM on /readyz is 503 and health NOT_SERVING, and connections and calls are taken for LATCHKEY_DRAIN_DELAY; a second signal ends it at once (workers: %s)",
  async (workers) => {
    const dataDir = newDirectory();
    const service = await serve(dataDir, { LATCHKEY_DRAIN_DELAY: "1h", LATCHKEY_WORKERS: workers });
    const token = await tokenFor(dataDir, "alice");
    const { key } = await createLatchkeyClient({ baseUrl: service.url, token }).create({ scopes: ["read"] });
    const readyz = async () => (await fetch(`${service.opsUrl}/readyz`)).status;
    while ((await readyz()) !== 200) await sleep(20);
    const health = createClient(Health, createGrpcTransport({ baseUrl: service.url }));
    const watch = health.watch({ service: "latchkey.v1.ApiKeyService" })[Symbol.asyncIterator]();
    while ((await watch.next()).value?.status !== Status.SERVING);

    const closed = once(service.child, "close");
    service.child.kill("SIGTERM");
    while (service.events("stopping").length === 0) await sleep(5);
    expect((await watch.next()).value?.status).toBe(Status.NOT_SERVING);
    expect(await readyz()).toBe(503);
    expect((await health.check({})).status).toBe(Status.NOT_SERVING);
    // Each on a connection of its own.
    for (let call = 0; call < 4; call += 1)
      expect((await createLatchkeyClient({ baseUrl: service.url }).verify({ key })).outcome).toBe(Outcome.VALID);
    expect(service.events("stopped")).toEqual([]);

    // What comes at the same moment is taken for an echo of the first.
    await sleep(300);
    service.child.kill("SIGTERM");
    expect(await closed).toEqual([0, null]);
    expect(service.events("stopped").length).toBe(1);
  },
  60_000,
);

test("a service whose log nobody reads any more goes on", async () => {
  const { child, url } = await serve(newDirectory());
  child.stdout!.destroy();
  child.stderr!.destroy();
  const ask = () =>
    fetch(`${url}/latchkey.v1.ApiKeyService/Get`, {
      ...{ method: "POST", body: "{}", headers: { "content-type": "application/json" } },
    });
  // Each is logged.
  for (let call = 0; call < 5; call += 1) expect((await ask()).status).toBe(401);
  expect(child.exitCode).toBeNull();
});

test("the secrets it made are readable by their owner alone", async () => {
  const dataDir = newDirectory();
  await serve(dataDir);
  for (const file of ["secrets.json", "mongod.key"]) expect(statSync(join(dataDir, file)).mode & 0o777).toBe(0o600);
});

test("after kill -9 during refreshes, the next start works without help and each user has exactly one active key", async () => {
  const dataDir = newDirectory();
  const first = await serve(dataDir);
  const users = Array.from({ length: 20 }, (_, index) => `user-${index}`);
  const tokens = new Map<string, string>();
  const { readDevSecrets } = await import("../../src/embedded/dev-secrets.ts");
  for (const user of users) {
    const secret = readDevSecrets(dataDir)!.jwtSecret;
    tokens.set(user, await userToken(user, { secret }));
  }
  const clients = (url: string) =>
    users.map((user) =>
      createLatchkeyClient({ baseUrl: url, token: tokens.get(user)!, protocol: "connect", timeoutMs: 60_000 }),
    );
  const before = clients(first.url);
  await Promise.all(before.map((client) => client.create({ scopes: ["read"] })));
  const known = new Map<number, Set<string>>(users.map((_, index) => [index, new Set()]));
  let answered = 0;
  const rotateTenTimes = async (client: (typeof before)[number], index: number) => {
    for (let round = 0; round < 10; round += 1) {
      const { key } = await client.refresh({});
      known.get(index)!.add(key);
      answered += 1;
      if (answered === 60) first.child.kill("SIGKILL");
    }
  };
  const ended = once(first.child, "exit");
  await Promise.allSettled(before.map(rotateTenTimes));
  await ended;
  expect(first.child.signalCode).toBe("SIGKILL");
  const second = await serve(dataDir);
  const after = clients(second.url);
  for (const [index, client] of after.entries()) {
    const { apiKey } = await client.get({});
    expect(apiKey?.userId).toBe(users[index]);
    const outcomes = await Promise.all(
      [...known.get(index)!].map(async (key) => (await client.verify({ key })).outcome),
    );
    expect(outcomes.filter((outcome) => outcome === Outcome.VALID).length).toBeLessThanOrEqual(1);
  }
}, 120_000);

test("a second service on the same data directory says so and exits 1, and the first goes on", async () => {
  const dataDir = newDirectory();
  const first = await serve(dataDir);
  const second = await runToEnd(["serve"], { LATCHKEY_DATA_DIR: dataDir });
  expect(second).toMatchObject({
    code: 1,
    output: expect.stringContaining(`in use by another Latchkey (pid ${first.child.pid})`),
  });
  expect((await createLatchkeyClient({ baseUrl: first.url }).verify({ key: "" })).outcome).toBe(Outcome.MALFORMED);
});

test("a taken port, a bad directory, a missing mongod and a bad setting are one clear sentence and exit code 1", async () => {
  const blocker = createServer().listen(0, "127.0.0.1");
  await once(blocker, "listening");
  const taken = `127.0.0.1:${(blocker.address() as { port: number }).port}`;
  const cases: [Record<string, string>, string][] = [
    [{ LATCHKEY_DATA_DIR: newDirectory(), LATCHKEY_LISTEN: taken }, `${taken} is in use`],
    [{ LATCHKEY_DATA_DIR: "/dev/null/x" }, "MONGODB_URI is not set"],
    [{ LATCHKEY_DATA_DIR: "/proc/latchkey" }, "MONGODB_URI is not set"],
    [{ LATCHKEY_AUDIT_RETENTION: "36500d" }, 'LATCHKEY_AUDIT_RETENTION is "36500d": it must be 1s to 24855d'],
    [{ LATCHKEY_DATA_DIR: newDirectory(), MONGOD_BINARY: "/does/not/exist" }, "MONGOD_BINARY"],
    [{ LATCHKEY_HASH_QUEUE: "none" }, 'LATCHKEY_HASH_QUEUE is "none": it must be a whole number'],
    [{ MONGODB_URI: "mongodb://user:canary@nowhere", LATCHKEY_LISTEN: "0.0.0.0:1" }, "LATCHKEY_PEPPERS must be set"],
  ];
  for (const [env, sentence] of cases) {
    const { code, output } = await runToEnd(["serve"], env);
    expect({ code, output }).toEqual({ code: 1, output: expect.stringContaining(sentence) });
    expect(output).not.toMatch(/\n\s+at |canary/);
  }
  blocker.close();
}, 60_000);

test("both taken ports are told at once, and before a mongod is started; so is one address that is to be both", async () => {
  const blockers = [createServer().listen(0, "127.0.0.1"), createServer().listen(0, "127.0.0.1")];
  await Promise.all(blockers.map((blocker) => once(blocker, "listening")));
  const taken = blockers.map((blocker) => `127.0.0.1:${(blocker.address() as { port: number }).port}`);
  for (const workers of ["1", "2"]) {
    const dataDir = join(newDirectory(), "data");
    const settings = { LATCHKEY_LISTEN: taken[0]!, LATCHKEY_OPS_LISTEN: taken[1]!, LATCHKEY_WORKERS: workers };
    const { code, output } = await runToEnd(["serve"], { LATCHKEY_DATA_DIR: dataDir, ...settings });
    expect({ code, lines: output.split("\n") }).toEqual({
      code: 1,
      lines: [
        `latchkey: ${taken[0]} is in use by another program. Stop it, or set LATCHKEY_LISTEN to a free address.`,
        `${taken[1]} is in use by another program. Stop it, or set LATCHKEY_OPS_LISTEN to a free address, or to off.`,
      ],
    });
    expect(existsSync(dataDir)).toBe(false);
  }
  for (const blocker of blockers) await new Promise((resolve) => blocker.close(resolve));
  const one = { LATCHKEY_LISTEN: taken[0]!, LATCHKEY_OPS_LISTEN: taken[0]! };
  const { output } = await runToEnd(["serve"], { LATCHKEY_DATA_DIR: newDirectory(), ...one });
  expect(output).toContain("LATCHKEY_LISTEN and LATCHKEY_OPS_LISTEN are the same address");
}, 60_000);

test("no key, token, pepper or hash reaches the output, whatever is asked", async () => {
  const dataDir = newDirectory();
  const pepper = Buffer.alloc(32, "canary-pepper").toString("base64");
  const jwtSecret = "canary-jwt-secret-canary-jwt-secret";
  const service = await serve(dataDir, {
    LATCHKEY_LOG_LEVEL: "trace",
    LATCHKEY_PEPPERS: `p:${pepper}`,
    LATCHKEY_JWT_SECRET: jwtSecret,
    LATCHKEY_VERIFY_AUTH: "token",
    LATCHKEY_SERVICE_TOKENS: `gateway:sha256:${sha256(SERVICE_TOKEN)}`,
  });
  const token = await userToken("alice", { secret: jwtSecret });
  const client = createLatchkeyClient({ baseUrl: service.url, token });
  const verifier = createLatchkeyClient({ baseUrl: service.url, token: SERVICE_TOKEN });
  const first = await client.create({ scopes: ["read"] });
  const second = await client.refresh({});
  for (const key of [first.key, second.key, `${second.key}x`]) await verifier.verify({ key });
  const ask = (path: string, body: string, bearer: string) =>
    fetch(`${service.url}${path}`, {
      method: "POST",
      body,
      headers: { "content-type": "application/json", authorization: `Bearer ${bearer}` },
    });
  await ask("/latchkey.v1.ApiKeyService/Verify", `{"key":"${second.key}"`, SERVICE_TOKEN);
  await ask("/latchkey.v1.ApiKeyService/Verify", `{"${second.key}":"x"}`, SERVICE_TOKEN);
  await ask("/latchkey.v1.ApiKeyService/Get", "{}", second.key);
  await ask("/latchkey.v1.ApiKeyService/Get", "{}", `${token}x`);
  await ask(`/${second.key}`, second.key, second.key);
  const bomb = await fetch(`${service.url}/latchkey.v1.ApiKeyService/Verify`, {
    method: "POST",
    headers: {
      "content-type": "application/json",
      "content-encoding": "gzip",
      authorization: `Bearer ${SERVICE_TOKEN}`,
    },
    body: gzipSync(Buffer.alloc(8 << 20, " ")),
  });
  expect(await bomb.json()).toMatchObject({ code: "resource_exhausted" });
  await client.revoke({ reason: "done" });
  service.child.kill("SIGTERM");
  await once(service.child, "close");
  const output = service.output();
  expect(output).toContain(`"keyId":"${second.apiKey?.id}"`);
  const parts = (key: string) => key.slice(-49, -6);
  for (const secret of [
    parts(first.key),
    parts(second.key),
    token,
    SERVICE_TOKEN,
    sha256(SERVICE_TOKEN),
    pepper,
    jwtSecret,
    "$argon2id$",
  ]) {
    expect(output).not.toContain(secret);
  }
});

test("the CLI creates, shows, rotates, verifies and revokes, with exit codes that scripts can use", async () => {
  const dataDir = newDirectory();
  const { url } = await serve(dataDir);
  const env = { LATCHKEY_DATA_DIR: dataDir, LATCHKEY_URL: url };
  const created = await runToEnd(["create", "--user", "bob", "--scope", "read", "write"], env);
  expect(created).toEqual({ code: 0, output: expect.stringMatching(/^lk_\w+$/) });
  expect(await runToEnd(["verify", "--scope", "read"], env, created.output)).toEqual({ code: 0, output: "VALID" });
  expect(await runToEnd(["verify", "--scope", "admin"], env, created.output)).toEqual({
    code: 3,
    output: "INSUFFICIENT_SCOPE",
  });
  expect(await runToEnd(["create", "--user", "bob", "--scope", "read"], env)).toEqual({
    code: 1,
    output: expect.stringContaining("(KEY_EXISTS)"),
  });
  expect(JSON.parse((await runToEnd(["get", "--user", "bob", "--json"], env)).output)).toMatchObject({
    apiKey: { userId: "bob" },
  });
  const rotated = await runToEnd(["refresh", "--user", "bob", "--grace", "1m"], env);
  const prefixes = [rotated.output, created.output].map((key) => key.slice(0, "lk_".length + 8));
  expect(await runToEnd(["revoke", "--user", "bob"], env)).toEqual({
    code: 0,
    output: `The API key was revoked. ${prefixes.join(" ")}`,
  });
  expect((await runToEnd(["nonsense"], env)).code).toBe(2);
  expect((await runToEnd(["doctor"], env)).code).toBe(0);
}, 60_000);

test("the CLI fails when a repeated call's key is not told again, and says no token that can't be sent", async () => {
  const dataDir = newDirectory();
  const { url } = await serve(dataDir);
  const env = { LATCHKEY_DATA_DIR: dataDir, LATCHKEY_URL: url };
  const create = ["create", "--user", "bob", "--scope", "read", "--request-id", randomUUID()];
  const { output: key } = await runToEnd(create, env);
  expect(await runToEnd(create, env)).toEqual({ code: 0, output: key });
  await runToEnd(["revoke", "--user", "bob"], env);
  expect(await runToEnd(create, env)).toEqual({
    code: 1,
    output: expect.stringMatching(/not told again: it is revoked/),
  });
  for (const [args, more] of [
    [["get"], { LATCHKEY_TOKEN: "canary\ncanary" }],
    [["get", "--token", "canary\u2028"], {}],
  ] as const) {
    const { code, output } = await runToEnd([...args], { ...env, ...more });
    expect({ code, output }).toEqual({ code: 1, output: expect.stringContaining("must be one line of visible ASCII") });
    expect(output).not.toContain("canary");
  }
  for (const args of [
    ["--service", "a b,c"],
    ["--user", ""],
  ])
    expect((await runToEnd(["token", ...args], env)).code).toBe(1);
}, 60_000);

test("an admin searches, looks at and ends keys by the CLI, and reads who did what; nothing that callers said speaks to the terminal", async () => {
  const dataDir = newDirectory();
  const { url } = await serve(dataDir);
  const env = { LATCHKEY_DATA_DIR: dataDir, LATCHKEY_URL: url };
  const admin = async (...args: string[]) => runToEnd(["admin", ...args], env);
  const make = async (user: string, ...args: string[]) => {
    const { output: key } = await runToEnd(["create", "--user", user, "--scope", "read", ...args], env);
    return { key, id: parseAnyKey(key)!.id };
  };
  const bob = await make("bob", "--name", "laptop");
  const eve = await make("eve\u202e2J", "--name", "right\u202eleft");
  expect((await admin("list", "--name", "LAP")).output.split("\n").map((line) => line.split(/ {2,}/))).toEqual([
    ["id", "prefix", "state", "user", "scopes", "name"],
    [bob.id, `lk_${bob.id.slice(0, 8)}`, "active", "bob", "read", "laptop"],
  ]);
  expect((await admin("list", "--prefix", eve.key)).output).toContain("eve\\u{202e}2J  read    right\\u{202e}left");
  const page = await admin("list", "--page-size", "1");
  const [, token] = /--page-token (\S+)/.exec(page.output)!;
  const next = await admin("list", "--page-size", "1", "--page-token", token!);
  const firstKey = ({ output }: { output: string }) => output.split("\n")[1]!.slice(0, 16);
  expect([page, next].map(firstKey).sort()).toEqual([bob.id, eve.id].sort());
  expect(JSON.parse((await admin("get", bob.id, "--json")).output)).toMatchObject({ apiKey: { userId: "bob" } });

  const presented = ["admin", "revoke-presented", "--reason", "in a log"];
  expect((await runToEnd(presented, env, `${bob.key}x`)).output).toContain("(KEY_NOT_FOUND)");
  expect(await runToEnd(presented, env, `${bob.key}\n`)).toEqual({
    code: 0,
    output: `The API key lk_${bob.id.slice(0, 8)} of bob was revoked.`,
  });
  expect((await admin("revoke", bob.id)).output).toContain("had ended before: it is revoked");
  expect((await admin("revoke", "--user", "eve\u202e2J")).output).toContain("was revoked");
  expect((await runToEnd(["verify"], env, eve.key)).output).toBe("REVOKED");
  for (const args of [["revoke"], ["revoke", bob.id, "--user", "bob"]]) expect((await admin(...args)).code).toBe(1);
  for (const args of [
    ["list", "--state", "gone"],
    ["audit", "--since", "never"],
  ])
    expect((await admin(...args)).code).toBe(2);

  const [headings, ...trail] = (await admin("audit", "--result", "changed", "--since", "1h")).output.split("\n");
  for (const heading of ["action", "result", "actor", "user"]) {
    const at = headings!.indexOf(heading);
    for (const line of trail) expect(line.slice(at - 1, at + 1)).toMatch(/^ \S/);
  }
  expect(trail.map((line) => line.split(/ +/).slice(1, 4).join(" "))).toEqual([
    "RevokeUser changed admin",
    "RevokeByPresentedKey changed admin",
    "Create changed eve\\u{202e}2J",
    "Create changed bob",
  ]);
  expect((await admin("audit", "--until", "1h")).output).toBe("");
  const member = (await runToEnd(["token", "--user", "bob"], env)).output;
  expect((await admin("list", "--token", member)).output).toContain("(ADMIN_REQUIRED)");
}, 300_000);
