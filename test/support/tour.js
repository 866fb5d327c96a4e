// Runs what the pages say as it is written: the README's tour in one shell, against a service started as written, then its
// program and the commands of docs/operations.md and docs/administration.md.
import { spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = new URL("../../", import.meta.url);
const pageOf = (name) => readFileSync(new URL(name, root), "utf8");
const blocksIn = (text, language) =>
  [...text.matchAll(new RegExp(`\`\`\`${language}\\n([\\s\\S]*?)\`\`\``, "g"))].map((match) => match[1]);

const readme = pageOf("README.md");
const tour = blocksIn(/\n## A two-minute tour\n([\s\S]*?)\n## /.exec(readme)?.[1] ?? "", "sh");
const [program] = blocksIn(readme, "ts");
const [lookAtIt] = blocksIn(pageOf("docs/operations.md"), "sh");
const [administer] = blocksIn(pageOf("docs/administration.md"), "sh");
if (tour.length < 3 || !program || !lookAtIt || !administer) throw new Error("a page lacks the commands to be run");

// In the package, so that it finds itself by its name.
const file = new URL("dist/tour.mjs", root);
const dataDir = mkdtempSync(join(tmpdir(), "latchkey tour "));
const env = { ...process.env, LATCHKEY_DATA_DIR: dataDir };
const service = spawn("npm", ["start"], { env, stdio: ["ignore", "pipe", "inherit"], detached: true });
const gone = new Promise((resolve) => service.once("exit", resolve));
try {
  await new Promise((resolve, reject) => {
    service.stdout.on("data", (chunk) => String(chunk).includes('"event":"ready"') && resolve());
    service.once("exit", (code) => reject(new Error(`npm start ended with ${code}`)));
  });
  writeFileSync(file, program);
  const script = [
    ...tour.filter((block) => !block.includes("npm start")),
    lookAtIt,
    "NEW=$(npx latchkey create --user alice --scope read)",
    'test "$(node dist/tour.mjs "$NEW")" = "a key of alice"',
    administer,
  ].join("\n");
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
  rmSync(file, { force: true });
}
