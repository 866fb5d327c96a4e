import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { canPin, cpuSecondsOf, SERVER_CORE } from "./machine.ts";

export interface ServerProcess {
  pid: number;
  /** host:port */
  address: string;
  /** host:port of the operators' port, if it has one. */
  ops: string | undefined;
  /** From the start of the process to its ready line. */
  readyMs: number;
  child: ChildProcess;
  stop(): Promise<void>;
}

const READY_MS = 60_000;

/** Starts a Node program on the servers' core; it must print a JSON line with `"event":"ready"` and `listen`. */
export async function startServerProcess(
  args: string[],
  env: Record<string, string | undefined>,
): Promise<ServerProcess> {
  const started = performance.now();
  const child = spawnPinned(args, env);
  const gone = once(child, "exit");
  const ready = await readyLine(child, args);
  const readyMs = performance.now() - started;
  return {
    ...{ pid: child.pid!, address: String(ready.listen), ops: ready.ops && String(ready.ops), readyMs, child },
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGTERM");
      const timer = setTimeout(() => child.kill("SIGKILL"), 15_000);
      await gone;
      clearTimeout(timer);
    },
  };
}

function spawnPinned(args: string[], env: Record<string, string | undefined>): ChildProcess {
  // taskset becomes node: the pid stays, and so do signals.
  const command = canPin() ? ["taskset", "-c", String(SERVER_CORE), process.execPath] : [process.execPath];
  return spawn(command[0]!, [...command.slice(1), ...args], { env, stdio: ["pipe", "pipe", "inherit"] });
}

function readyLine(child: ChildProcess, args: string[]): Promise<{ listen?: string; ops?: string }> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      reject(new Error(`${args.join(" ")} was not ready in ${READY_MS / 1_000} s`));
    }, READY_MS);
    child.once("exit", (code) => {
      clearTimeout(timer);
      reject(new Error(`${args.join(" ")} ended with ${code} before it was ready`));
    });
    eachEvent(child, (event) => {
      if (event.event !== "ready") return;
      clearTimeout(timer);
      resolve(event as { listen?: string });
    });
  });
}

function eachEvent(child: ChildProcess, take: (event: Record<string, unknown>) => void): void {
  createInterface({ input: child.stdout! }).on("line", (line) => {
    if (line.startsWith("{")) take(JSON.parse(line));
  });
}

export interface LoadMarks {
  start: RegExp;
  end: RegExp;
}

/** Runs a load to its end, and takes the CPU time of the server, if it is known, when the load prints that its measured time begins and ends. */
export async function runLoad(
  command: string[],
  marks: LoadMarks,
  serverPid: number | "itself" | undefined,
): Promise<{ lines: string[]; cpuSeconds: number }> {
  const child =
    serverPid === "itself"
      ? spawnPinned(command, process.env)
      : spawn(command[0]!, command.slice(1), { stdio: ["ignore", "pipe", "pipe"] });
  const pid = serverPid === "itself" ? child.pid! : serverPid;
  const cpuSoFar = () => (pid === undefined ? 0 : cpuSecondsOf(pid));
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
  return { lines, cpuSeconds: atEnd - atStart };
}
