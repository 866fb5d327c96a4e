import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { canPin, cpuSecondsOf, residentBytesOf, SERVER_CORE } from "./machine.ts";

export interface ServerProcess {
  pid: number;
  /** host:port; empty for a program that does not listen. */
  address: string;
  /** host:port of the operators' port, if it has one. */
  ops: string | undefined;
  /** From the start of the process to its ready line. */
  readyMs: number;
  child: ChildProcess;
  /** The next event of this name that it prints. Fails when it ends before. */
  nextEvent(name: string): Promise<Event>;
  stop(): Promise<void>;
}

/** A line of JSON with a member `event`. */
export type Event = Record<string, unknown>;

const READY_MS = 60_000;
const STOP_MS = 15_000;
/** Later than the last of what a start leaves to do. */
const AT_REST_MS = 5_000;

/** Starts a program on the servers' core, by default one of Node's; it must print a JSON line with `"event":"ready"` and, if it listens, `listen`. */
export async function startServerProcess(
  args: string[],
  env: Record<string, string | undefined>,
  program: string = process.execPath,
): Promise<ServerProcess> {
  const started = performance.now();
  // taskset becomes the program: the pid stays, and so do signals.
  const command = canPin() ? ["taskset", "-c", String(SERVER_CORE), program] : [program];
  const child = spawn(command[0]!, [...command.slice(1), ...args], { env, stdio: ["pipe", "pipe", "inherit"] });
  const gone = once(child, "exit");
  const nextEvent = eventsOf(child, args.find((arg) => arg.endsWith(".js")) ?? program);
  const stop = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGTERM");
    const timer = setTimeout(() => child.kill("SIGKILL"), STOP_MS);
    await gone;
    clearTimeout(timer);
  };
  const timer = setTimeout(() => child.kill("SIGKILL"), READY_MS);
  const { listen = "", ops } = await nextEvent("ready");
  clearTimeout(timer);
  const readyMs = performance.now() - started;
  const address = String(listen);
  return {
    pid: child.pid!,
    address,
    ops: ops === undefined ? undefined : String(ops),
    readyMs,
    child,
    nextEvent,
    stop,
  };
}

function eventsOf(child: ChildProcess, name: string): ServerProcess["nextEvent"] {
  const waiting = new Map<unknown, { resolve: (event: Event) => void; reject: (error: Error) => void }>();
  createInterface({ input: child.stdout! }).on("line", (line) => {
    if (!line.startsWith("{")) return;
    const event: Event = JSON.parse(line);
    waiting.get(event.event)?.resolve(event);
    waiting.delete(event.event);
  });
  child.once("exit", (code, signal) => {
    for (const { reject } of waiting.values()) reject(new Error(`${name} ended unexpectedly (${signal ?? code})`));
  });
  return (event) => new Promise((resolve, reject) => waiting.set(event, { resolve, reject }));
}

export interface LoadMarks {
  start: RegExp;
  end: RegExp;
}

/** Runs a load to its end, and takes the CPU time of the server, if it is known, when the load prints that its measured time begins and ends. */
export async function runLoad(
  command: string[],
  marks: LoadMarks,
  serverPid: number | undefined,
): Promise<{ lines: string[]; cpuSeconds: number }> {
  const child = spawn(command[0]!, command.slice(1), { stdio: ["ignore", "pipe", "pipe"] });
  const cpuSoFar = () => (serverPid === undefined ? 0 : cpuSecondsOf(serverPid));
  const lines: string[] = [];
  let atStart: number | undefined;
  let atEnd: number | undefined;
  createInterface({ input: child.stdout! }).on("line", (line) => {
    if (atStart === undefined && marks.start.test(line)) atStart = cpuSoFar();
    if (atEnd === undefined && marks.end.test(line)) atEnd = cpuSoFar();
    lines.push(line);
  });
  let complaint = "";
  child.stderr?.on("data", (chunk) => {
    complaint = (complaint + chunk).slice(-2_000);
  });
  const [code] = await once(child, "close");
  if (code !== 0 || atStart === undefined || atEnd === undefined) {
    throw new Error(`${command.slice(0, 2).join(" ")} failed (${code}): ${complaint || lines.slice(-5).join(" | ")}`);
  }
  if (Number.isNaN(atEnd - atStart)) throw new Error("The server ended under load.");
  return { lines, cpuSeconds: atEnd - atStart };
}

/** Resident bytes of a server that has been left alone for a while after its start. */
export async function settled({ pid }: ServerProcess): Promise<number> {
  await sleep(AT_REST_MS);
  return residentBytesOf(pid);
}
