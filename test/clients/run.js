import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

// `npm run clients`: the tests with real clients, those that are built for it too. With `-- --write`, what they see becomes the table of the document.

const DOCUMENT = "docs/clients.md";
const folder = mkdtempSync(join(tmpdir(), "latchkey-clients-"));
const { status } = spawnSync("npx", ["jest", "test/clients/clients.test.ts"], {
  stdio: "inherit",
  env: { ...process.env, NODE_OPTIONS: "--experimental-vm-modules", CLIENT_RESULTS: folder },
});
const results = readdirSync(folder, { recursive: true, encoding: "utf8" })
  .filter((name) => name.endsWith(".json"))
  .sort()
  .map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")));
const { programs } = results.at(-1) ?? {};
rmSync(folder, { recursive: true });
process.exitCode = status ?? 1;

const rows = results.map((seen) => [
  seen.name,
  seen.version,
  seen.wire,
  { 1: "VALID" }[seen.verify] ?? seen.verify,
  seen.deadline,
  seen.details,
  seen.stream === undefined ? "not over HTTP/1.1" : `${seen.stream.split(" ").length} of 3`,
  seen.cancellation,
  String(seen.answered),
  String(seen.refused),
  String(Object.values(seen.failed).reduce((sum, count) => sum + count, 0)),
]);
const head = ["client", "version", "wire", "Verify", "deadline", "error details", "stream", "cancellation"];
const lines = [[...head, "answered", "nobody listened", "lost"], Array(head.length + 3).fill("---"), ...rows].map(
  (cells) => `| ${cells.join(" | ")} |`,
);
process.stdout.write(`${lines.join("\n")}\n`);
if (process.argv.includes("--write") && status === 0) {
  const date = new Date().toISOString().slice(0, 10);
  const latchkey = JSON.parse(readFileSync("package.json", "utf8")).version;
  const about = `Latchkey ${latchkey}, Node ${process.versions.node}, ${date}. <!-- programs ${programs} -->`;
  const table = ["<!-- clients -->", about, "", ...lines, "<!-- /clients -->"].join("\n");
  const text = readFileSync(DOCUMENT, "utf8");
  writeFileSync(
    DOCUMENT,
    text.replace(/<!-- clients -->[\s\S]*<!-- \/clients -->/, () => table),
  );
}
