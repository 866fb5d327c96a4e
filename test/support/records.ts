import type { KeyRecord } from "../../src/keys/record.ts";

/** A record that holds, with no secret behind it; `id` may be shorter than a real one. */
export function recordOf(id: string, rev = 1, fields: Partial<KeyRecord> = {}): KeyRecord {
  return {
    id,
    userId: `user of ${id}`,
    prefix: "lk",
    scopes: ["read"],
    state: "active",
    createdAt: new Date(0),
    secretHash: "$argon2id$",
    rev,
    ...fields,
  };
}

/** A promise that is settled from outside. */
export function deferred<T>(): { promise: Promise<T>; resolve: (value: T) => void; reject: (error: unknown) => void } {
  let resolve: (value: T) => void = () => {};
  let reject: (error: unknown) => void = () => {};
  const promise = new Promise<T>((onResolve, onReject) => {
    resolve = onResolve;
    reject = onReject;
  });
  return { promise, resolve, reject };
}

/** A clock that stands still until it is moved. */
export function stillClock(nowMs = 0): { nowMs: () => number; pass: (ms: number) => void } {
  let current = nowMs;
  return {
    nowMs: () => current,
    pass: (ms) => {
      current += ms;
    },
  };
}
