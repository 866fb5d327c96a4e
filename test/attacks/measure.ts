import { setTimeout as sleep } from "node:timers/promises";
import type { Attack, Size } from "./attacks.ts";
import { type GoodTraffic, goodTraffic, type World } from "./world.ts";

export interface Measured {
  name: string;
  /** What the attack did. */
  did: string;
  good: GoodTraffic;
  /** Of the service, at its most while it was attacked, and before. */
  peakBytes: number;
  beforeBytes: number;
  alive: boolean;
  /** Why the attack got what it must not. */
  fault: string | undefined;
}

const RSS_EVERY_MS = 50;

/** Good traffic beside an attack, and what the attack costs in memory. */
export async function measure(world: World, attack: Attack, size: Size, forMs: number): Promise<Measured> {
  const beforeBytes = world.residentBytes();
  let peakBytes = beforeBytes;
  const watch = setInterval(() => {
    if (world.alive()) peakBytes = Math.max(peakBytes, world.residentBytes());
  }, RSS_EVERY_MS);
  const ended = new AbortController();
  let fault: string | undefined;
  const attacking = attack.run(world, size, ended.signal).catch((error: Error) => {
    fault = error.message;
    return "";
  });
  // It should be in full swing.
  await sleep(forMs / 4);
  const good = await goodTraffic(world, forMs);
  ended.abort();
  const ending = attacking.finally(() => clearInterval(watch));
  // What waits on a connection is told by its end.
  await Promise.race([ending, sleep(1_000)]);
  world.endConnections();
  const did = await ending;
  return { name: attack.name, did, good, peakBytes, beforeBytes, alive: world.alive(), fault };
}
