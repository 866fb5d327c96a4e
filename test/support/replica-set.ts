import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { connect as connectTcp, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { MongoClient } from "mongodb";
import { findMongod } from "../../src/embedded/mongod-binary.ts";
import { readConfig } from "../../src/service/config.ts";
import { startTcpProxy, type TcpProxy, type Weather } from "./tcp-proxy.ts";

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

/** Processes and their data, all gone after `stop`. */
export interface Mongods {
  /** Resolves when it accepts connections: on a busy machine that takes longer than a client waits. */
  run(port: number, ...args: string[]): Promise<ChildProcess>;
  /** The last one that was begun on each port, be it ready or not. */
  readonly begun: ReadonlyMap<number, ChildProcess>;
  stop(): Promise<void>;
}

export function createMongods(): Mongods {
  const root = mkdtempSync(join(tmpdir(), "latchkey members "));
  const processes: ChildProcess[] = [];
  const begun = new Map<number, ChildProcess>();
  return {
    begun,
    async run(port, ...args) {
      const { cacheDir, path, mongodBinary: binary } = readConfig({ ...process.env, MONGODB_URI: "" });
      const dbpath = join(root, String(port));
      await mkdir(dbpath, { recursive: true });
      const mongod = await findMongod({ cacheDir, path, binary, say: () => {} });
      const place = ["--dbpath", dbpath, "--port", String(port), "--bind_ip", "127.0.0.1", "--nounixsocket"];
      const child = spawn(mongod, [...place, "--wiredTigerCacheSizeGB", "0.25", ...args], { stdio: "ignore" });
      processes.push(child);
      begun.set(port, child);
      while (!(await accepts(port))) {
        if (child.exitCode !== null) throw new Error(`mongod exited with ${child.exitCode}`);
        await sleep(50);
      }
      return child;
    },
    async stop() {
      for (const child of processes) {
        if (child.exitCode === null && child.signalCode === null) {
          child.kill("SIGKILL");
          await once(child, "exit");
        }
      }
      await rm(root, { recursive: true, force: true });
    },
  };
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connectTcp({ host: "127.0.0.1", port });
    socket.once("error", () => resolve(false));
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
  });
}

export interface Member {
  readonly name: string;
  /** Another one after `revive`. */
  readonly process: ChildProcess;
  /** What stands before it: all who go by the set's address, other members too, go through it. */
  readonly proxy: TcpProxy;
  /** Past the proxy, to this member alone. */
  readonly directUri: string;
}

export interface ReplicaSet {
  /** Through the proxies. */
  readonly uri: string;
  readonly members: readonly Member[];
  /** The member that a majority takes for the primary; waits until there is one, other than `not`. */
  primary(not?: Member): Promise<Member>;
  /** The weather between a member and all others, in both directions. Callers of the set are not concerned. */
  between(member: Member, others: readonly Member[], weather: Weather): void;
  /** The weather between whoever is no member and no named process (the test's own process) and a member. */
  toClients(member: Member, weather: Weather): void;
  /** Gives a process, from its next connections on, a weather of its own, for `toProcess`. */
  nameProcess(name: string, pid: number): void;
  toProcess(name: string, member: Member, weather: Weather): void;
  /** Starts a member that was killed again, on its data. */
  revive(member: Member): Promise<void>;
  /** Makes the primary a secondary that stands for no election for 10 s. */
  stepDown(member: Member): Promise<void>;
  /** Fair weather everywhere, and all members that live in touch. */
  heal(): Promise<void>;
  stop(): Promise<void>;
}

const CLIENTS = "clients";

/**
 * Members whose addresses, to each other and to clients, are proxies; their own ports are known to nobody else. Who
 * connects is told by the process that has the other end of the connection, so that each pair has a weather of its own.
 */
export async function startReplicaSet(options: { size?: number; oplogMb?: number } = {}): Promise<ReplicaSet> {
  const mongods = createMongods();
  const proxies: TcpProxy[] = [];
  const stop = async () => {
    await mongods.stop();
    await Promise.all(proxies.map((proxy) => proxy.close()));
  };
  try {
    return await startMembers(mongods, proxies, stop, options);
  } catch (error) {
    await stop();
    throw error;
  }
}

/** No fault of the tests lasts as long; what does is a fault of theirs, and must not go on for ever. */
const MAX_WAIT_MS = 300_000;

/** Asks again and again until there is an answer, or too long has passed: then `what` says what for. */
async function until<T>(what: string, ask: () => Promise<T | undefined>): Promise<T> {
  const giveUpMs = performance.now() + MAX_WAIT_MS;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    if (performance.now() > giveUpMs) throw new Error(`${what} was waited for in vain, for ${MAX_WAIT_MS / 1_000} s`);
    await sleep(100);
  }
}

