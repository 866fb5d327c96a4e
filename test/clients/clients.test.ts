import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterEach, describe, expect, test } from "@jest/globals";
import { createLatchkeyClient } from "../../src/client/index.ts";
import { createCa } from "../support/certificates.ts";
import { endAfterTest, newDirectory, type ServiceProcess, serve, stopProcesses } from "../support/process.ts";
import { freePort } from "../support/replica-set.ts";
import { JWT_SECRET, PEPPER, SERVICE_TOKEN, sha256, userToken } from "../support/service.ts";
import { CLIENTS, type Client, type Program, programsHash } from "./clients.ts";

afterEach(stopProcesses);

type Seen = Record<string, unknown>;

interface Place {
  address: string;
  /** The authority's certificate: its file, and what it holds. */
  ca?: { file: string; pem: string };
  start(): Promise<ServiceProcess>;
}

async function placeOf(isTls: boolean): Promise<Place> {
  const address = `127.0.0.1:${await freePort()}`;
  const env: Record<string, string> = {
    ...{ MONGODB_URI: process.env.TEST_MONGODB_URI!, MONGODB_DATABASE: `test-${randomUUID()}` },
    ...{ LATCHKEY_JWT_SECRET: JWT_SECRET, LATCHKEY_PEPPERS: `p1:${PEPPER}`, LATCHKEY_LISTEN: address },
    ...{ LATCHKEY_VERIFY_AUTH: "token", LATCHKEY_SERVICE_TOKENS: `clients:sha256:${sha256(SERVICE_TOKEN)}` },
    // Of a process that has just started, the first reads of a busy machine take long.
    LATCHKEY_READ_TIMEOUT: "1m",
  };
  if (!isTls) return { address, start: () => serve(env) };
  const directory = newDirectory();
  const ca = createCa();
  const { cert, key } = ca.issue({ cn: "latchkey", dns: ["localhost"], ips: ["127.0.0.1"], usage: "server" });
  const write = (name: string, text: string) => {
    writeFileSync(join(directory, name), text);
    return join(directory, name);
  };
  env.LATCHKEY_TLS_CERT_FILE = write("cert.pem", cert);
  env.LATCHKEY_TLS_KEY_FILE = write("key.pem", key);
  return { address, ca: { file: write("ca.pem", ca.cert), pem: ca.cert }, start: () => serve(env) };
}

/** Runs a client's program through everything that README.md lists; the service is stopped and started again under its load. */
async function seenBy(program: Program, isTls: boolean): Promise<Seen> {
  const place = await placeOf(isTls);
  let service = await place.start();
  const token = await userToken("alice");
  const { key } = await createLatchkeyClient({
    ...{ baseUrl: `${isTls ? "https" : "http"}://${place.address}`, token, timeoutMs: 60_000 },
    tls: place.ca && { ca: place.ca.pem },
  }).create({ scopes: ["read"] });

  const [command, ...args] = [...program.command, place.address, place.ca?.file ?? "-", key, SERVICE_TOKEN, token];
  const child: ChildProcess = spawn(command!, args, {
    env: { ...process.env, NODE_OPTIONS: "", ...program.env },
    stdio: ["pipe", "pipe", "pipe"],
  });
  endAfterTest(child);
  let errors = "";
  child.stderr!.on("data", (chunk) => {
    errors += chunk;
  });
  const seen: Seen = {};
  for await (const line of createInterface({ input: child.stdout! })) {
    Object.assign(seen, JSON.parse(line));
    if (!("loaded" in seen)) continue;
    delete seen.loaded;
    const ended = once(service.child, "close");
    service.child.kill("SIGTERM");
    expect(await ended).toEqual([0, null]);
    service = await place.start();
    child.stdin!.write("\n");
  }
  if (child.exitCode === null) await once(child, "exit");
  if (child.exitCode !== 0) throw new Error(`the program ended with ${child.exitCode}: ${errors}`);
  return seen;
}

const ROWS = {
  verify: "1",
  deadline: "DEADLINE_EXCEEDED",
  details: "INVALID_ARGUMENT INVALID_ARGUMENT",
  stream: "1 1 1",
  cancellation: "CANCELLED",
};

const isAll = process.env.CLIENT_RESULTS !== undefined;

function testsOf(client: Client, found: Program | Error): void {
  if (found instanceof Error) {
    process.stderr.write(`SKIPPED: ${client.name} is not run: ${found.message}\n`);
    test.skip(`${client.name} can't be had here`, () => {});
    return;
  }
  test.each([
    ["cleartext", false],
    ["TLS", true],
  ])("%s: each kind of call, and a restart under load that no call is lost by", async (wire, isTls) => {
    const { answered, refused, failed, ...rows } = await seenBy(found, isTls);
    record(client, { wire, version: found.version, ...rows, answered, refused, failed });
    const { stream, ...overHttp1 } = ROWS;
    expect(rows).toEqual(client.name.endsWith("HTTP/1.1") ? overHttp1 : { ...overHttp1, stream });
    expect(answered).toBeGreaterThanOrEqual(600);
    expect(failed).toEqual({});
  });
}

/** Leaves what was seen where `npm run clients` makes its table of it. */
function record(client: Client, seen: Seen): void {
  const folder = process.env.CLIENT_RESULTS;
  if (folder === undefined) return;
  mkdirSync(folder, { recursive: true });
  writeFileSync(
    join(folder, `${CLIENTS.indexOf(client)} ${seen.wire}.json`),
    JSON.stringify({ name: client.name, programs: programsHash(), ...seen }),
  );
}

for (const client of CLIENTS.filter(({ inCi }) => inCi || isAll)) {
  const found = await client.find().catch((error: Error) => error);
  describe(client.name, () => testsOf(client, found));
}
