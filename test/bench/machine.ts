import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { availableParallelism, cpus, release, totalmem } from "node:os";
import type { MongoClient } from "mongodb";

/** The server under test has this core to itself; load and mongod share the other. */
export const SERVER_CORE = 0;
export const LOAD_CORE = 1;

export interface Machine {
  cpu: string;
  cores: number;
  memoryGiB: number;
  kernel: string;
  node: string;
  mongodb: string;
  load: string;
  date: string;
  pinned: boolean;
}

export async function describeMachine(client: MongoClient, load: string): Promise<Machine> {
  const { version } = await client.db("admin").command({ buildInfo: 1 });
  return {
    cpu: cpus()[0]?.model ?? "unknown",
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 1024 ** 3),
    kernel: release(),
    node: process.version,
    mongodb: String(version),
    load,
    date: new Date().toISOString(),
    pinned: canPin(),
  };
}

export function canPin(): boolean {
  if (availableParallelism() < 2 && cpus().length < 2) return false;
  try {
    execFileSync("taskset", ["--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

/** Moves a running process. This one takes what it starts from now on, unless told otherwise, with it. */
export function moveToCore(pid: number, core: number): void {
  if (canPin()) execFileSync("taskset", ["-a", "-c", "-p", String(core), String(pid)], { stdio: "ignore" });
}

/** CPU time of all threads of a process so far, to the nanosecond where the kernel tells, else to its clock tick. NaN when it is gone. */
export function cpuSecondsOf(pid: number): number {
  if (!existsSync(`/proc/${pid}`)) return Number.NaN;
  try {
    let nanoseconds = 0;
    for (const task of readdirSync(`/proc/${pid}/task`)) {
      nanoseconds += Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, "utf8").split(" ")[0]);
    }
    return nanoseconds / 1e9;
  } catch {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  }
}

export function residentBytesOf(pid: number): number {
  const kibibytes = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return Number(kibibytes) * 1024;
}
