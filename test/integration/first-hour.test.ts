import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { globSync, openSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { afterEach, expect, test } from "@jest/globals";
import { installPacked } from "../support/packed.ts";
import { endAfterTest, newDirectory, stopProcesses } from "../support/process.ts";
import { inTerminal, type Terminal } from "../support/terminal.ts";

const run = promisify(execFile);

const cleanUps: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  await stopProcesses();
  for (const cleanUp of cleanUps.splice(0)) await cleanUp();
});

const ANY_PORT = { LATCHKEY_LISTEN: "127.0.0.1:0", LATCHKEY_OPS_LISTEN: "127.0.0.1:0" };
const KEY = /^lk_\w+$/;

/** The lines to paste, from a terminal where the service runs. */
const pasteable = (screen: string) => [...screen.matchAll(/^ {2}(\S.*)$/gm)].map((match) => match[1]!);

/** What a shell in `cwd` prints for the lines, with nothing in its environment but what every shell has. */
async function paste(lines: string[], cwd: string): Promise<string[]> {
  const env = { PATH: process.env.PATH!, HOME: process.env.HOME! };
  const { stdout } = await run("bash", ["-euo", "pipefail", "-c", lines.join("\n")], { cwd, env });
  return stdout.trim().split("\n");
}

/** Starts the service by `command` in a terminal, tries what it says, ends it by Ctrl-C, and starts it again. */
async function firstHour(command: string, cwd: string, env: Record<string, string>, dataDir: string): Promise<void> {
  const first = inTerminal(command, cwd, { ...ANY_PORT, ...env });
  await first.until(/Metrics: .*\n/);
  expect(first.screen()).toContain(`in another terminal, in ${cwd}:`);
  expect(first.screen()).toMatch(/Ctrl-C stops the service and keeps them/);
  expect(first.screen()).toContain(`Data:    ${dataDir}\n`);
  const [, metrics] = /Metrics: (http\S+)/.exec(first.screen())!;
  expect(await (await fetch(metrics!)).text()).toContain("latchkey_serving 1");

  const lines = pasteable(first.screen());
  const commands = lines.filter((line) => !line.startsWith("export "));
  expect(commands).toHaveLength(4);
  for (const line of commands) expect(line).toContain("npx latchkey ");
  const [created, outcome, rotated, headings, ...keys] = await paste(lines, cwd);
  expect(created).toMatch(KEY);
  expect(outcome).toBe("VALID");
  expect(rotated).toMatch(KEY);
  expect(headings).toMatch(/^id +prefix +state +user +scopes +name$/);
  expect(keys.map((line) => line.split(/ +/).slice(2, 4).join(" ")).sort()).toEqual(["active alice", "revoked alice"]);
  // No token and no key on the screen but those that were pasted elsewhere.
  expect(first.screen()).not.toMatch(/eyJ|lk_\w{20}/);

  await endBy(first);
  const second = inTerminal(command, cwd, { ...ANY_PORT, ...env });
  await second.until(/Metrics: .*\n/);
  const again = pasteable(second.screen());
  const settings = again.filter((line) => line.startsWith("export "));
  expect(await paste([...settings, `echo ${rotated} | npx latchkey verify`], cwd)).toEqual(["VALID"]);
  // Alice has a key by now: the lines are about somebody else.
  expect(await paste(again.slice(0, settings.length + 1), cwd)).toEqual([expect.stringMatching(KEY)]);
  await endBy(second);
}

/** By Ctrl-C. Its exit code is npm's: npx's is 130, whatever the program's was. */
async function endBy({ pressCtrlC, ended, screen }: Terminal): Promise<void> {
  pressCtrlC();
  await ended;
  expect(screen()).toMatch(/stopped\n/);
}

test("at a terminal npm start says four lines that work as pasted, where the data are, that Ctrl-C keeps them, and the metrics' URL", async () => {
  const dataDir = newDirectory();
  await firstHour("npm start", resolve(""), { LATCHKEY_DATA_DIR: dataDir }, dataDir);
}, 180_000);

test("in a packed install npx latchkey serve says four lines that work as pasted, too", async () => {
  const project = await installPacked();
  cleanUps.push(() => rm(project, { recursive: true, force: true }));
  await firstHour("npx latchkey serve", project, {}, join(project, ".latchkey"));
}, 180_000);

test("in a clone npx runs the command that was built, where npm's cache has it at the place of an earlier build", async () => {
  const cache = newDirectory();
  const env = { PATH: process.env.PATH!, HOME: process.env.HOME!, npm_config_cache: cache, npm_config_offline: "true" };
  const npx = async () => (await run("npx", ["latchkey", "--version"], { cwd: resolve(""), env })).stdout;
  const own = JSON.parse(readFileSync("package.json", "utf8"));
  const version = `${own.version}\n`;
  expect(await npx()).toBe(version);

  // npm may have made this link beside its own just now: where it had its entry before, the build alone does.
  expect(own.scripts.build).toContain(`ln -sf ../../${own.bin.latchkey} node_modules/.bin/latchkey`);
  const [command] = globSync(join(cache, "_npx/*/node_modules/.bin/latchkey"));
  rmSync(command!);
  symlinkSync("../latchkey/dist/src/earlier.js", command!);
  expect(await npx()).toBe(version);
});

test("to a file npm start writes the ready line alone, and no token", async () => {
  const dataDir = newDirectory();
  const file = join(dataDir, "output");
  const output = openSync(file, "w");
  const npm = spawn("npm", ["start"], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, LATCHKEY_DATA_DIR: dataDir, ...ANY_PORT },
    stdio: ["ignore", output, output],
  });
  endAfterTest(npm);
  // npm says what it runs.
  const written = () =>
    readFileSync(file, "utf8")
      .split("\n")
      .filter((line) => line !== "" && !line.startsWith("> "));
  while (written().length === 0) await sleep(20);
  // The ready line comes first; a banner would follow at once.
  const ops = JSON.parse(written()[0]!).ops;
  await fetch(`http://${ops}/livez`);
  npm.kill("SIGTERM");
  await once(npm, "exit");
  expect(written().map((line) => JSON.parse(line).event)).toEqual(["ready", "stopping", "stopped"]);
}, 60_000);
