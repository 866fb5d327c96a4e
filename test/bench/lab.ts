import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { AddressInfo } from "node:net";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { MongoClient } from "mongodb";
import { type EmbeddedMongod, startMongod } from "../../src/embedded/mongod.ts";
import { readConfig } from "../../src/service/config.ts";
import { VARIABLES } from "../../src/service/settings.ts";
import { userToken } from "../support/service.ts";
import { buildManyKeysLoad, canRun } from "./loads.ts";
import { LOAD_CORE, moveToCore, SERVER_CORE } from "./machine.ts";
import type { Build, Options } from "./options.ts";
import { type ServerProcess, startServerProcess } from "./processes.ts";
import { storeKeys } from "./records.ts";

/** What the figures share: a database, keys in it, and how to start what is measured. */
export interface Lab {
  options: Options;
  say(line: string): void;
  /** For files of the run; removed at its end. */
  dir: string;
  client: MongoClient;
  /** A file that holds MongoDB's URI. */
  uriFile: string;
  database: string;
  /** Good keys of `database`. */
  keys: string[];
  /** The load generator for many keys; undefined where there is no Go. */
  manyKeys: string | undefined;
  storeKeys(database: string, count: number, keep?: number): Promise<string[]>;
  /** Starts a service. Settings that this build does not have are left out, with a word about it. */
  startService(env?: Record<string, string>, nodeArgs?: string[], build?: Build): Promise<ServerProcess>;
  /** Starts one of the benchmark's own programs on the servers' core, with `options` as its JSON argument. */
  startProgram(path: string, options: object): Promise<ServerProcess>;
  adminToken(): Promise<string>;
  /** Starts nghttpd, a server in C, which gives this answer to every call of `path`. Undefined where there is none. */
  startNghttpd(path: string, body: Uint8Array): Promise<ServerProcess | undefined>;
  /** Ends the services and responders of a figure. */
  stopServers(): Promise<void>;
  stop(): Promise<void>;
}

/** Holds for the service and what was compiled beside it. */
const ROOT = new URL("../../../", import.meta.url);
export const SERVICE_TOKEN = randomBytes(24).toString("base64url");
/** As many keys as cold calls go round. */
const KEYS = 20_000;

export async function openLab(options: Options, say: (line: string) => void): Promise<Lab> {
  const dir = mkdtempSync(join(tmpdir(), "latchkey-bench-"));
  const cleanUps: (() => Promise<unknown> | unknown)[] = [() => rmSync(dir, { recursive: true, force: true })];
  const stop = async () => {
    for (let cleanUp = cleanUps.pop(); cleanUp !== undefined; cleanUp = cleanUps.pop()) await cleanUp();
  };
  try {
    const mongod = await startDatabase(dir, say);
    cleanUps.push(() => mongod.stop());
    const client = await new MongoClient(mongod.uri).connect();
    cleanUps.push(() => client.close());
    const uriFile = join(dir, "uri");
    writeFileSync(uriFile, mongod.uri, { mode: 0o600 });

    const pepper = { id: "p1", secret: randomBytes(32) };
    const jwtSecret = randomBytes(48).toString("base64");
    const database = "bench";
    const keys = await storeKeys({ client, database, count: KEYS, pepper });

    const servers: ServerProcess[] = [];
    const stopServers = async () => {
      await Promise.all(servers.splice(0).map((server) => server.stop()));
    };
    cleanUps.push(stopServers);
    const tracked = (server: ServerProcess) => {
      servers.push(server);
      return server;
    };
    const told = new Set<string>();
    return {
      ...{ options, say, dir, client, uriFile, database, keys, stopServers, stop },
      manyKeys: buildManyKeysLoad(fileURLToPath(new URL("test/bench/load", ROOT)), dir),
      async storeKeys(name, count, keep = count) {
        // Nothing is measured meanwhile: two cores halve the wait.
        moveToCore(mongod.pid, SERVER_CORE);
        const kept = await storeKeys({ client, database: name, count, pepper, keep });
        moveToCore(mongod.pid, LOAD_CORE);
        return kept;
      },
      async startService(env = {}, nodeArgs = [], build) {
        const settings = {
          ...{ MONGODB_URI: mongod.uri, MONGODB_DATABASE: database, LATCHKEY_JWT_SECRET: jwtSecret },
          ...{ LATCHKEY_PEPPERS: `${pepper.id}:${pepper.secret.toString("base64")}` },
          ...{ LATCHKEY_LISTEN: "127.0.0.1:0", LATCHKEY_OPS_LISTEN: "127.0.0.1:0" },
          // As `npm start` and the Dockerfile set them.
          ...{ MALLOC_ARENA_MAX: "1", MALLOC_TRIM_THRESHOLD_: "131072" },
          ...known(env, (name) => {
            if (!told.has(name)) say(`  this build has no ${name} yet: left out`);
            told.add(name);
          }),
        };
        const root = build === undefined ? fileURLToPath(ROOT) : resolve(build.dir);
        const { bin } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { bin: { latchkey: string } };
        const program = join(root, bin.latchkey);
        const args = [...nodeArgs, program, "serve"];
        return tracked(await startServerProcess(args, { ...ownEnvironment(), ...settings }, build?.node));
      },
      async startProgram(path, options) {
        return tracked(await startServerProcess([compiled(path), JSON.stringify(options)], ownEnvironment()));
      },
      async startNghttpd(path, body) {
        if (!canRun("nghttpd", ["--version"])) return undefined;
        const root = mkdtempSync(join(dir, "nghttpd-"));
        mkdirSync(join(root, dirname(path)), { recursive: true });
        writeFileSync(join(root, path), body);
        const port = await freePort();
        const ready = JSON.stringify({ event: "ready", listen: `127.0.0.1:${port}` });
        // The shell becomes nghttpd: the pid stays. It says nothing itself.
        const script = `echo '${ready}'; exec nghttpd --no-tls --address=127.0.0.1 --htdocs="$1" --trailer="grpc-status: 0" ${port}`;
        const server = tracked(await startServerProcess(["-c", script, "sh", root], ownEnvironment(), "/bin/sh"));
        await untilAccepted(port);
        return server;
      },
      adminToken: () => userToken("bench", { admin: true, secret: jwtSecret, ttlS: 86_400 }),
    };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** A program of the benchmark, as compiled. */
export function compiled(path: string): string {
  return fileURLToPath(new URL(path, import.meta.url));
}

export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

async function untilAccepted(port: number): Promise<void> {
  const accepted = () =>
    new Promise<boolean>((resolve) => {
      const socket = connect(port, "127.0.0.1");
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false));
      socket.once("connect", () => socket.destroy());
    });
  while (!(await accepted())) await sleep(20);
}

async function startDatabase(dir: string, say: (line: string) => void): Promise<EmbeddedMongod> {
  const { cacheDir, path, mongodBinary: binary } = readConfig({ ...process.env, MONGODB_URI: "" });
  return startMongod({
    ...{ dataDir: join(dir, "data"), cacheDir, path, binary, say },
    onLost: (error) => {
      throw error;
    },
  });
}

function known(env: Record<string, string>, onUnknown: (name: string) => void): Record<string, string> {
  return Object.fromEntries(
    Object.entries(env).filter(([name]) => {
      if (name in VARIABLES) return true;
      onUnknown(name);
      return false;
    }),
  );
}

/** Without what configures a service of the person who runs the benchmark. */
function ownEnvironment(): Record<string, string | undefined> {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(LATCHKEY|MONGODB)_/.test(name)));
}
