import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RUN_OF as RUN, tableIn, writeTable } from "./tables.ts";

// `npm run gateways`: the tests of the gateways, those that can be fetched among them. With `-- --write`, what they see
// becomes the table of the README. `npm run matrix`: the same through other releases, and what is not asked through at
// each run, and their tables; `-- NAME…`: only those whose name has it.

const USUAL = ["envoy 1.40.0", "traefik 3.7.15"];
const RELEASES = [
  ...["1.36.4", "1.37.0", "1.38.3", "1.39.3"].map((version) => ["envoy-grpc", `envoy ${version}`]),
  // 1.37.0 loses status and challenge over HTTP.
  ...["1.36.4", "1.38.3", "1.39.3"].map((version) => ["envoy-http", `envoy ${version}`]),
  ...["trixie", "sid"].map((suite) => ["nginx", `nginx ${suite}`]),
  ["caddy", "caddy 2.11.9"],
  ...["trixie", "sid"].map((suite) => ["haproxy", `haproxy ${suite}`]),
  ["spring-cloud-gateway", "spring-cloud-gateway here"],
];
const HEADS = { matrix: "asked", releases: ["gateway", "release", "run on", "files", "cases", "otherwise than above"] };
const RUN_OF = Object.values(RUN);

const args = process.argv.slice(2);
process.exitCode = args[0] === "--releases" ? releases(args.slice(1)) : usual(args.includes("--write"));

function usual(writing) {
  for (const gateway of USUAL)
    spawnSync("sh", ["test/gateways/fetch.sh", ...gateway.split(" ")], { stdio: ["ignore", "ignore", "inherit"] });
  return tested(["test/gateways"], writing ? setColumns : undefined);
}

function releases(wanted) {
  let failed = 0;
  for (const [test, release] of RELEASES) {
    if (wanted.length > 0 && !wanted.some((name) => `${test} ${release}`.includes(name))) continue;
    process.stdout.write(`\n${test}: ${release}\n`);
    const binary = execFileSync("sh", ["test/gateways/fetch.sh", ...release.split(" ")], { encoding: "utf8" }).trim();
    const write = test === "spring-cloud-gateway" ? setColumns : setReleases;
    failed += tested([`test/gateways/${test}.test.ts`], write, { GATEWAY_BINARY: binary });
  }
  return failed;
}

/** Runs jest; `write` is given what was seen when all is well. */
function tested(files, write, env = {}) {
  const folder = mkdtempSync(join(tmpdir(), "latchkey-gateways-"));
  // The table that is to be written is not what it is to be yet.
  const besides = write ? ["--testPathIgnorePatterns", "test/gateways/table.test.ts"] : [];
  const { status } = spawnSync("npx", ["jest", ...files, ...besides], {
    stdio: "inherit",
    env: {
      ...{ ...process.env, ...env, NODE_OPTIONS: "--experimental-vm-modules" },
      ...(write && { GATEWAY_RESULTS: folder }),
    },
  });
  if (write && status === 0)
    write(readdirSync(folder).map((name) => JSON.parse(readFileSync(join(folder, name), "utf8"))));
  rmSync(folder, { recursive: true });
  return status ?? 1;
}

/** The columns of the table that were run; the others stay as they are. */
function setColumns(columns) {
  const [[, ...names], ...rows] = tableIn("matrix");
  const table = new Map(names.map((name, at) => [name, new Map(rows.map((row) => [row[0], row[at + 1]]))]));
  for (const { gateway, release, on, files, cells } of columns)
    table.set(
      gateway,
      new Map([...[release, on, files].map((value, at) => [RUN_OF[at], value]), ...Object.entries(cells)]),
    );
  // Rows as they were run last; those that none of these has are gone.
  const order = [...new Set(columns.flatMap(({ cells }) => [...RUN_OF, ...Object.keys(cells)]))];
  const lines = order.map((row) => [row, ...[...table.values()].map((cells) => cells.get(row) ?? "")]);
  writeTable("matrix", [HEADS.matrix, ...table.keys()], lines);
}

function setReleases([{ gateway, release, on, files, cells }]) {
  const [[, ...names], ...rows] = tableIn("matrix");
  const usual = new Map(rows.map((row) => [row[0], row[names.indexOf(gateway) + 1]]));
  const differs = Object.entries(cells)
    .filter(([row, cell]) => usual.get(row) !== cell)
    .map(([row, cell]) => `${row}: ${cell}`);
  const [, ...kept] = tableIn("releases");
  const others = kept.filter(([name, version]) => name !== gateway || version !== release);
  const line = [gateway, release, on, files, String(Object.keys(cells).length), differs.join("; ") || "nothing"];
  const rank = ([name, version]) => [names.indexOf(name), ...version.split(".").map(Number)];
  const sorted = [...others, line].sort((one, other) => {
    const [a, b] = [rank(one), rank(other)];
    return a.map((value, at) => value - (b[at] ?? 0)).find((difference) => difference !== 0) ?? 0;
  });
  writeTable("releases", HEADS.releases, sorted);
}
