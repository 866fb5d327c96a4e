import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { mutate } from "./mutate.ts";
import { createRandom, pick } from "./random.ts";

export interface FuzzTarget {
  readonly name: string;
  /** Well-formed inputs, which changes are made to. */
  readonly seeds: readonly Buffer[];
  /** Throws or rejects when something that must hold does not. */
  run(input: Buffer): void | Promise<void>;
  /** After all runs, and again each thousand. */
  check?(): Promise<void>;
  stop?(): Promise<void>;
}

export interface Failure {
  target: string;
  error: unknown;
  input: Buffer;
  /** Where the input was put, as small as it still fails. */
  file: string;
}

export interface FuzzOptions {
  seed: number;
  goOn: (runs: number) => boolean;
  /** Puts a failing input somewhere, and says where. Default: into the corpus. */
  keep?: (target: string, input: Buffer) => string;
}

const CORPUS = "test/fuzz/corpus";
const CHECK_EVERY = 1_000;

/** Inputs that once failed. */
export function readCorpus(target: string): Buffer[] {
  const directory = join(CORPUS, target);
  if (!existsSync(directory)) return [];
  return readdirSync(directory)
    .sort()
    .map((file) => readFileSync(join(directory, file)));
}

/**
 * Runs the seeds and the corpus, then changed ones for as long as `goOn` says; the same ones for the same `seed`. Returns how
 * many inputs there were, or the first failure, whose input joins the corpus.
 */
export async function fuzz(
  target: FuzzTarget,
  { seed, goOn, keep = keepInCorpus }: FuzzOptions,
): Promise<number | Failure> {
  const random = createRandom(seed);
  const known = [...target.seeds, ...readCorpus(target.name)];
  let runs = 0;
  const attempt = async (input: Buffer): Promise<Failure | undefined> => {
    runs += 1;
    const error = await failureOf(target, input);
    if (error === undefined) return undefined;
    const least = await minimise(target, input);
    return { target: target.name, error, input: least, file: keep(target.name, least) };
  };
  for (const input of known) {
    const failure = await attempt(input);
    if (failure !== undefined) return failure;
  }
  while (goOn(runs)) {
    const failure = await attempt(mutate(pick(random, known), random, known));
    if (failure !== undefined) return failure;
    if (runs % CHECK_EVERY === 0) await target.check?.();
  }
  await target.check?.();
  return runs;
}

async function failureOf(target: FuzzTarget, input: Buffer): Promise<unknown> {
  try {
    await target.run(input);
    return undefined;
  } catch (error) {
    return error ?? new Error("failed with nothing");
  }
}

const MAX_TRIES = 400;

/** Leaves out pieces for as long as it still fails. */
async function minimise(target: FuzzTarget, input: Buffer): Promise<Buffer> {
  let least = input;
  let tries = 0;
  for (let size = Math.ceil(input.length / 2); size >= 1 && tries < MAX_TRIES; size = Math.floor(size / 2)) {
    for (let at = 0; at < least.length && tries < MAX_TRIES; tries += 1) {
      const shorter = Buffer.concat([least.subarray(0, at), least.subarray(at + size)]);
      if ((await failureOf(target, shorter)) !== undefined) least = shorter;
      else at += size;
    }
  }
  return least;
}

function keepInCorpus(target: string, input: Buffer): string {
  const directory = join(CORPUS, target);
  mkdirSync(directory, { recursive: true });
  const file = join(directory, createHash("sha256").update(input).digest("hex").slice(0, 16));
  writeFileSync(file, input);
  return file;
}
