// Runs the commands of the README's tour as they are written, in one shell, against a service started as written.
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
const section = /\n## A two-minute tour\n([\s\S]*?)\n## /.exec(readme)?.[1] ?? "";
const blocks = [...section.matchAll(/```sh\n([\s\S]*?)```/g)].map((match) => match[1]);
if (blocks.length < 3) throw new Error("the README has no tour");

const dataDir = mkdtempSync(join(tmpdir(), "latchkey tour "));
const env = { ...process.env, LATCHKEY_DATA_DIR: dataDir };
const service = spawn("npm", ["start"], { env, stdio: ["ignore", "pipe", "inherit"], detached: true });
const gone = new Promise((resolve) => service.once("exit", resolve));
try {
  await new Promise((resolve, reject) => {
    service.stdout.on("data", (chunk) => String(chunk).includes('"event":"ready"') && resolve());
    service.once("exit", (code) => reject(new Error(`npm start ended with ${code}`)));
  });
  const script = blocks.filter((block) => !block.includes("npm start")).join("\n");
  const { status } = spawnSync("bash", ["-euxo", "pipefail"], {
    input: script,
    env,
    stdio: ["pipe", "inherit", "inherit"],
  });
  process.exitCode = status ?? 1;
} finally {
  process.kill(-service.pid, "SIGTERM");
  await gone;
  rmSync(dataDir, { recursive: true, force: true });
}