async function startMembers(
  mongods: Mongods,
  proxies: TcpProxy[],
  stop: () => Promise<void>,
  { size = 3, oplogMb = 64 }: { size?: number; oplogMb?: number },
): Promise<ReplicaSet> {
  const members: { -readonly [Field in keyof Member]: Member[Field] }[] = [];
  const ports = new Map<string, number>();
  const named = new Map<string, number>();
  const peerOf = (port: number, proxyPort: number) => {
    const inode = inodeOf(port, proxyPort);
    if (inode === undefined) return undefined;
    // A member that is revived connects to the others before it accepts connections.
    const pids = [...ports].map(([name, own]) => [name, mongods.begun.get(own)?.pid] as const);
    const processes = [...pids, ...named, [CLIENTS, process.pid] as const];
    return processes.find(([, pid]) => pid !== undefined && hasSocket(pid, inode))?.[0];
  };
  const common = [
    ...["--replSet", "faults", "--setParameter", "oplogNetworkTimeoutBufferSeconds=1"],
    ...["--setParameter", "enableTestCommands=1", "--oplogSize", String(oplogMb), "--syncdelay", "1"],
  ];
  await Promise.all(
    Array.from({ length: size }, async (_, index) => {
      const port = await freePort();
      const proxy = await startTcpProxy({ to: port, peerOf, others: CLIENTS });
      proxies.push(proxy);
      const name = `member ${index}`;
      ports.set(name, port);
      const process = await mongods.run(port, ...common);
      const directUri = `mongodb://127.0.0.1:${port}/?directConnection=true`;
      members.push({ name, process, proxy, directUri });
    }),
  );
  const hosts = members.map(({ proxy }) => `127.0.0.1:${proxy.port}`);

  const ask = async (member: Member, command: object) => {
    const limits = { serverSelectionTimeoutMS: 1_000, connectTimeoutMS: 1_000, socketTimeoutMS: 2_000 };
    const client = new MongoClient(member.directUri, limits);
    try {
      return await client.db("admin").command(command);
    } finally {
      await client.close();
    }
  };
  const states = async () => {
    const answers = await Promise.all(
      members.map((member) => ask(member, { replSetGetStatus: 1 }).catch(() => undefined)),
    );
    return answers.map((answer) => answer?.members as { stateStr: string; name: string; self?: boolean }[] | undefined);
  };

  await ask(members[0]!, {
    replSetInitiate: {
      _id: "faults",
      members: hosts.map((host, index) => ({ _id: index, host })),
      // For 30 s after their sync source vanished, members tell of what they have by heartbeat only: that is how long a
      // majority write then takes.
      settings: { electionTimeoutMillis: 2_000, heartbeatIntervalMillis: 50, catchUpTimeoutMillis: 1_000 },
    },
  });

  const set: ReplicaSet = {
    uri: `mongodb://${hosts.join(",")}/?replicaSet=faults`,
    members,
    primary: (not) =>
      until("a primary of a majority", async () => {
        const seen = await states();
        for (const [index, member] of members.entries()) {
          const votes = seen.filter((answer) => answer?.[index]?.stateStr === "PRIMARY").length;
          if (member === not || votes <= size / 2) continue;
          // Elected is not yet writable: it first applies what it had received.
          const hello = await ask(member, { hello: 1 }).catch(() => undefined);
          if (hello?.isWritablePrimary) return member;
        }
        return undefined;
      }),
    between(member, others, weather) {
      for (const other of others) {
        other.proxy.set(weather, member.name);
        member.proxy.set(weather, other.name);
      }
    },
    toClients: (member, weather) => member.proxy.set(weather, CLIENTS),
    nameProcess: (name, pid) => void named.set(name, pid),
    toProcess: (name, member, weather) => member.proxy.set(weather, name),
    async revive(member) {
      const dead = members.find(({ name }) => name === member.name)!;
      dead.process = await mongods.run(ports.get(member.name)!, ...common);
    },
    async stepDown(member) {
      await ask(member, { replSetStepDown: 10, secondaryCatchUpPeriodSecs: 5 });
    },
    async heal() {
      for (const { proxy } of members) proxy.set({});
      await until("a set whose members are all in touch", async () => {
        const seen = await states();
        const alive = members.flatMap(({ process }, index) => (process.signalCode === null ? [index] : []));
        const healthy = alive.every((from) =>
          alive.every((to) => ["PRIMARY", "SECONDARY"].includes(seen[from]?.[to]?.stateStr ?? "")),
        );
        return healthy || undefined;
      });
    },
    stop,
  };
  await set.heal();
  await set.primary();
  return set;
}

/**
 * The inode of the socket at the connecting end of a connection on 127.0.0.1. Its own port alone does not tell: several
 * connections may share it, if they go to different ports.
 */
function inodeOf(port: number, to: number): string | undefined {
  const hex = (number: number) => `0100007F:${number.toString(16).toUpperCase().padStart(4, "0")}`;
  const [local, remote] = [hex(port), hex(to)];
  for (const line of readFileSync("/proc/net/tcp", "utf8").split("\n")) {
    const fields = line.trim().split(/\s+/);
    if (fields[1] === local && fields[2] === remote) return fields[9];
  }
  return undefined;
}

function hasSocket(pid: number, inode: string): boolean {
  try {
    return readdirSync(`/proc/${pid}/fd`).some((fd) => {
      try {
        return readlinkSync(`/proc/${pid}/fd/${fd}`) === `socket:[${inode}]`;
      } catch {
        return false;
      }
    });
  } catch {
    return false;
  }
}
