import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { createLatchkeyClient, describeError, Outcome } from "../../src/client/index.ts";
import { readDevSecrets } from "../../src/embedded/dev-secrets.ts";
import { type EmbeddedMongod, embeddedUri, startMongod } from "../../src/embedded/mongod.ts";
import { findMongod } from "../../src/embedded/mongod-binary.ts";
import type { StartupError } from "../../src/observe/startup-error.ts";
import { readConfig } from "../../src/service/config.ts";
import { runToEnd, stopProcesses } from "../support/process.ts";
import { userToken } from "../support/service.ts";

const { cacheDir, path, mongodBinary } = readConfig({ ...process.env, MONGODB_URI: "" });
const cleanUps: (() => Promise<unknown>)[] = [];
let dataDir: string;
beforeEach(() => {
  dataDir = mkdtempSync(join(tmpdir(), "latchkey embedded "));
  cleanUps.push(() => rm(dataDir, { recursive: true, force: true }));
});
afterEach(async () => {
  await stopProcesses();
  for (let cleanUp = cleanUps.pop(); cleanUp !== undefined; cleanUp = cleanUps.pop()) await cleanUp();
});

async function start(options: Partial<Parameters<typeof startMongod>[0]> = {}): Promise<EmbeddedMongod> {
  const onLost = (error: StartupError) => Promise.reject(error);
  const mongod = await startMongod({
    ...{ dataDir, cacheDir, path, binary: mongodBinary, say: () => {}, onLost },
    ...options,
  });
  cleanUps.push(() => mongod.stop());
  return mongod;
}

const refusal = (options?: Partial<Parameters<typeof startMongod>[0]>) =>
  start(options).then(
    () => Promise.reject(new Error("it started")),
    (error: Error) => {
      expect(error.name).toBe("StartupError");
      return error.message;
    },
  );

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await sleep(20);
}

function lives(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

async function withClient<T>(uri: string, work: (client: MongoClient) => Promise<T>): Promise<T> {
  const client = await MongoClient.connect(uri);
  try {
    return await work(client);
  } finally {
    await client.close();
  }
}
const write = (uri: string, _id: string) =>
  withClient(uri, (client) => client.db("notes").collection<{ _id: string }>("notes").insertOne({ _id }));
const read = (uri: string) =>
  withClient(uri, async (client) => {
    const notes = await client.db("notes").collection<{ _id: string }>("notes").find().toArray();
    return notes.map(({ _id }) => _id);
  });

/** A program in mongod's place that first runs the lines given, and is mongod after them. */
async function wrapped(...lines: string[]): Promise<string> {
  const mongod = await findMongod({ cacheDir, path, binary: mongodBinary, say: () => {} });
  const file = join(dataDir, "wrapped-mongod");
  writeFileSync(file, ["#!/bin/sh", ...lines, `exec '${mongod}' "$@"`, ""].join("\n"));
  chmodSync(file, 0o755);
  return file;
}

/** The service in a process of its own; its mongod's pid is in the lock file. */
async function serve(env: Record<string, string> = {}) {
  const child = spawn(process.execPath, ["dist/src/cli/main.js", "serve"], {
    env: {
      ...{ PATH: process.env.PATH, HOME: process.env.HOME, LATCHKEY_DATA_DIR: dataDir },
      ...{ LATCHKEY_LISTEN: "127.0.0.1:0", LATCHKEY_OPS_LISTEN: "off", ...env },
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const ended = once(child, "exit");
  cleanUps.push(async () => {
    child.kill("SIGKILL");
    await ended;
  });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (chunk) => {
      output += chunk;
    });
  }
  const ready = /"event":"ready","listen":"([^"]+)"/;
  await until(() => {
    if (child.exitCode !== null) throw new Error(`the service ended: ${output}`);
    return ready.test(output);
  });
  return {
    child,
    ended,
    output: () => output,
    url: `http://${ready.exec(output)![1]}`,
    mongodPid: lockHolder(env.LATCHKEY_DATA_DIR),
  };
}

