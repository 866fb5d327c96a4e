import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdir, open, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { constants } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { MongoClient } from "mongodb";
import { hasCode } from "../mongo/server-errors.ts";
import { StartupError } from "../observe/startup-error.ts";
import { fullDisk, namingFullDisk, whyFull } from "./disk.ts";
import { findMongod, type MongodSearch, runnable } from "./mongod-binary.ts";

interface MongodOptions extends MongodSearch {
  /** Absolute. Made, for its owner only, when missing. */
  dataDir: string;
  /** Called when mongod ended unasked, with a sentence about it; it is started again. */
  onEnded?: (why: string) => void;
  /** Called when mongod died and could not be brought back. */
  onLost: (error: StartupError) => void;
}

export interface EmbeddedMongod {
  /** Holds the password: never to be logged. */
  readonly uri: string;
  readonly pid: number;
  /** Ends mongod cleanly. Idempotent. */
  stop(): Promise<void>;
}

const REPLICA_SET = "latchkey";
const START_MS = 60_000;
const STOP_MS = 10_000;
const ORPHAN_MS = 10_000;
const MAX_LOG_BYTES = 16 * 1024 * 1024;
const RESTARTS = 5;
/** Exit codes of the shell and the loader when a program, or a library it needs, is gone. */
const NOT_FOUND = 127;
/** The exit code of mongod when another holds the lock on its data (DBPathInUse). */
const DBPATH_IN_USE = 100;

/** The first line that mongod appends to its log, and what the system says of a full disk. */
const RESTARTED = "***** SERVER RESTARTED *****";
const NO_SPACE = "No space left on device";
/** The shell's exit code of a program that a signal ended is this, and the signal's number. */
const SIGNALLED = 128;

// Ends mongod when the service is gone, even by kill -9: the service holds the other end of this shell's standard
// input, and a pipe closes with its last holder. The shell's exit code is mongod's.
const WATCHDOG =
  'exec 3<&0; "$@" </dev/null 3<&- & child=$!; { cat <&3 >/dev/null; kill -TERM $child; } 2>/dev/null & wait $child';

/** Runs a private mongod as a one-member replica set on loopback, with a password of its own: any local user could reach the port. */
export function startMongod(options: MongodOptions): Promise<EmbeddedMongod> {
  return namingFullDisk(options.dataDir, () => start(options));
}

async function start(options: MongodOptions): Promise<EmbeddedMongod> {
  const { dataDir, onEnded = () => {}, onLost } = options;
  await makeDataDir(dataDir);
  const binary = await findMongod(options);
  const password = await ensureKeyFile(dataDir);
  const port = await choosePort(dataDir);
  const uri = uriOf(password, port);

  let { child, pid } = await launch(binary, dataDir, uri, port);
  let stopping = false;

  let recovery: Promise<void> | undefined;
  const watch = () =>
    child.once("exit", (code) => {
      recovery = recover(code);
    });
  const recover = async (code: number | null) => {
    if (!stopping)
      onEnded(
        [`The embedded mongod ${howEnded(code)} and is started again.`, await whyFull(dataDir)]
          .filter(Boolean)
          .join(" "),
      );
    for (let attempt = 1; !stopping && attempt <= RESTARTS; attempt += 1) {
      await sleep(100 * 2 ** attempt);
      if (stopping) return;
      try {
        ({ child, pid } = await launch(binary, dataDir, uri, port));
        if (stopping) await endProcess(child, pid);
        else watch();
        return;
      } catch {
        // The next attempt, or the report below.
      }
    }
    if (!stopping)
      onLost(
        new StartupError(
          `The embedded mongod ended and could not be started again. ${(await whyFull(dataDir)) ?? `See ${logFile(dataDir)}.`}`,
        ),
      );
  };
  watch();

  let stopped: Promise<void> | undefined;
  return {
    uri,
    get pid() {
      return pid;
    },
    stop() {
      stopped ??= (async () => {
        stopping = true;
        await endProcess(child, pid);
        await recovery;
        await rm(ownerFile(dataDir), { force: true });
      })();
      return stopped;
    },
  };
}

