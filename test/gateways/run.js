import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

// `npm run gateways`: the tests of the gateways, with an Envoy that is fetched if need be. With `-- --write`, what they see becomes the table of the README.

const README = "deploy/gateways/README.md";
const COLUMNS = ["Envoy, gRPC", "Envoy, HTTP", "nginx", "Caddy", "HAProxy"];

spawnSync("sh", ["test/gateways/fetch-envoy.sh"], { stdio: "inherit" });
const writing = process.argv.includes("--write");
const folder = mkdtempSync(join(tmpdir(), "latchkey-gateways-"));
const { status } = spawnSync("npx", ["jest", "test/gateways"], {
  stdio: "inherit",
  env: {
    ...process.env,
    NODE_OPTIONS: "--experimental-vm-modules",
    ...(writing && { GATEWAY_RESULTS: folder }),
  },
});
if (writing && status === 0) writeTable();
rmSync(folder, { recursive: true });
process.exitCode = status ?? 1;

function writeTable() {
  const have = readdirSync(folder).map((name) => name.replace(/\.json$/, ""));
  const missing = COLUMNS.filter((name) => !have.includes(name));
  if (missing.length > 0) {
    process.stderr.write(`The table is left as it is: ${missing.join(", ")} could not be tested here.\n`);
    process.exit(1);
  }
  const seen = COLUMNS.map((name) => new Map(JSON.parse(readFileSync(join(folder, `${name}.json`), "utf8"))));
  const rows = [...seen[0].keys()].map((row) => [row, ...seen.map((cells) => cells.get(row) ?? "")]);
  const lines = [["asked", ...COLUMNS], Array(COLUMNS.length + 1).fill("---"), ...rows].map(
    (cells) => `| ${cells.join(" | ")} |`,
  );
  const text = readFileSync(README, "utf8");
  writeFileSync(
    README,
    text.replace(/<!-- matrix -->[\s\S]*<!-- \/matrix -->/, `<!-- matrix -->\n${lines.join("\n")}\n<!-- /matrix -->`),
  );
}