const lockHolder = (of = dataDir) => Number(readFileSync(join(of, "db", "mongod.lock"), "utf8"));

test("mongod killed with -9 is started again under the same address, with its data", async () => {
  const mongod = await start();
  await write(mongod.uri, "before");
  const { pid } = mongod;
  process.kill(pid, "SIGKILL");
  await until(() => mongod.pid !== pid);
  await write(mongod.uri, "after");
  expect(await read(mongod.uri)).toEqual(["before", "after"]);
}, 60_000);

test("the service goes on after its mongod was killed with -9, and loses no key", async () => {
  const service = await serve();
  const secret = readDevSecrets(dataDir)!.jwtSecret;
  const token = await userToken("alice", { secret });
  const client = createLatchkeyClient({ baseUrl: service.url, token });
  const { key } = await client.create({ scopes: ["read"] });
  process.kill(service.mongodPid, "SIGKILL");
  await until(() =>
    client.refresh({}).then(
      () => true,
      (error) => {
        expect(describeError(error).retryAfterMs ?? describeError(error).code).not.toBe("Internal");
        return false;
      },
    ),
  );
  expect((await client.verify({ key })).outcome).toBe(Outcome.REVOKED);
  expect(lockHolder()).not.toBe(service.mongodPid);
}, 60_000);

test("a mongod that was killed is told in one line, and nothing that comes of it with a stack", async () => {
  const service = await serve();
  const answers = async () => {
    const token = await userToken("alice", { secret: readDevSecrets(dataDir)!.jwtSecret });
    return createLatchkeyClient({ baseUrl: service.url, token }).refresh({ scopes: ["read"] });
  };
  process.kill(service.mongodPid, "SIGKILL");
  await until(() => service.output().includes("mongod_ended"));
  await until(() => answers().then(Boolean, () => false));
  expect(service.output().match(/"event":"mongod_ended".*/g)).toEqual([
    expect.stringContaining(
      "The embedded mongod was killed (SIGKILL; for want of memory, perhaps) and is started again.",
    ),
  ]);
  expect(service.output().match(/"event":"watch_interrupted"/g)?.length ?? 0).toBeLessThanOrEqual(1);
  expect(service.output()).not.toMatch(/"stack"|\n\s+at /);
}, 60_000);

/** A disk of its own, of this size, in `dataDir`. Undefined where none can be mounted. */
function smallDisk(mib: number): string | undefined {
  const folder = join(dataDir, "disk");
  mkdirSync(folder);
  const { status } = spawnSync("mount", ["-t", "tmpfs", "-o", `size=${mib}m`, "none", folder]);
  if (status !== 0) return undefined;
  cleanUps.push(async () => spawnSync("umount", ["--lazy", folder]));
  return folder;
}

test("a full disk is named: by the service when its mongod ends of it, by the next start, by a first start, and by doctor", async () => {
  const disk = smallDisk(400);
  if (disk === undefined) {
    process.stderr.write("skipped, a full disk: no file system can be mounted here\n");
    return;
  }
  const data = join(disk, "data");
  const full = `The disk that holds ${data} is full`;
  const service = await serve({ LATCHKEY_DATA_DIR: data });
  spawnSync("dd", ["if=/dev/zero", `of=${join(disk, "filler")}`, "bs=64k"]);
  // What is in memory is written now, and not in a minute.
  const uri = (await embeddedUri(data))!;
  await withClient(uri, (client) => client.db("admin").command({ fsync: 1 })).catch(() => {});
  expect(await service.ended).toEqual([1, null]);
  expect(service.output()).toMatch(new RegExp(`mongod_ended.*is started again\\. ${full}`));
  expect(service.output()).toContain(`latchkey: The embedded mongod ended and could not be started again. ${full}`);
  const told = async (...args: string[]) => (await runToEnd(args, { LATCHKEY_DATA_DIR: data })).output;
  expect(await told("serve")).toContain(full);
  expect(await told("doctor")).toContain(`FAIL  disk: ${full}`);
  const other = join(disk, "other");
  expect((await runToEnd(["serve"], { LATCHKEY_DATA_DIR: other })).output).toContain(
    `The disk that holds ${other} is full`,
  );
}, 180_000);

