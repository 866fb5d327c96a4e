import { execFile, execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { buildGo } from "../support/go.ts";
import { cpuSecondsOf } from "./machine.ts";
import { runLoad, type ServerProcess } from "./processes.ts";
import type { Sample } from "./statistics.ts";

/** Makes sure that h2load is there; where it can't be installed, throws what to do. */
export function ensureH2load(): string {
  if (!canRun("h2load", ["--version"])) {
    const advice = "Install h2load (nghttp2-client on Debian and Ubuntu, nghttp2 with Homebrew), and start again.";
    if (process.getuid?.() !== 0 || !canRun("apt-get", ["--version"])) throw new Error(`h2load is missing. ${advice}`);
    try {
      const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
      execFileSync("apt-get", ["update", "-qq"], { stdio: "ignore", env });
      execFileSync("apt-get", ["install", "-y", "-qq", "--no-install-recommends", "nghttp2-client"], {
        stdio: "ignore",
        env,
      });
    } catch (error) {
      throw new Error(`h2load is missing, and apt-get could not install it. ${advice}`, { cause: error });
    }
  }
  return execFileSync("h2load", ["--version"], { encoding: "utf8" }).trim();
}

/** Builds the load generator for many keys. Undefined where there is no Go. */
export function buildManyKeysLoad(sourceDir: string, dir: string): string | undefined {
  if (!canRun("go", ["version"])) return undefined;
  const binary = join(dir, "load");
  const fault = buildGo(sourceDir, binary);
  if (fault !== undefined) throw new Error(`The load generator could not be built: ${fault}.`);
  return binary;
}

export function canRun(command: string, args: string[]): boolean {
  try {
    execFileSync(command, args, { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

export interface H2loadTarget {
  serverPid: number;
  address: string;
  path: string;
  headers: Record<string, string>;
  bodyFile: string;
  http1: boolean;
  /** Bytes of an answer's body, as sampled. */
  answerBytes: number;
  /** Default: 4 connections with 32 calls each, 64 with one each over HTTP/1.1. */
  shape?: Shape | undefined;
}

export interface Shape {
  connections: number;
  /** Calls in flight on each. */
  inFlight: number;
}

const H2LOAD_MARKS = { start: /^Main benchmark duration is started/, end: /^Main benchmark duration is over/ };
/** Answers differ by a few bytes, as a time's nanoseconds take 0 to 6, and long ones hold many times. */
const BYTES_TOLERANCE = 6;
const SHARE_TOLERANCE = 0.02;
const CHECKED_CALLS = 1_000;

/** Throws unless every answer was 2xx and, on average, of no less than the expected size. */
export async function h2load(target: H2loadTarget, seconds: number): Promise<Sample> {
  const args = ["-D", `${Math.round(seconds * 1_000)}ms`, ...h2loadArguments(target)];
  const { lines, cpuSeconds } = await runLoad(["stdbuf", "-oL", "h2load", ...args], H2LOAD_MARKS, target.serverPid);
  const { answers, meanBytes } = parseH2load(lines.join("\n"));
  // Not more: its count of bytes begins with the connections, that of answers a moment later.
  if (meanBytes < target.answerBytes - toleranceOf(target)) throw new Error(unexpectedSize(meanBytes, target));
  return { answers, seconds, cpuSeconds };
}

/** A thousand calls in the manner of `h2load`, all of which must be answered with 2xx and, on average, the expected size. */
export async function checkByH2load(target: H2loadTarget): Promise<void> {
  const args = ["-n", String(CHECKED_CALLS), ...h2loadArguments(target)];
  const { stdout } = await promisify(execFile)("h2load", args);
  const { answers, meanBytes } = parseH2load(stdout);
  if (answers !== CHECKED_CALLS) throw new Error(`There were ${answers} answers to ${CHECKED_CALLS} calls.`);
  if (Math.abs(meanBytes - target.answerBytes) > toleranceOf(target))
    throw new Error(unexpectedSize(meanBytes, target));
}

function h2loadArguments({ http1, headers, bodyFile, address, path, shape }: H2loadTarget): string[] {
  const { connections, inFlight } =
    shape ?? (http1 ? { connections: 64, inFlight: 1 } : { connections: 4, inFlight: 32 });
  const load = [...(http1 ? ["--h1"] : []), "-c", String(connections), "-m", String(inFlight)];
  const sent = Object.entries(headers).flatMap(([name, value]) => ["-H", `${name}: ${value}`]);
  return [...load, "-d", bodyFile, ...sent, `http://${address}${path}`];
}

function toleranceOf({ answerBytes }: H2loadTarget): number {
  return Math.max(BYTES_TOLERANCE, SHARE_TOLERANCE * answerBytes);
}

/** Errors of gRPC are HTTP 200 without a body: only the size tells. */
function unexpectedSize(meanBytes: number, { answerBytes }: H2loadTarget): string {
  return `Answers had ${meanBytes.toFixed(1)} bytes, not ${answerBytes}: not all were the expected one.`;
}

/** The answers that h2load counted, and the mean size of their bodies. Throws when some were not good, or there were none. */
export function parseH2load(text: string): { answers: number; meanBytes: number } {
  const [, done, succeeded, failed, errored, timeout] =
    /^requests: .* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout/m.exec(text) ?? [];
  const [, ok, redirected, refused, broken] =
    /^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx/m.exec(text) ?? [];
  const [, data] = /\((\d+)\) data$/m.exec(text) ?? [];
  if (done === undefined || ok === undefined || data === undefined) throw new Error(`h2load said: ${text}`);
  if (done === "0") throw new Error("There was no answer in the measured time.");
  const bad = [failed, errored, timeout, redirected, refused, broken].some((count) => Number(count) > 0);
  if (bad || succeeded !== done) {
    throw new Error(`Not every answer was good: ${text.match(/^(?:requests|status codes): .*$/gm)?.join("; ")}`);
  }
  return { answers: Number(done), meanBytes: Number(data) / Number(ok) };
}

export interface ManyKeysRun {
  binary: string;
  /** Undefined: its CPU time is not asked for. */
  serverPid: number | undefined;
  address: string;
  path: string;
  /** Made by `writeMessages`; not for a flood. */
  messagesFile?: string;
  mode?: "unary" | "stream" | "flood";
  connections?: number;
  inFlight?: number;
  warmUpSeconds?: number;
  seconds: number;
  /** Each message once, instead of for a time. */
  once?: boolean;
  /** Dial until a connection is accepted. */
  wait?: boolean;
  /** Hex that every answered message has, from byte `expectAt` on. Default: from the first. */
  expect?: string;
  expectAt?: number;
}

export interface ManyKeysResult extends Sample {
  unexpected: number;
  errors: Record<string, number>;
  p50Ms: number;
  p99Ms: number;
  maxMs: number;
}

const EVENT_MARKS = { start: /^\{"event":"start"\}/, end: /^\{"event":"end"\}/ };

export async function manyKeysLoad(run: ManyKeysRun): Promise<ManyKeysResult> {
  const args = [
    ...["-address", run.address, "-path", run.path, "-mode", run.mode ?? "unary"],
    ...["-c", String(run.connections ?? 4), "-m", String(run.inFlight ?? 32)],
    ...["-warmup", `${run.warmUpSeconds ?? 0.3}s`, "-duration", `${run.seconds}s`],
    ...(run.messagesFile === undefined ? [] : ["-messages", run.messagesFile]),
    ...(run.expect === undefined ? [] : ["-expect", run.expect, "-expect-at", String(run.expectAt ?? 0)]),
    ...(run.once ? ["-once"] : []),
    ...(run.wait ? ["-wait"] : []),
  ];
  const { lines, cpuSeconds } = await runLoad([run.binary, ...args], EVENT_MARKS, run.serverPid);
  return { ...JSON.parse(lines.at(-1) ?? "{}"), cpuSeconds };
}

/** As `manyKeysLoad`, and throws unless every answer was the expected one. */
export async function goodManyKeysLoad(run: ManyKeysRun): Promise<ManyKeysResult> {
  const result = await manyKeysLoad(run);
  const failures = Object.entries(result.errors).map(([text, count]) => `${count} × ${text}`);
  if (failures.length > 0 || result.unexpected > 0 || result.answers === 0) {
    throw new Error(
      `Of ${result.answers} answers ${result.unexpected} were not the expected one; ${failures.join(", ") || "no errors"}`,
    );
  }
  return result;
}

/** Lets a program that works for itself do so; it is what is measured. */
export async function measureProgram(program: ServerProcess, seconds: number): Promise<Sample> {
  const cpuSeconds = () => cpuSecondsOf(program.pid);
  const found = Promise.all([
    program.nextEvent("start").then(cpuSeconds),
    program.nextEvent("end").then(cpuSeconds),
    program.nextEvent("result"),
  ]);
  program.child.stdin!.write(`${JSON.stringify({ seconds })}\n`);
  const [atStart, atEnd, result] = await found;
  return { answers: Number(result.answers), seconds: Number(result.seconds), cpuSeconds: atEnd - atStart };
}

export function writeMessages(file: string, messages: Uint8Array[]): string {
  const parts = messages.flatMap((message) => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(message.length);
    return [length, message];
  });
  writeFileSync(file, Buffer.concat(parts));
  return file;
}
