import type { Origin } from "./audit/entry.ts";
import { endLive } from "./caller.ts";
import { checked, KeyError } from "./errors.ts";
import { checkEnding } from "./policy.ts";
import type { KeyStore } from "./ports.ts";
import type { Ending, KeyRecord } from "./record.ts";
import type { VerifyKey } from "./verify/verify.ts";

/** Calls at once, in a process: strangers may make any number, and none of them is to take what Verify needs. */
const MAX_AT_ONCE = 32;

export interface Ended {
  record: KeyRecord;
  /** False: it had ended before. */
  wasLive: boolean;
}

/**
 * Ends the key that its caller holds: the key is its own proof, and needs no other. Whatever is no key of this service is
 * KEY_NOT_FOUND, in the time that Verify takes to refuse it.
 */
export type RevokePresented = (
  origin: Origin | undefined,
  key: string,
  ending: Ending,
  timeoutMs: number,
) => Promise<Ended>;

export function createRevokePresented(verify: VerifyKey, store: KeyStore): RevokePresented {
  let running = 0;

  async function run(origin: Origin | undefined, key: string, ending: Ending, timeoutMs: number): Promise<Ended> {
    checked((violations) => checkEnding(ending, violations));
    const deadlineMs = performance.now() + timeoutMs;
    const { entry } = await verify({ key, requiredScopes: [], strong: false, timeoutMs });
    if (entry === undefined) throw unknownKey();
    const { id, userId } = entry;
    const ended = await endLive(store, { origin }, "RevokeByPresentedKey", { id, userId }, ending, deadlineMs);
    if (ended !== undefined) return { record: ended, wasLive: true };
    const record = await store.findById(id, deadlineMs);
    if (record === undefined) throw unknownKey();
    return { record, wasLive: false };
  }

  return async (...asked) => {
    if (running >= MAX_AT_ONCE) {
      const message = "Too many keys are being revoked by who presents them. Nothing was done; ask again.";
      throw new KeyError("OVERLOADED", message, { retryAfterMs: 1_000 });
    }
    running += 1;
    try {
      return await run(...asked);
    } finally {
      running -= 1;
    }
  };
}

function unknownKey(): KeyError {
  return new KeyError("KEY_NOT_FOUND", "This is no key that was made here.");
}
