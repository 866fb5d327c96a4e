import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename } from "node:path";

/**
 * `npm run mutation -- [file …] [--table]`: plants mistakes in files of src/keys and tells which ones no unit test notices.
 * `--table` only writes the table of what was found last into docs/trust.md.
 * Stryker is no dependency: it is large, and needed here alone. It is installed beside the sandbox when it is first run.
 */
const VERSION = "9.6.1";
const HOME = ".latchkey/mutation";
const STRYKER = `${HOME}/tool/node_modules/@stryker-mutator/core/bin/stryker.js`;
const DOC = "docs/trust.md";
const TYPES_ONLY = "ports";

/** A file is judged by the tests of its name, and by these. Others would find a little more, and take much longer. */
const ALSO = {
  entry: ["audit"],
  errors: ["policy", "manage"],
  input: ["manage", "request-id"],
  log: ["audit-log"],
  record: ["manage", "view"],
  "request-id": ["manage"],
  text: ["verify"],
};

/** Paths of files by their names. */
const paths = new Map(
  readdirSync("src/keys", { recursive: true })
    .filter((file) => file.endsWith(".ts"))
    .map((file) => [basename(file, ".ts"), `src/keys/${file}`]),
);
const known = [...paths.keys()];
const named = process.argv.slice(2).filter((word) => !word.startsWith("--"));
const testsOf = (name) => [name, ...(ALSO[name] ?? [])].filter((test) => existsSync(`test/unit/${test}.test.ts`));

function run(command, args, env = {}) {
  const { status } = spawnSync(command, args, { stdio: "inherit", env: { ...process.env, ...env } });
  if (status !== 0) throw new Error(`${command} ${args[0]} failed`);
}

function install() {
  if (existsSync(STRYKER)) return;
  mkdirSync(`${HOME}/tool`, { recursive: true });
  writeFileSync(`${HOME}/tool/package.json`, "{}");
  const packages = ["core", "jest-runner"].map((name) => `@stryker-mutator/${name}@${VERSION}`);
  const flags = ["--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund"];
  run("npm", ["install", "--prefix", `${HOME}/tool`, ...flags, ...packages]);
}

function mutate(name) {
  const config = JSON.parse(readFileSync("test/mutation/stryker.json", "utf8"));
  const path = `${HOME}/${name}`;
  const own = {
    ...{ mutate: [paths.get(name)], tempDirName: `${path}.sandbox`, incrementalFile: `${path}.incremental.json` },
    jsonReporter: { fileName: `${path}.json` },
  };
  writeFileSync(`${path}.config.json`, JSON.stringify({ ...config, ...own }));
  run(process.execPath, [STRYKER, "run", `${path}.config.json`], {
    ...{ MUTATION_TESTS: testsOf(name).join(","), PROPERTY_RUNS: "300" },
  });
}

function rowOf(name) {
  const path = `${HOME}/${name}.json`;
  if (!existsSync(path)) return undefined;
  const { mutants } = JSON.parse(readFileSync(path, "utf8")).files[paths.get(name)];
  const count = (...states) => mutants.filter(({ status }) => states.includes(status)).length;
  const [killed, survived, uncovered] = [count("Killed", "Timeout"), count("Survived"), count("NoCoverage")];
  return {
    name: `\`${paths.get(name).slice("src/keys/".length)}\``,
    numbers: [killed + survived + uncovered, killed, survived, uncovered],
  };
}

function table() {
  const rows = known.map(rowOf).filter((row) => row !== undefined && row.numbers[0] > 0);
  const sum = rows.reduce((total, { numbers }) => total.map((n, at) => n + numbers[at]), [0, 0, 0, 0]);
  const line = ({ name, numbers }) =>
    `| ${[name, ...numbers, `${((100 * numbers[1]) / numbers[0]).toFixed(1)} %`].join(" | ")} |`;
  const head = [
    "| file | mutants | killed | survived | not covered | killed of all |",
    "| --- | --- | --- | --- | --- | --- |",
  ];
  const missing = known.filter((name) => name !== TYPES_ONLY && !existsSync(`${HOME}/${name}.json`));
  const note = missing.length === 0 ? [] : ["", `Not run yet: ${missing.map((name) => `\`${name}.ts\``).join(", ")}.`];
  const text = [...head, ...rows.map(line), line({ name: "together", numbers: sum }), ...note].join("\n");
  const doc = readFileSync(DOC, "utf8");
  writeFileSync(
    DOC,
    doc.replace(/(<!-- mutants -->\n)[\s\S]*(<!-- \/mutants -->)/, (_, begin, end) => `${begin}${text}\n${end}`),
  );
}

if (!process.argv.includes("--table")) {
  install();
  for (const name of named.length > 0 ? named : known.filter((name) => name !== TYPES_ONLY)) mutate(name);
}
table();
