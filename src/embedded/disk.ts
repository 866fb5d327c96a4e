import { statfs } from "node:fs/promises";
import { dirname } from "node:path";
import { StartupError } from "../observe/startup-error.ts";

const MIB = 1_048_576;
/** With less, mongod can soon write neither its data nor its log. */
const LEAST_BYTES = 16 * MIB;

/** MiB that may still be written where `path` is, or is to be. */
export async function freeMib(path: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(path);
    return Math.floor((bavail * bsize) / MIB);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT" || dirname(path) === path) throw error;
    return freeMib(dirname(path));
  }
}

/** A sentence where the disk that holds `path` is full; undefined where it is not, or nobody can tell. */
export async function whyFull(path: string): Promise<string | undefined> {
  const free = await freeMib(path).catch(() => Number.POSITIVE_INFINITY);
  return free * MIB < LEAST_BYTES ? fullDisk(path, `, ${free} MiB are free`) : undefined;
}

export function fullDisk(path: string, detail = ""): string {
  return `The disk that holds ${path} is full${detail}. Make room there, or set LATCHKEY_DATA_DIR to a directory on another disk.`;
}

/** A write of `work` below `path` that fails for want of room becomes a StartupError that says so. */
export async function namingFullDisk<T>(path: string, work: () => T | Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOSPC" || code === "EDQUOT") throw new StartupError(fullDisk(path));
    throw error;
  }
}