test("without MONGODB_URI where nothing may be written, as in a container, MONGODB_URI is what is said to be missing", async () => {
  const closed = join(dataDir, "closed");
  mkdirSync(closed, { mode: 0o555 });
  chmodSync(dataDir, 0o755);
  // What root may write to is not closed to it.
  const user = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {};
  const { stderr } = spawnSync(process.execPath, [resolve("dist/src/cli/main.js"), "serve"], {
    env: { LATCHKEY_LISTEN: "127.0.0.1:0", LATCHKEY_OPS_LISTEN: "off", HOME: "/nonexistent" },
    ...{ cwd: closed, encoding: "utf8", ...user },
  });
  expect(stderr).toBe(
    `latchkey: MONGODB_URI is not set, and an embedded MongoDB can't keep its data in ${join(closed, ".latchkey")} (it is not writable: EACCES). Set MONGODB_URI to a replica set, or LATCHKEY_DATA_DIR to a directory of yours.\n`,
  );
});

test("a mongod that can't be started again ends the service with one sentence and exit code 1", async () => {
  const service = await serve({ MONGOD_BINARY: await wrapped(`[ -e '${dataDir}/broken' ] && exit 14`) });
  writeFileSync(join(dataDir, "broken"), "");
  process.kill(service.mongodPid, "SIGKILL");
  expect(await service.ended).toEqual([1, null]);
  expect(service.output()).toContain("latchkey: The embedded mongod ended and could not be started again. See ");
  expect(service.output()).not.toMatch(/\n\s+at /);
}, 60_000);

test("a mongod that can't be started again is reported once, and a stop then has nothing left to do", async () => {
  const lost: StartupError[] = [];
  const binary = await wrapped(`[ -e '${dataDir}/broken' ] && exit 14`);
  const mongod = await start({ binary, onLost: (error) => lost.push(error) });
  writeFileSync(join(dataDir, "broken"), "");
  process.kill(mongod.pid, "SIGKILL");
  await until(() => lost.length > 0);
  expect(lost.map(({ message }) => message)).toEqual([expect.stringContaining("could not be started again")]);
  await mongod.stop();
}, 60_000);

test("a stop while mongod is being started again leaves none behind", async () => {
  const mongod = await start();
  const { pid } = mongod;
  process.kill(pid, "SIGKILL");
  await until(() => lockHolder() > 0 && lockHolder() !== pid);
  const next = lockHolder();
  await mongod.stop();
  expect(lives(next)).toBe(false);
}, 60_000);

test("mongod ends with the service, even when that is killed with -9", async () => {
  const { child, ended, mongodPid } = await serve();
  child.kill("SIGKILL");
  await ended;
  await until(() => !lives(mongodPid));
}, 60_000);

test("a mongod left behind by a service whose watchdog was killed too is ended by the next start", async () => {
  const { child, ended, mongodPid } = await serve();
  const group = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && Number(name) !== mongodPid)
    .filter((name) => groupOf(name) === groupOf(String(mongodPid)));
  expect(group.length).toBeGreaterThan(0);
  child.kill("SIGSTOP");
  for (const pid of group) process.kill(Number(pid), "SIGKILL");
  child.kill("SIGKILL");
  await ended;
  expect(lives(mongodPid)).toBe(true);
  const mongod = await start();
  // Killed, it may still wait to be reaped.
  await until(() => !lives(mongodPid));
  await write(mongod.uri, "it works");
}, 60_000);