/**
 * Where the mongod is that a running service embeds in `dataDir`; undefined when none ever ran there. Holds the password: never
 * to be logged.
 */
export async function embeddedUri(dataDir: string): Promise<string | undefined> {
  try {
    const password = await readFile(keyFile(dataDir), "utf8");
    return uriOf(password, Number(await readFile(portFile(dataDir), "utf8")));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new StartupError(
      `The data directory ${dataDir} can't be read (${(error as Error).message}). Run as the user who owns it.`,
    );
  }
}

function uriOf(password: string, port: number): string {
  return (
    `mongodb://__system:${encodeURIComponent(password)}@127.0.0.1:${port}/` +
    `?authSource=local&authMechanism=SCRAM-SHA-256&replicaSet=${REPLICA_SET}`
  );
}

/** Starts mongod and waits until it takes writes. Where its data is in use, by nobody who lives, what holds it is ended first. */
async function launch(
  binary: string,
  dataDir: string,
  uri: string,
  port: number,
): Promise<{ child: ChildProcess; pid: number }> {
  for (let attempt = 1; ; attempt += 1) {
    const child = await spawnMongod(binary, dataDir, port);
    const early = collect(child);
    try {
      return { child, pid: await becomePrimary(child, dataDir, uri, port) };
    } catch (error) {
      child.stdin?.destroy();
      if (child.exitCode === null) throw error;
      if (child.exitCode === NOT_FOUND) await runnable(binary, `The mongod to run is ${binary}`);
      if (child.exitCode !== DBPATH_IN_USE || attempt > 3)
        throw new StartupError(await whyMongodEnded(dataDir, early()));
    }
    await endOrphan(dataDir);
  }
}

async function spawnMongod(binary: string, dataDir: string, port: number): Promise<ChildProcess> {
  const log = logFile(dataDir);
  if (((await stat(log).catch(() => undefined))?.size ?? 0) > MAX_LOG_BYTES) await rename(log, `${log}.1`);
  const parameters = {
    enableLocalhostAuthBypass: "0",
    diagnosticDataCollectionEnabled: "false",
    // There is nobody to hand over to: don't wait for it.
    shutdownTimeoutMillisForSignaledShutdown: "0",
  };
  const args = [
    ...["--dbpath", join(dataDir, "db"), "--logpath", log, "--logappend"],
    ...["--bind_ip", "127.0.0.1", "--port", String(port), "--nounixsocket"],
    // One member's majority is its own journal: by default a linearizable read waits 100 ms for the next flush.
    ...["--journalCommitInterval", "2"],
    // The line of a slow operation holds what was written: hashes.
    ...["--slowms", "2147483647"],
    ...["--replSet", REPLICA_SET, "--oplogSize", "128", "--wiredTigerCacheSizeGB", "0.25"],
    ...["--auth", "--keyFile", keyFile(dataDir)],
    ...Object.entries(parameters).flatMap(([name, value]) => ["--setParameter", `${name}=${value}`]),
  ];
  // A session of its own: a terminal's Ctrl-C must reach the service, which still needs its database to drain.
  return spawn("/bin/sh", ["-c", WATCHDOG, "latchkey-mongod", binary, ...args], {
    stdio: ["pipe", "pipe", "ignore"],
    detached: true,
  });
}

/** The output of mongod before it has opened its log. */
function collect(child: ChildProcess): () => string {
  let text = "";
  child.stdout?.on("data", (chunk) => {
    text = (text + chunk).slice(-8_192);
  });
  return () => text;
}

/** Initiates the replica set if need be, and returns mongod's pid once it takes writes. */
async function becomePrimary(child: ChildProcess, dataDir: string, uri: string, port: number): Promise<number> {
  const direct = new MongoClient(uri.replace(/replicaSet=\w+/, "directConnection=true"), {
    serverSelectionTimeoutMS: START_MS,
    heartbeatFrequencyMS: 500,
    minHeartbeatFrequencyMS: 20,
  });
  const admin = direct.db("admin");
  const giveUpMs = performance.now() + START_MS;
  const hangUp = () => void direct.close();
  child.once("exit", hangUp);
  try {
    const { pid } = await admin.command({ serverStatus: 1, repl: 0, metrics: 0, locks: 0 });
    // It answers, so it holds the lock on its data: only now is the directory ours.
    await writeFile(ownerFile(dataDir), JSON.stringify({ pid: process.pid, started: await startOf(process.pid) }));
    for (;;) {
      const hello = await admin.command({ hello: 1 });
      if (hello.isWritablePrimary) return Number(pid);
      if (performance.now() > giveUpMs) throw new StartupError(await whyMongodEnded(dataDir));
      if (hello.setName === undefined) await configure(admin, `127.0.0.1:${port}`);
      await sleep(10);
    }
  } finally {
    child.off("exit", hangUp);
    await direct.close();
  }
}

