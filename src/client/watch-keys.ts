import { setTimeout as sleep } from "node:timers/promises";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import type { ApiKeyService, KeyChange, WatchResponse } from "#gen/latchkey/v1/api_key_service_pb";

export interface WatchKeysOptions {
  /** A key changed: forget what is kept of it. The same change may come twice. */
  onChange: (change: KeyChange) => void;
  /** Every change acknowledged up to `asOf`, by the service's clock, has come. */
  onHeartbeat: (asOf: Date) => void;
  /** Changes may have been missed: forget everything. */
  onRestart: (asOf: Date) => void;
  /** The stream broke, and will be opened again after a while. For a log. */
  onInterrupted?: (error: ConnectError) => void;
  /** Ends the watch. */
  signal: AbortSignal;
  /** A stream that says nothing for this long is given up for another. Milliseconds; default: 5,000. Heartbeats come four times in
   * the service's `LATCHKEY_MAX_STALENESS`. */
  silenceMs?: number;
}

const FIRST_BACKOFF_MS = 50;
const MAX_BACKOFF_MS = 5_000;

/** Codes that no repetition will change. */
const FINAL = new Set([Code.Unauthenticated, Code.PermissionDenied, Code.InvalidArgument, Code.Unimplemented]);

/**
 * Follows the changes of keys, so that answers of Verify can be kept, and goes on where it was when the stream breaks: by
 * its token, at whatever process of the service answers, with a backoff of 50 ms to 5 s with jitter. Resolves when
 * `signal` is aborted; rejects with a ConnectError that trying again would not change, such as UNAUTHENTICATED.
 *
 * To keep answers safely, with `boundMs` the longest that a revoked key may go on being accepted:
 * - Call Verify with `CONSISTENCY_STRONG` for what is to be kept, and keep an answer only if the call began after the first
 *   heartbeat and after the last restart, and no change of the key has come since it began. (Another process may
 *   answer a weaker call from before a change that has come here already; nothing would correct that.)
 * - Forget a key when a change of it comes, and everything at a restart.
 * - Answer from what is kept only while the last `asOf` is younger than `boundMs`, less what your clock may differ from the
 *   service's. Otherwise ask Verify.
 * - Time ends keys without a message: mind `expires_at` and `retires_at` yourself.
 * - Keep no key as you were given it, but a digest; and keep OUTCOME_NOT_FOUND by the digest of the whole key.
 */
export async function watchKeys(client: Client<typeof ApiKeyService>, options: WatchKeysOptions): Promise<void> {
  const { signal, silenceMs = 5_000, onInterrupted = () => {} } = options;
  let resumeToken = "";
  for (let failures = 0; !signal.aborted; failures += 1) {
    const attempt = new AbortController();
    const giveUp = () => attempt.abort(new ConnectError(`nothing was heard for ${silenceMs} ms`, Code.Unavailable));
    const end = () => attempt.abort();
    signal.addEventListener("abort", end);
    const timer = setTimeout(giveUp, silenceMs);
    try {
      // 0: the client's own deadline for calls is not meant for a stream.
      for await (const message of client.watch({ resumeToken }, { signal: attempt.signal, timeoutMs: 0 })) {
        timer.refresh();
        failures = 0;
        emit(message, options);
        // Only now: what was not taken in must come again.
        resumeToken = message.resumeToken;
      }
      throw new ConnectError("the stream ended", Code.Unavailable);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ConnectError)) throw error;
      if (FINAL.has(error.code)) throw error;
      onInterrupted(error);
    } finally {
      clearTimeout(timer);
      attempt.abort();
      signal.removeEventListener("abort", end);
    }
    const backoffMs = Math.min(FIRST_BACKOFF_MS * 2 ** failures, MAX_BACKOFF_MS) * (0.5 + Math.random() / 2);
    await sleep(backoffMs, undefined, { signal }).catch(() => {});
  }
}

function emit({ event }: WatchResponse, { onChange, onHeartbeat, onRestart }: WatchKeysOptions): void {
  if (event.case === "change") onChange(event.value);
  else if (event.case === "heartbeat") onHeartbeat(timestampDate(event.value.asOf!));
  else if (event.case === "restart") onRestart(timestampDate(event.value.asOf!));
  // A kind of message that this client does not know: only forgetting everything is safe.
  else onRestart(new Date(0));
}