/** The process group, which mongod shares with its watchdog alone. */
function groupOf(pid: string): string | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "utf8");
    return text.slice(text.lastIndexOf(")") + 2).split(" ")[2];
  } catch {
    return undefined;
  }
}

test("a data directory that a living process uses is refused, by its pid, and the first goes on", async () => {
  const mongod = await start();
  expect(await refusal()).toMatch(`in use by another Latchkey (pid ${process.pid}). Stop it, or set LATCHKEY_DATA_DIR`);
  await write(mongod.uri, "still here");
}, 60_000);

test("where last time's port is taken, mongod moves to another and its data comes along", async () => {
  const first = await start();
  await write(first.uri, "kept");
  await first.stop();
  const port = Number(readFileSync(join(dataDir, "mongod.port"), "utf8"));
  const blocker = createServer((socket) => socket.destroy()).listen(port, "127.0.0.1");
  await once(blocker, "listening");
  cleanUps.push(async () => blocker.close());
  const second = await start();
  expect(second.uri).not.toBe(first.uri);
  expect(await read(second.uri)).toEqual(["kept"]);
}, 60_000);

test("what is in the data directory is its owner's alone, and mongod asks for its password", async () => {
  const { uri } = await start();
  expect(statSync(join(dataDir, "db")).mode & 0o077).toBe(0);
  expect(statSync(join(dataDir, "mongod.key")).mode & 0o777).toBe(0o600);
  const stranger = uri.replace(/\/\/.*@/, "//").replace(/&authMechanism=[^&]*|authSource=[^&]*/g, "");
  await expect(read(stranger)).rejects.toThrow(/requires authentication/);
}, 60_000);

test("a log that has grown large is set aside at the next start", async () => {
  writeFileSync(join(dataDir, "mongod.log"), "");
  truncateSync(join(dataDir, "mongod.log"), 17 << 20);
  await start();
  expect(statSync(join(dataDir, "mongod.log.1")).size).toBe(17 << 20);
  expect(statSync(join(dataDir, "mongod.log")).size).toBeLessThan(1 << 20);
}, 60_000);

test("a data directory that can't be used is one sentence that says why and what to do", async () => {
  const file = join(dataDir, "file");
  writeFileSync(file, "");
  for (const taken of [file, join(file, "below")]) {
    expect(await refusal({ dataDir: taken })).toBe(
      `MONGODB_URI is not set, and an embedded MongoDB can't keep its data in ${taken} (it is not a directory). Set MONGODB_URI to a replica set, or LATCHKEY_DATA_DIR to a directory of yours.`,
    );
  }
  expect(await refusal({ dataDir: join(dataDir, "x".repeat(300)) })).toContain("it is not writable: ENAMETOOLONG");
});

test("data that mongod can't read is told in mongod's own words, with the place of its log", async () => {
  mkdirSync(join(dataDir, "db"));
  writeFileSync(join(dataDir, "db", "storage.bson"), "garbage");
  expect(await refusal()).toMatch(
    /^The embedded mongod did not start: Unable to read the storage engine metadata file \(.*InvalidBSON.*\)\. See .*mongod\.log\.$/,
  );
}, 60_000);

test("a mongod that ends without a word still gives one sentence", async () => {
  const binary = await wrapped('[ "$1" = --version ] || exit 3');
  expect(await refusal({ binary })).toBe(`The embedded mongod did not start. See ${join(dataDir, "mongod.log")}.`);
});

test("a library that went away after the binary was verified is named at the next start", async () => {
  const gone =
    "echo 'error while loading shared libraries: libcurl.so.4: cannot open shared object file' >&2; exit 127";
  const binary = await wrapped(`[ "$1" = --version ] && mkdir '${dataDir}/seen' 2>/dev/null && exit 0`, gone);
  expect(await refusal({ binary })).toMatch(/needs libcurl\.so\.4.*apt-get install libcurl4/);
  expect(existsSync(join(dataDir, "seen"))).toBe(true);
});
