import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** The service as its users run it: a process of its own, from the build. */
export interface ServiceProcess {
  child: ChildProcess;
  url: string;
  /** http://host:port of the operators' port. */
  opsUrl: string;
  /** Standard output and standard error together. */
  output(): string;
  /** The lines of its log whose event is `event`. */
  events(event: string): Record<string, unknown>[];
}

const running: ChildProcess[] = [];
const directories: string[] = [];

/** To be called after each test. */
export async function stopProcesses(): Promise<void> {
  for (const child of running.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    child.kill("SIGTERM");
    await once(child, "exit");
  }
  for (const directory of directories.splice(0)) await rm(directory, { recursive: true, force: true });
}

/** For a process that was not started here. */
export function endAfterTest(child: ChildProcess): void {
  running.push(child);
}

export function newDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "latchkey process "));
  directories.push(directory);
  return directory;
}

export interface Launched {
  /** Where the build lies. Default: here. */
  root?: string;
  nodeOptions?: string[];
  /** Told of the process before it does anything. */
  onStarted?: (pid: number) => void;
}

export function launch(
  args: string[],
  env: Record<string, string>,
  { root = ".", nodeOptions = [], onStarted = () => {} }: Launched = {},
): { child: ChildProcess; output: () => string } {
  const child = spawn(process.execPath, [...nodeOptions, join(root, "dist/src/cli/main.js"), ...args], {
    env: {
      PATH: process.env.PATH,
      HOME: process.env.HOME,
      // Of what a service costs in a test, its start is most.
      NODE_COMPILE_CACHE: join(tmpdir(), "latchkey-compile-cache"),
      LATCHKEY_LISTEN: "127.0.0.1:0",
      LATCHKEY_OPS_LISTEN: "127.0.0.1:0",
      ...env,
    },
    stdio: ["pipe", "pipe", "pipe"],
  });
  onStarted(child.pid!);
  running.push(child);
  let text = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (chunk) => {
      text += chunk;
    });
  }
  return { child, output: () => text };
}

/** Runs `latchkey serve` until it is ready. */
export async function serve(env: Record<string, string>, launched: Launched = {}): Promise<ServiceProcess> {
  const { child, output } = launch(["serve"], env, launched);
  const ready = /"event":"ready","listen":"([^"]+)","ops":"([^"]+)"/;
  while (!ready.test(output())) {
    if (child.exitCode !== null) throw new Error(`the service ended: ${output()}`);
    await sleep(20);
  }
  const [, listen, ops] = ready.exec(output())!;
  return {
    ...{ child, output, url: `http://${listen}`, opsUrl: `http://${ops}` },
    events: (event) =>
      output()
        .split("\n")
        .filter((line) => line.includes(`"event":"${event}"`))
        .map((line) => JSON.parse(line)),
  };
}

export async function runToEnd(
  args: string[],
  env: Record<string, string>,
  input = "",
): Promise<{ code: number | null; output: string }> {
  const { child, output } = launch(args, env);
  child.stdin!.end(input);
  const [code] = await once(child, "close");
  return { code: code as number | null, output: output().trim() };
}
