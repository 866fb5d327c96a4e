import { execFile } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { readConfig } from "../../src/service/config.ts";
import { pythonPackages } from "../support/python-client.ts";
import { sha256 } from "../support/service.ts";

const run = promisify(execFile);

export const FOLDER = "test/clients";

/** A program that README.md beside this file describes. */
export interface Client {
  name: string;
  /** Built in CI, too. */
  inCi: boolean;
  /** What starts it, and the library's version; or an Error that says why it can't be had. */
  find(): Promise<Program>;
}

export interface Program {
  version: string;
  command: string[];
  env?: Record<string, string>;
}

const versionOf = (name: string): string =>
  JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8")).version;

const connectEs = (protocol: "grpc" | "connect", httpVersion: "1.1" | "2"): Client => ({
  name: `connect-es, ${protocol === "grpc" ? "gRPC" : "Connect"}, HTTP/${httpVersion}`,
  inCi: true,
  find: async () => ({
    version: versionOf("@connectrpc/connect-node"),
    command: [process.execPath, join(FOLDER, "connect-es.js"), protocol, httpVersion],
  }),
});

export const CLIENTS: Client[] = [
  connectEs("grpc", "2"),
  connectEs("connect", "2"),
  connectEs("connect", "1.1"),
  {
    name: "grpc-js",
    inCi: true,
    find: async () => ({
      version: versionOf("@grpc/grpc-js"),
      command: [process.execPath, join(FOLDER, "grpc-js.js")],
    }),
  },
  {
    name: "grpcio",
    inCi: true,
    async find() {
      const packages = pythonPackages();
      if ("unavailable" in packages) throw new Error(packages.unavailable);
      const env = { PYTHONPATH: packages.path };
      const { stdout } = await run("python3", ["-c", "import grpc; print(grpc.__version__)"], {
        env: { ...process.env, ...env },
      });
      return { version: stdout.trim(), command: ["python3", join(FOLDER, "grpcio_client.py")], env };
    },
  },
  {
    name: "tonic",
    inCi: true,
    async find() {
      const target = join(cacheDir(), "tonic-client");
      await built("cargo", ["build", "--quiet", "--locked", "--target-dir", target], join(FOLDER, "tonic"));
      const [, version] = /name = "tonic"\nversion = "([^"]+)"/.exec(
        readFileSync(join(FOLDER, "tonic/Cargo.lock"), "utf8"),
      )!;
      return { version: version!, command: [join(target, "debug/latchkey-tonic-client")] };
    },
  },
  {
    name: "grpc-go",
    inCi: false,
    async find() {
      const binary = join(cacheDir(), "grpc-go-client");
      await built("go", ["build", "-o", binary, "."], join(FOLDER, "grpc-go"));
      const [, version] = /google\.golang\.org\/grpc v(\S+)/.exec(
        readFileSync(join(FOLDER, "grpc-go/go.mod"), "utf8"),
      )!;
      return { version: version!, command: [binary] };
    },
  },
];

function cacheDir(): string {
  const { cacheDir } = readConfig({ ...process.env, MONGODB_URI: "" });
  mkdirSync(cacheDir, { recursive: true });
  return resolve(cacheDir);
}

async function built(tool: string, args: string[], cwd: string): Promise<void> {
  try {
    await run(tool, args, { cwd });
  } catch (error) {
    const { code, stderr, message } = error as { code?: string; stderr?: string; message: string };
    throw new Error(code === "ENOENT" ? `there is no ${tool} here` : stderr?.trim() || message);
  }
}

/** Changes with every file that a client's program is made of. */
export function programsHash(): string {
  const files = readdirSync(FOLDER, { recursive: true, encoding: "utf8" })
    .filter((file) => /\.(js|py|rs|go)$|^grpc-go\/go\.mod$|Cargo\.(toml|lock)$/.test(file) && file !== "run.js")
    .sort();
  const text = files.map((file) => `${file}\n${readFileSync(join(FOLDER, file), "utf8")}`).join("\n");
  return sha256(text);
}

export const TABLE = "docs/clients.md";

/** `docs/clients.md`'s table, between its markers. */
export function tableText(): string {
  return existsSync(TABLE) ? (readFileSync(TABLE, "utf8").split(/<!-- \/?clients -->/)[1] ?? "").trim() : "";
}