/** A new set is initiated. One that knows itself under another port (it was taken) is given the new one. */
async function configure(admin: ReturnType<MongoClient["db"]>, host: string): Promise<void> {
  const members = [{ _id: 0, host }];
  const settings = { electionTimeoutMillis: 1_000 };
  try {
    await admin.command({ replSetInitiate: { _id: REPLICA_SET, members, settings } });
  } catch (error) {
    if (!hasCode(error, "AlreadyInitialized")) throw error;
    const found = await admin.command({ replSetGetConfig: 1 }).catch(() => undefined);
    if (found === undefined || found.config.members[0].host === host) return;
    await admin.command({
      replSetReconfig: { ...found.config, members, version: found.config.version + 1 },
      force: true,
    });
  }
}

/** `code`: the watchdog's exit code; null: it was killed itself. */
function howEnded(code: number | null): string {
  const name = Object.entries(constants.signals).find(([, number]) => number === (code ?? 0) - SIGNALLED)?.[0];
  if (name === "SIGKILL") return "was killed (SIGKILL; for want of memory, perhaps)";
  return name === undefined ? `ended (exit code ${code ?? "unknown"})` : `ended (${name})`;
}

async function endProcess(child: ChildProcess, pid: number): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  signal(pid, "SIGTERM");
  const timer = setTimeout(() => signal(pid, "SIGKILL"), STOP_MS);
  await exited;
  clearTimeout(timer);
  child.stdin?.destroy();
}

/** Refuses if a living service owns the data directory, or comes to own it; else sees to it that what holds it ends. */
async function endOrphan(dataDir: string): Promise<void> {
  // The lock is the kernel's, so the pid in the lock file is that of a process that runs.
  const holder = Number.parseInt(await readFile(join(dataDir, "db", "mongod.lock"), "utf8").catch(() => ""), 10);
  for (const giveUpMs = performance.now() + ORPHAN_MS; performance.now() < giveUpMs; await sleep(50)) {
    const owner = await liveOwner(dataDir);
    if (owner !== undefined) {
      throw new StartupError(
        `The data directory ${dataDir} is in use by another Latchkey (pid ${owner}). Stop it, or set LATCHKEY_DATA_DIR to another directory.`,
      );
    }
    if (!(holder > 1) || !signal(holder, 0)) return;
  }
  // Its watchdog should have ended it by now: that was killed too.
  signal(holder, "SIGKILL");
  await sleep(200);
}

function signal(pid: number, name: NodeJS.Signals | 0): boolean {
  try {
    return process.kill(pid, name);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** The pid of the service that owns the data directory, if it still runs. */
async function liveOwner(dataDir: string): Promise<number | undefined> {
  // Absent, or being written at this moment: nobody yet.
  const owner: { pid?: number; started?: string } = await readFile(ownerFile(dataDir), "utf8")
    .then(JSON.parse)
    .catch(() => ({}));
  if (owner.pid === undefined || !signal(owner.pid, 0)) return undefined;
  return (await startOf(owner.pid)) === owner.started ? owner.pid : undefined;
}

/** When a process started, in the kernel's count: tells it from a later one with the same pid. Empty where there is no /proc. */
async function startOf(pid: number): Promise<string> {
  const text = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  return text.slice(text.lastIndexOf(")") + 2).split(" ")[19] ?? "";
}

async function makeDataDir(dataDir: string): Promise<void> {
  try {
    await makeDirectory(join(dataDir, "db"));
    const probe = join(dataDir, `.probe-${process.pid}`);
    await writeFile(probe, "");
    await rm(probe);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOSPC") throw error;
    const why = code === "EEXIST" || code === "ENOTDIR" ? "it is not a directory" : `it is not writable: ${code}`;
    throw new StartupError(
      `MONGODB_URI is not set, and an embedded MongoDB can't keep its data in ${dataDir} (${why}). Set MONGODB_URI to a replica set, or LATCHKEY_DATA_DIR to a directory of yours.`,
    );
  }
}

/** With what leads there. Node's own `recursive` tries for ever where the kernel makes no directories, as below /proc. */
async function makeDirectory(path: string): Promise<void> {
  const made = () => mkdir(path, { mode: 0o700 });
  await made()
    .catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOENT" || dirname(path) === path) throw error;
      await makeDirectory(dirname(path));
      await made();
    })
    .catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST" || !(await stat(path)).isDirectory()) throw error;
    });
}

