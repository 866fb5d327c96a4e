import { createHash } from "node:crypto";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
import { type ApiKeyService, Consistency, type Outcome, watchKeys } from "../../src/client/index.ts";

export interface CachingClient {
  /** From what is kept; undefined: Verify must be asked. */
  recall(key: string): Outcome | undefined;
  /** Asks Verify, and keeps the answer where the rules allow it. */
  ask(key: string): Promise<Outcome>;
  readonly restarts: number;
  readonly changes: number;
  stop(): Promise<void>;
}

/** Keeps answers by the rules that `watchKeys` states. `verifier` and `watcher` may reach different processes. */
export function startCachingClient(parts: {
  verifier: Client<typeof ApiKeyService>;
  watcher: Client<typeof ApiKeyService>;
  boundMs: number;
  silenceMs?: number;
}): CachingClient {
  const { verifier, watcher, boundMs, silenceMs } = parts;
  const kept = new Map<string, { keyId: string; outcome: Outcome; endsMs: number }>();
  /** Changes are numbered, so that a call knows what was told since it began. */
  const changedAt = new Map<string, number>();
  let told = 0;
  let restartedAt = 0;
  let asOfMs = Number.NEGATIVE_INFINITY;
  let restarts = 0;
  const digest = (key: string) => createHash("sha256").update(key).digest("base64");
  const idOf = (key: string) => key.split("_").at(-2) ?? "";
  const stopping = new AbortController();

  const watching = watchKeys(watcher, {
    signal: stopping.signal,
    ...(silenceMs !== undefined && { silenceMs }),
    onChange({ keyId }) {
      told += 1;
      changedAt.set(keyId, told);
      for (const [name, one] of kept) if (one.keyId === keyId) kept.delete(name);
    },
    onHeartbeat(asOf) {
      asOfMs = asOf.getTime();
    },
    onRestart() {
      told += 1;
      restarts += 1;
      restartedAt = told;
      kept.clear();
      asOfMs = Number.NEGATIVE_INFINITY;
    },
  });

  return {
    recall(key) {
      const nowMs = Date.now();
      const one = kept.get(digest(key));
      if (one === undefined || nowMs - asOfMs > boundMs) return undefined;
      return nowMs < one.endsMs ? one.outcome : undefined;
    },
    async ask(key) {
      const began = told;
      const watched = asOfMs > Number.NEGATIVE_INFINITY;
      const { outcome, apiKey } = await verifier.verify({ key, consistency: Consistency.STRONG });
      const keyId = idOf(key);
      if (watched && restartedAt <= began && (changedAt.get(keyId) ?? 0) <= began) {
        const ends = [apiKey?.expiresAt, apiKey?.retiresAt].map((end) =>
          end ? timestampMs(end) : Number.POSITIVE_INFINITY,
        );
        kept.set(digest(key), { keyId, outcome, endsMs: Math.min(...ends) });
      }
      return outcome;
    },
    get restarts() {
      return restarts;
    },
    get changes() {
      return told;
    },
    async stop() {
      stopping.abort();
      await watching;
    },
  };
}
