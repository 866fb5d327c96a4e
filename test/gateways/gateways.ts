import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { access, rm } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { readConfig } from "../../src/config.ts";
import { freePort } from "../support/replica-set.ts";

/** As fetch-envoy.sh has it. */
const ENVOY_VERSION = "1.40.0";

export const FOLDER = "deploy/gateways";

/** A gateway that can be run here. */
export interface Gateway {
  /** As the table's columns have it. */
  name: string;
  /** In deploy/gateways/: the configuration, and what it needs beside it. */
  files: [main: string, ...beside: string[]];
  /** Its command line, in the folder of its files. */
  command(binary: string, file: string): string[];
  find(): Promise<string>;
  /** How its files write the timeouts that bound a question to Latchkey, and what tests put there. */
  timeouts: [shipped: RegExp, inTests: string][];
  /** Turns the line on by which the gateway proves itself. */
  withToken(text: string, token: string): string;
  /** Names a second Latchkey. */
  withSecond(text: string): string;
}

export interface Addresses {
  latchkey: number;
  /** A second one, for those that know of it. */
  second?: number;
  upstream: number;
}

export interface RunningGateway {
  readonly pid: number;
  readonly port: number;
  readonly output: () => string;
  stop(): Promise<void>;
}

const uncomment = (text: string, pattern: RegExp): string => {
  const lines = text.split("\n").map((line) => (pattern.test(line) ? line.replace(/# ?/, "") : line));
  const changed = lines.join("\n");
  if (changed === text) throw new Error(`no line is commented as ${pattern}`);
  return changed;
};

const onPath = (name: string) => async () => {
  const { stdout } = await promisify(execFile)("sh", ["-c", `PATH="$PATH:/usr/sbin" command -v ${name}`]).catch(() => {
    throw new Error(`${name} is not installed`);
  });
  return stdout.trim();
};

const envoy = {
  async find() {
    const { cacheDir } = readConfig({ ...process.env, MONGODB_URI: "" });
    const fetched = join(cacheDir, `envoy-${ENVOY_VERSION}-${process.platform}-${process.arch}`, "envoy");
    await access(fetched).catch(() => {
      throw new Error("there is none yet; `npm run gateways` fetches one");
    });
    return fetched;
  },
  command: (binary: string, file: string) => [
    ...[binary, "-c", file, "--log-level", "warning", "--concurrency", "1"],
    ...["--use-dynamic-base-id", "--disable-hot-restart"],
  ],
  timeouts: [[/(timeout|max_interval): 0\.5s/g, "$1: 3s"]] as Gateway["timeouts"],
  withSecond: (text: string) => uncomment(text, /# - endpoint/),
};

export const envoyGrpc: Gateway = {
  ...envoy,
  name: "Envoy, gRPC",
  files: ["envoy-grpc.yaml"],
  withToken: (text, token) => uncomment(text, /# initial_metadata/).replace("SERVICE-TOKEN", token),
};

export const envoyHttp: Gateway = {
  ...envoy,
  name: "Envoy, HTTP",
  files: ["envoy-http.yaml"],
  withToken: (text, token) =>
    uncomment(text, /# (authorization_request| {2}headers_to_add)/).replace("SERVICE-TOKEN", token),
};

export const nginx: Gateway = {
  name: "nginx",
  files: ["nginx.conf"],
  find: onPath("nginx"),
  command: (binary, file) => [
    ...[binary, "-p", ".", "-c", file, "-e", "stderr"],
    ...["-g", "daemon off; pid nginx.pid; error_log stderr warn;"],
  ],
  timeouts: [[/timeout( +)500ms/g, "timeout$13000ms"]],
  withToken: (text, token) =>
    uncomment(text.replace(/.*Gateway-Token '';\n(?=.*# proxy_set)/, ""), /# proxy_set_header X-Latchkey-Gat/).replace(
      "SERVICE-TOKEN",
      token,
    ),
  withSecond: (text) => uncomment(text, /# server 127/),
};

export const caddy: Gateway = {
  name: "Caddy",
  files: ["Caddyfile"],
  find: onPath("caddy"),
  command: (binary, file) => [binary, "run", "--config", file, "--adapter", "caddyfile"],
  timeouts: [[/(timeout|duration) 500ms/g, "$1 3s"]],
  withToken: (text, token) => uncomment(text, /# header_up/).replace("SERVICE-TOKEN", token),
  withSecond: (text) => uncomment(text, /# to 127/),
};

export const haproxy: Gateway = {
  name: "HAProxy",
  files: ["haproxy.cfg", "latchkey.lua"],
  find: onPath("haproxy"),
  command: (binary, file) => [binary, "-db", "-f", file],
  timeouts: [
    [/timeout (connect|server |queue {2}) 500ms/g, "timeout $1 3s"],
    [/TIMEOUT_S = 2/g, "TIMEOUT_S = 10"],
  ],
  withToken: (text, token) =>
    uncomment(text, /# http-request set-var\(txn.latchkey_token/).replace("SERVICE-TOKEN", token),
  withSecond: (text) => uncomment(text, /# server latchkey2/),
};

/** Runs the gateway from its own files: addresses and times are replaced, and what `change` says. */
export async function startGateway(
  gateway: Gateway,
  binary: string,
  { latchkey, second, upstream }: Addresses,
  change: (text: string) => string = (text) => text,
): Promise<RunningGateway> {
  const folder = mkdtempSync(join(tmpdir(), "latchkey-gateway-"));
  const port = await freePort();
  for (const file of gateway.files) {
    let text = readFileSync(join(FOLDER, file), "utf8");
    if (file === gateway.files[0]) text = change(second === undefined ? text : gateway.withSecond(text));
    for (const [shipped, inTests] of gateway.timeouts) text = text.replace(shipped, inTests);
    // The yaml files write the port apart from the address.
    const places: [string, number][] = [
      ["8080", latchkey],
      ["8081", second ?? 1],
      ["9000", upstream],
      ["8000", port],
    ];
    for (const [shipped, used] of places)
      text = text.replace(new RegExp(`(127\\.0\\.0\\.1(?::|, port_value: )|http://:)${shipped}\\b`, "g"), `$1${used}`);
    // HAProxy's name of its inner way is one for the whole machine.
    text = text.replaceAll("abns@latchkey", `abns@latchkey-${port}`);
    writeFileSync(join(folder, file), text);
  }
  const [command, ...args] = gateway.command(binary, gateway.files[0]) as [string, ...string[]];
  const home = { HOME: folder, XDG_CONFIG_HOME: folder, XDG_DATA_HOME: folder };
  const child = spawn(command, args, {
    cwd: folder,
    env: { PATH: process.env.PATH, ...home },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let text = "";
  for (const stream of [child.stdout!, child.stderr!]) {
    stream.on("data", (chunk) => {
      text += chunk;
    });
  }
  await untilAccepting(child, port, () => text);
  return {
    ...{ pid: child.pid!, port },
    output: () => text,
    async stop() {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill("SIGTERM");
        await once(child, "exit");
      }
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function untilAccepting(child: ChildProcess, port: number, output: () => string): Promise<void> {
  for (;;) {
    if (child.exitCode !== null) throw new Error(`the gateway ended: ${output()}`);
    const accepted = await new Promise<boolean>((resolve) => {
      const socket = connect({ host: "127.0.0.1", port });
      socket.once("error", () => resolve(false));
      socket.once("connect", () => {
        socket.destroy();
        resolve(true);
      });
    });
    if (accepted) return;
    await sleep(30);
  }
}
