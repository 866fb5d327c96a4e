import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { expect, test } from "@jest/globals";
import { ErrorReason } from "#gen/latchkey/v1/error_reason_pb";

const sources = readdirSync("src", { recursive: true, encoding: "utf8" })
  .filter((file) => file.endsWith(".ts"))
  .map((file) => join("src", file));

const importsOf = (file: string): string[] =>
  [...readFileSync(file, "utf8").matchAll(/^(?:import|export)\s[^;]*?from\s+"([^"]+)"/gms)].map((match) =>
    match[1]!.startsWith(".") ? relative("", join(dirname(file), match[1]!)) : match[1]!,
  );

/** What each room may import: its own files, these rooms and files, and these packages. */
const ROOMS: Record<string, string[]> = {
  "src/keys/": ["src/keys/", "node:", "argon2", "lru-cache"],
  "src/store/": ["src/store/", "src/keys/", "src/startup-error.ts", "node:", "mongodb", "mongodb-memory-server-core/"],
  "src/rpc/": [
    "src/rpc/",
    "src/keys/",
    // The interfaces through which the two meet.
    "src/transport/hot-method.ts",
    "src/transport/forward-auth.ts",
    // How gRPC is written, whoever writes it.
    "src/transport/wire-format.ts",
    // What requests hold that are not whole, whoever reads them.
    "src/transport/held-bytes.ts",
    "src/telemetry.ts",
    "src/readiness.ts",
    "src/config.ts",
    "#gen/",
    "node:",
    "@connectrpc/",
    "@bufbuild/",
    "jose",
    "lru-cache",
  ],
  "src/transport/": ["src/transport/", "src/keys/", "src/startup-error.ts", "node:"],
  "src/client/": ["src/client/", "#gen/", "@connectrpc/", "@bufbuild/", "node:"],
};

test.each(Object.entries(ROOMS))("%s imports only what lies below it", (room, allowed) => {
  const files = sources.filter((file) => file.startsWith(room));
  expect(files.length).toBeGreaterThan(0);
  const strays = files.flatMap((file) =>
    importsOf(file)
      .filter((target) => !allowed.some((prefix) => target.startsWith(prefix)))
      .map((target) => `${file} imports ${target}`),
  );
  expect(strays).toEqual([]);
});

test("keys imports neither http nor the network", () => {
  const network = sources
    .filter((file) => file.startsWith("src/keys/"))
    .filter((file) => importsOf(file).some((name) => /^node:(http|net|tls)/.test(name)));
  expect(network).toEqual([]);
});

test("help, the version and wrong usage of the command line load commander and nothing heavier", () => {
  const reached = new Set<string>(["src/cli.ts"]);
  for (const file of reached) if (file.startsWith("src/")) for (const target of importsOf(file)) reached.add(target);
  expect([...reached].filter((name) => !/^(?:src\/|node:)/.test(name))).toEqual(["commander"]);
});

test("the database's error codes have names: no number of one stands outside their table", () => {
  const bare = sources
    .filter((file) => file.startsWith("src/store/") && file !== "src/store/server-errors.ts")
    .filter((file) =>
      /\bcode\b[^\n]{0,20}[=<>]==? *[1-9]|hasCode\([^)]*\d|new Set\(\[\s*\d/.test(readFileSync(file, "utf8")),
    );
  expect(bare).toEqual([]);
});

test("process.env is read in config.ts alone", () => {
  const readers = sources.filter((file) => readFileSync(file, "utf8").includes("process.env"));
  expect(readers).toEqual(["src/config.ts"]);
});

test("every error reason stands in the README's table", () => {
  const readme = readFileSync("README.md", "utf8");
  const reasons = Object.keys(ErrorReason).filter((name) => /^[A-Z]/.test(name) && name !== "UNSPECIFIED");
  expect(reasons.length).toBeGreaterThan(10);
  for (const reason of reasons) expect(readme).toContain(`| \`${reason}\` |`);
});

test("every error reason of the domain is in the proto, and the other way round", async () => {
  const { CODES } = await import("../../src/rpc/error-map.ts");
  const reasons = Object.keys(ErrorReason).filter((name) => /^[A-Z]/.test(name) && name !== "UNSPECIFIED");
  expect(Object.keys(CODES).sort()).toEqual(reasons.sort());
});

test("every package with an install script is named in SECURITY.md and in allowScripts, and no other; argon2's alone is meant to run", () => {
  const { packages } = JSON.parse(readFileSync("package-lock.json", "utf8")) as {
    packages: Record<string, { hasInstallScript?: boolean }>;
  };
  const scripted = Object.keys(packages)
    .filter((path) => packages[path]!.hasInstallScript === true)
    .map((path) => path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length));
  const [, section = ""] = readFileSync("SECURITY.md", "utf8").split("## Install scripts");
  const named = [...section.matchAll(/^\| (`.*`) \|/gm)].flatMap((row) => row[1]!.replaceAll("`", "").split(", "));
  expect(named.sort()).toEqual([...new Set(scripted)].sort());
  const { allowScripts } = JSON.parse(readFileSync("package.json", "utf8")) as {
    allowScripts: Record<string, boolean>;
  };
  expect(Object.keys(allowScripts).sort()).toEqual(named.sort());
  expect(Object.keys(allowScripts).filter((name) => allowScripts[name])).toEqual(["argon2"]);
});

// npm notes none of builds for other platforms than the one that the lockfile was made on.
test("every package in the lockfile has its hash, but for optional ones", () => {
  const { packages } = JSON.parse(readFileSync("package-lock.json", "utf8")) as {
    packages: Record<string, { integrity?: string; optional?: boolean; link?: boolean }>;
  };
  const without = Object.keys(packages)
    .filter((path) => path.startsWith("node_modules/") && packages[path]!.link !== true)
    .filter((path) => packages[path]!.integrity === undefined && packages[path]!.optional !== true);
  expect(without).toEqual([]);
});
