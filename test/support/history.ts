import { setTimeout as sleep } from "node:timers/promises";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "#gen/google/rpc/error_details_pb";
import { type ApiKeyService, Consistency, Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import type { TestService } from "./service.ts";

type Caller = Client<typeof ApiKeyService>;

/** One Verify: when it began and ended on the monotonic clock, and what came of it. */
export interface Asked {
  key: string;
  strong: boolean;
  beganMs: number;
  endedMs: number;
  /** An outcome's name, or the reason of an RPC error. */
  outcome: string;
  /** Unix milliseconds; undefined for an error. */
  asOfMs: number | undefined;
}

/** What was done to a key: acknowledged at these moments, begun before. */
export interface Life {
  madeMs: number;
  endBeganMs?: number;
  endedMs?: number;
  /** The acknowledgement of the end, as Unix milliseconds. */
  endedWallMs?: number;
}

export async function ask(caller: Caller, key: string, { strong = false } = {}): Promise<Asked> {
  const beganMs = performance.now();
  const consistency = strong ? Consistency.STRONG : Consistency.UNSPECIFIED;
  const { outcome, asOfMs } = await caller.verify({ key, consistency }).then(
    (answer) => ({
      outcome: Outcome[answer.outcome],
      asOfMs: Number(answer.asOf!.seconds) * 1_000 + answer.asOf!.nanos / 1_000_000,
    }),
    (error: unknown) => {
      if (!(error instanceof ConnectError)) throw error;
      const [info] = error.findDetails(ErrorInfoSchema);
      return { outcome: info?.reason ?? Code[error.code], asOfMs: undefined };
    },
  );
  return { key, strong, beganMs, endedMs: performance.now(), outcome, asOfMs };
}

/** Asks again until `wanted` comes; all that was asked. The test's own time limit ends what never comes. */
export async function askUntil(
  caller: Caller,
  key: string,
  wanted: string,
  options: { strong?: boolean } = {},
): Promise<Asked[]> {
  const history: Asked[] = [];
  for (;;) {
    const asked = await ask(caller, key, options);
    history.push(asked);
    if (asked.outcome === wanted) return history;
    await sleep(10);
  }
}

export function ended(life: Life, beganMs: number): Life {
  return { ...life, endBeganMs: beganMs, endedMs: performance.now(), endedWallMs: Date.now() };
}

/**
 * What in a history breaks a promise:
 * - a strong call that began after the acknowledgement of a key's end, a default one that began more than `boundMs` after
 *   it, accepted the key;
 * - an answer that claims, by its `as_of`, to know of the key's end, accepted it;
 * - a key that was made before the call and not ended before it was over was called anything else than valid.
 */
export function brokenPromises(history: Asked[], lives: ReadonlyMap<string, Life>, boundMs: number): string[] {
  const broken: string[] = [];
  for (const { key, strong, beganMs, endedMs, outcome, asOfMs } of history) {
    const life = lives.get(key);
    if (life === undefined) continue;
    const over = life.endedMs ?? Number.POSITIVE_INFINITY;
    if (outcome === "VALID") {
      const lateMs = beganMs - over - (strong ? 0 : boundMs);
      if (lateMs > 0) broken.push(`${strong ? "strong" : "default"}: accepted ${Math.ceil(lateMs)} ms too late`);
      // `as_of` is whole milliseconds, and so is the wall clock.
      if (asOfMs! > (life.endedWallMs ?? Number.POSITIVE_INFINITY)) broken.push("accepted as of a time after its end");
    } else if (["NOT_FOUND", "REVOKED", "EXPIRED", "MALFORMED", "INSUFFICIENT_SCOPE"].includes(outcome)) {
      const good = beganMs > life.madeMs && endedMs < (life.endBeganMs ?? Number.POSITIVE_INFINITY);
      if (good) broken.push(`a good key was called ${outcome}`);
    } else if (outcome !== "DB_UNAVAILABLE" && outcome !== "CONFLICT") broken.push(`answered with ${outcome}`);
  }
  return broken;
}

/** A gauge of the service, as its operators see it. */
export async function gauge(service: TestService, name: string): Promise<number> {
  const text = await (await fetch(`http://${service.server.opsAddress}/metrics`)).text();
  const line = text.split("\n").find((candidate) => candidate.startsWith(`${name} `));
  if (line === undefined) throw new Error(`there is no ${name}`);
  return Number(line.split(" ")[1]);
}

export async function untilGauge(service: TestService, name: string, holds: (value: number) => boolean): Promise<void> {
  while (!holds(await gauge(service, name))) await sleep(20);
}
