import { type ChildProcess, execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { access, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { readConfig } from "../../src/service/config.ts";
import { freePort } from "../support/replica-set.ts";
import { send } from "./client.ts";

export const FOLDER = "deploy/gateways";

/** A gateway that can be run here. */
export interface Gateway {
  /** As the table's columns have it. */
  name: string;
  /** In deploy/gateways/: where what tests change stands, what is needed beside it, and what it is built of. */
  files: [main: string, ...beside: string[]];
  built?: string[];
  /** Its command line, in the folder of its files. */
  command(binary: string, file: string): string[];
  /** The release that every run of the tests asks through. */
  find(): Promise<string>;
  /** What prints its release, and where it stands in that. */
  version: [args: string[], pattern: RegExp];
  /** How its files write the timeouts that bound a question to Latchkey, and what tests put there on a machine that is busy. */
  timeouts: [shipped: RegExp, inTests: string][];
  /** Turns the line on by which the gateway proves itself. */
  withToken(text: string, token: string): string;
  /** Names a second Latchkey, where it can. */
  withSecond?(text: string): string;
}

export interface Addresses {
  /** With the timeouts that its files have, not those that tests put there. */
  asShipped?: boolean;
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
  const lines = text.split("\n").map((line) => (pattern.test(line) ? line.replace(/(?:#|--) ?/, "") : line));
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

/** What fetch.sh has fetched. */
const fetched = (name: string, version: string) => async () => {
  const { cacheDir } = readConfig({ ...process.env, MONGODB_URI: "" });
  const binary = join(cacheDir, `${name}-${version}-${process.platform}-${process.arch}`, name);
  await access(binary).catch(() => {
    throw new Error("there is none yet; `npm run gateways` fetches one");
  });
  return binary;
};

const envoy = {
  find: fetched("envoy", "1.40.0"),
  version: [["--version"], /\/([\d.]+)\//] as Gateway["version"],
  command: (binary: string, file: string) => [
    ...[binary, "-c", file, "--log-level", "warning", "--concurrency", "1"],
    ...["--use-dynamic-base-id", "--disable-hot-restart"],
  ],
  timeouts: [[/(timeout|max_interval): 0\.5s/g, "$1: 20s"]] as Gateway["timeouts"],
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
  version: [["-v"], /nginx\/([\d.]+)/],
  command: (binary, file) => [
    ...[binary, "-p", ".", "-c", file, "-e", "stderr"],
    ...["-g", "daemon off; pid nginx.pid; error_log stderr warn;"],
  ],
  timeouts: [[/timeout( +)500ms/g, "timeout$120s"]],
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
  version: [["version"], /([\d.]+)/],
  command: (binary, file) => [binary, "run", "--config", file, "--adapter", "caddyfile"],
  timeouts: [[/(timeout|duration) 500ms/g, "$1 20s"]],
  withToken: (text, token) => uncomment(text, /# header_up/).replace("SERVICE-TOKEN", token),
  withSecond: (text) => uncomment(text, /# to 127/),
};

export const haproxy: Gateway = {
  name: "HAProxy",
  files: ["haproxy.cfg", "latchkey.lua"],
  find: onPath("haproxy"),
  version: [["-v"], /version ([\d.]+)/],
  command: (binary, file) => [binary, "-db", "-f", file],
  timeouts: [
    [/timeout (connect|server |queue {2}) 500ms/g, "timeout $1 20s"],
    [/TIMEOUT_S = 2/g, "TIMEOUT_S = 60"],
  ],
  withToken: (text, token) =>
    uncomment(text, /# http-request set-var\(txn.latchkey_token/).replace("SERVICE-TOKEN", token),
  withSecond: (text) => uncomment(text, /# server latchkey2/),
};

export const traefik: Gateway = {
  name: "Traefik",
  files: ["traefik-dynamic.yaml", "traefik.yaml"],
  find: fetched("traefik", "3.7.15"),
  version: [["version"], /Version: +([\d.]+)/],
  command: (binary) => [binary, "--configFile=traefik.yaml"],
  // It has none but its own of 30 s.
  timeouts: [],
  withToken: (text, token) => text.replace('X-Latchkey-Gateway-Token: ""', `X-Latchkey-Gateway-Token: ${token}`),
};

export const apache: Gateway = {
  name: "Apache httpd",
  files: ["apache/latchkey.lua", "apache/httpd.conf"],
  find: onPath("apache2"),
  version: [["-v"], /Apache\/([\d.]+)/],
  command: (binary) => [
    ...[binary, "-d", ".", "-f", "httpd.conf", "-DFOREGROUND"],
    ...(process.getuid?.() === 0 ? ["-c", "User www-data", "-c", "Group www-data"] : []),
  ],
  timeouts: [[/TIMEOUT_S = 0\.5/g, "TIMEOUT_S = 20"]],
  withToken: (text, token) => uncomment(text, /-- TOKEN = /).replace("SERVICE-TOKEN", token),
  withSecond: (text) => uncomment(text, /-- "127/),
};

export const springCloudGateway: Gateway = {
  name: "Spring Cloud Gateway",
  files: ["spring-cloud-gateway/src/main/resources/application.yaml"],
  built: [
    "spring-cloud-gateway/pom.xml",
    ...["Gateway", "LatchkeyFilter", "LatchkeyProperties"].map(
      (name) => `spring-cloud-gateway/src/main/java/gateway/${name}.java`,
    ),
  ],
  async find() {
    throw new Error("it is built and asked through by `npm run matrix`");
  },
  version: [["version"], /([\d.]+)/],
  command: (binary) => [binary],
  timeouts: [[/timeout: 500ms/g, "timeout: 20s"]],
  withToken: (text, token) => uncomment(text, /# gateway-token/).replace("SERVICE-TOKEN", token),
  withSecond: (text) => uncomment(text, /# - http/),
};

export const GATEWAYS = [envoyGrpc, envoyHttp, nginx, caddy, haproxy, traefik, apache, springCloudGateway];

/** Where the gateway is that is asked through: of the release that GATEWAY_BINARY names, or the usual one. */
export async function findGateway(gateway: Gateway): Promise<string> {
  return process.env.GATEWAY_BINARY ?? gateway.find();
}

export async function versionOf({ version: [args, pattern] }: Gateway, binary: string): Promise<string> {
  const { stdout, stderr } = await promisify(execFile)(binary, args);
  return pattern.exec(stdout + stderr)![1]!;
}

/** Changes whenever one of its files does. */
export function digestOf({ files, built = [] }: Gateway): string {
  const hash = createHash("sha256");
  for (const file of [...files, ...built]) hash.update(readFileSync(join(FOLDER, file)));
  return hash.digest("hex").slice(0, 8);
}

/** Runs the gateway from its own files: addresses and times are replaced, and what `change` says. */
export async function startGateway(
  gateway: Gateway,
  binary: string,
  { latchkey, second, upstream, asShipped = false }: Addresses,
  change: (text: string) => string = (text) => text,
): Promise<RunningGateway> {
  const folder = mkdtempSync(join(tmpdir(), "latchkey-gateway-"));
  const port = await freePort();
  for (const file of gateway.files) {
    let text = readFileSync(join(FOLDER, file), "utf8");
    if (file === gateway.files[0]) text = change(second === undefined ? text : gateway.withSecond!(text));
    for (const [shipped, inTests] of asShipped ? [] : gateway.timeouts) text = text.replace(shipped, inTests);
    // The yaml files write the port apart from the address.
    const places: [string, number][] = [
      ["8080", latchkey],
      ["8081", second ?? 1],
      ["9000", upstream],
      ["8000", port],
    ];
    for (const [shipped, used] of places)
      text = text.replace(
        new RegExp(`(127\\.0\\.0\\.1(?::|, port_value: )|http://:|^  port: )${shipped}\\b`, "gm"),
        `$1${used}`,
      );
    // HAProxy's name of its inner way is one for the whole machine.
    text = text.replaceAll("abns@latchkey", `abns@latchkey-${port}`);
    writeFileSync(join(folder, basename(file)), text);
  }
  // Some give up root's rights before they read them.
  chmodSync(folder, 0o755);
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
  await untilServing(child, port, () => text);
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

/** Traefik answers 404 until it has read its routes. */
async function untilServing(child: ChildProcess, port: number, output: () => string): Promise<void> {
  for (;;) {
    if (child.exitCode !== null) throw new Error(`the gateway ended: ${output()}`);
    const answer = await send(port, {}).catch(() => undefined);
    if (answer !== undefined && answer.status !== 404) return;
    await sleep(30);
  }
}
