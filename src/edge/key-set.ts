import { createLocalJWKSet, errors, type JSONWebKeySet, type JWTVerifyGetKey } from "jose";
import { KeyError } from "../keys/errors.ts";

export interface KeySetOptions {
  url: string;
  /** How long the last one that could be fetched is good without another. */
  maxAgeMs: number;
  /** Called at each failed fetch. `ageMs`: how old the set is that is used meanwhile; undefined: there is none that is good. */
  onFailed(error: unknown, ageMs: number | undefined): void;
  /** Called at the first success after failures. */
  onRecovered(): void;
  /** Called when keys are not what they were: what was found good by an earlier set may not be. */
  onChanged(): void;
  /** Monotonic milliseconds. */
  clockMs?: () => number;
}

/** The keys of a set as they were fetched at one time. */
interface Fetched {
  getKey: JWTVerifyGetKey;
  /** Counts fetches that succeeded. */
  number: number;
}

export interface KeySet {
  /** The last good set; waits for the first. KEY_SET_UNAVAILABLE where there is none, or it is too old. */
  current(): Promise<Fetched>;
  /**
   * A set that is newer than `than`, for a token that `than` has no key for. Undefined: there is none, since it was fetched
   * a moment ago. KEY_SET_UNAVAILABLE where the last fetch failed.
   */
  newer(than: Fetched): Promise<Fetched | undefined>;
  /** Whether an earlier set had a key of this id which the last good one has no more. */
  wasTakenOut(kid: string): boolean;
  /** Of the last good set; Infinity before the first. */
  readonly ageMs: number;
  stop(): void;
}

/** Between two fetches, however many tokens ask for one. */
const COOLDOWN_MS = 5_000;
const REFETCH_MS = 300_000;
const FETCH_TIMEOUT_MS = 3_000;
/** Ids of keys that were taken out are remembered, up to so many. */
const MAX_TAKEN_OUT = 1_000;
const MAX_BYTES = 1024 * 1024;

/** A key set (RFC 7517) that is fetched again and again; between successes the last good one serves on. */
export function createKeySet({
  url,
  maxAgeMs,
  onFailed,
  onRecovered,
  onChanged,
  clockMs = () => performance.now(),
}: KeySetOptions): KeySet {
  let last: (Fetched & { text: string; kids: Set<string | undefined>; atMs: number }) | undefined;
  const takenOut = new Set<string | undefined>();
  let failure: unknown;
  let failures = 0;
  let startedMs = Number.NEGATIVE_INFINITY;
  let running: Promise<void> | undefined;
  let timer: NodeJS.Timeout | undefined;
  const stopping = new AbortController();

  const ageMs = () => (last === undefined ? Number.POSITIVE_INFINITY : clockMs() - last.atMs);
  const good = () => (ageMs() <= maxAgeMs ? last : undefined);

  async function attempt(): Promise<void> {
    // As of the request's beginning: what it brings may be no newer.
    const atMs = clockMs();
    try {
      const text = await fetchText(url, stopping.signal);
      const keys = JSON.parse(text);
      const getKey = createLocalJWKSet(keys);
      const kids = new Set((keys as JSONWebKeySet).keys.map(({ kid }) => kid));
      const before = last;
      last = { getKey, text, kids, atMs, number: (before?.number ?? 0) + 1 };
      for (const kid of before?.kids ?? []) if (!kids.has(kid)) remember(takenOut, kid);
      for (const kid of kids) takenOut.delete(kid);
      if (failures > 0) onRecovered();
      failures = 0;
      if (before !== undefined && before.text !== text) onChanged();
    } catch (error) {
      if (stopping.signal.aborted) return;
      failure = error;
      failures += 1;
      onFailed(error, good() && ageMs());
    }
  }

  /** One at a time. Undefined: the last one is too young for another. */
  function refetch(): Promise<void> | undefined {
    if (running !== undefined) return running;
    if (clockMs() - startedMs < COOLDOWN_MS || stopping.signal.aborted) return undefined;
    startedMs = clockMs();
    clearTimeout(timer);
    running = attempt().finally(() => {
      running = undefined;
      schedule();
    });
    return running;
  }

  // With jitter, so that processes which were started together don't ask together for ever.
  function schedule(): void {
    if (stopping.signal.aborted) return;
    const regularMs = Math.min(REFETCH_MS, maxAgeMs / 2);
    const waitMs = failures === 0 ? regularMs : Math.min(COOLDOWN_MS * 2 ** (failures - 1), regularMs);
    timer = setTimeout(
      () => refetch() ?? schedule(),
      Math.max(COOLDOWN_MS, waitMs * (0.75 + Math.random() / 2)),
    ).unref();
  }
  void refetch();

  return {
    async current() {
      if (good() === undefined) await refetch();
      const set = good();
      if (set === undefined) throw unavailable(failure);
      return set;
    },
    async newer(than) {
      await refetch();
      const set = good();
      if (set !== undefined && set.number > than.number) return set;
      if (failures > 0) throw unavailable(failure);
      return undefined;
    },
    wasTakenOut: (kid) => takenOut.has(kid),
    get ageMs() {
      return ageMs();
    },
    stop() {
      stopping.abort();
      clearTimeout(timer);
    },
  };
}

async function fetchText(url: string, stopping: AbortSignal): Promise<string> {
  const signal = AbortSignal.any([stopping, AbortSignal.timeout(FETCH_TIMEOUT_MS)]);
  const headers = { accept: "application/json, application/jwk-set+json" };
  // A redirect would let whoever answers for one address name another.
  const response = await fetch(url, { signal, redirect: "manual", headers });
  if (response.status !== 200) throw new Error(`the answer's status was ${response.status}, not 200 OK`);
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length;
    if (bytes > MAX_BYTES) throw new Error(`the answer has more than ${MAX_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

function unavailable(cause: unknown): KeyError {
  const message = "The key set that tokens are checked with can't be fetched. Try again.";
  return new KeyError("KEY_SET_UNAVAILABLE", message, { retryAfterMs: COOLDOWN_MS, cause });
}

function remember(kids: Set<string | undefined>, kid: string | undefined): void {
  kids.add(kid);
  if (kids.size > MAX_TAKEN_OUT) kids.delete(kids.values().next().value);
}

/** Whether another key might have verified the token. */
export function mayNeedAnotherKey(error: unknown): boolean {
  return error instanceof errors.JWKSNoMatchingKey || error instanceof errors.JWSSignatureVerificationFailed;
}