/** The password of mongod's own user `__system`, who may do everything: there is no user to create and no moment without a password. */
async function ensureKeyFile(dataDir: string): Promise<string> {
  const file = keyFile(dataDir);
  await writeFile(file, randomBytes(48).toString("base64"), { mode: 0o600, flag: "wx" }).catch(
    (error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    },
  );
  return readFile(file, "utf8");
}

/** The port of last time where it is free: the replica set then knows itself at once. */
async function choosePort(dataDir: string): Promise<number> {
  const file = portFile(dataDir);
  const last = Number(await readFile(file, "utf8").catch(() => "0"));
  const port = (last > 0 && (await freePort(last))) || (await freePort(0))!;
  await writeFile(file, String(port));
  return port;
}

async function freePort(port: number): Promise<number | undefined> {
  const server = createServer();
  try {
    server.listen({ host: "127.0.0.1", port });
    await once(server, "listening");
    return (server.address() as { port: number }).port;
  } catch {
    return undefined;
  } finally {
    server.close();
  }
}

/** The last thing mongod complained of, from its log. */
async function whyMongodEnded(dataDir: string, early = ""): Promise<string> {
  const file = logFile(dataDir);
  const size = (await stat(file).catch(() => undefined))?.size ?? 0;
  const log = await readFrom(file, Math.max(0, size - 65_536));
  // Its words about an earlier end are no reason of this one.
  const said = `${log.slice(Math.max(0, log.lastIndexOf(RESTARTED)))}\n${early}`;
  const full = said.includes(NO_SPACE) ? fullDisk(dataDir) : await whyFull(dataDir);
  if (full !== undefined) return `The embedded mongod did not start. ${full}`;
  const complaint = said
    .split("\n")
    .filter((line) => /"s":"[FE]"/.test(line))
    .map(complaintOf)
    .filter(Boolean)
    .at(-1);
  return `The embedded mongod did not start${complaint ? `: ${complaint}` : ""}. See ${file}.`;
}

function complaintOf(line: string): string {
  try {
    const { c, msg, attr } = JSON.parse(line) as { c: string; msg: string; attr?: { error?: unknown } };
    // An abort's own words say nothing of its cause, which is in the line before.
    if (c === "ASSERT") return "";
    const { error } = attr ?? {};
    return error === undefined
      ? msg
      : `${msg} (${typeof error === "string" ? error : JSON.stringify(error)})`.slice(0, 300);
  } catch {
    return "";
  }
}

async function readFrom(file: string, offset: number): Promise<string> {
  const handle = await open(file).catch(() => undefined);
  if (handle === undefined) return "";
  try {
    const { size } = await handle.stat();
    const bytes = Buffer.alloc(Math.max(0, size - offset));
    await handle.read(bytes, 0, bytes.length, offset);
    return bytes.toString("utf8");
  } finally {
    await handle.close();
  }
}

function logFile(dataDir: string): string {
  return join(dataDir, "mongod.log");
}

function keyFile(dataDir: string): string {
  return join(dataDir, "mongod.key");
}

function portFile(dataDir: string): string {
  return join(dataDir, "mongod.port");
}

function ownerFile(dataDir: string): string {
  return join(dataDir, "owner.json");
}
