import { createHash, hkdfSync } from "node:crypto";
import { KeyError } from "./errors.ts";
import { askedFor, type KeyInput } from "./input.ts";
import type { KeyRecord } from "./record.ts";
import { randomBase62, SECRET_LENGTH } from "./text.ts";

/** A secret that secrets of requests are derived from. At least 32 bytes. */
export interface RequestKey {
  id: string;
  secret: Uint8Array;
}

/** A call that may be repeated, as it is recognised. */
export interface Asked {
  userId: string;
  requestId: string;
  /** Of the request id: the database holds nothing of what a secret is derived from. */
  digest: string;
  /** Of everything else that was asked for. */
  arguments: string;
}

export interface RequestSecrets {
  /** The id of the key that new secrets are derived under. */
  readonly current: string;
  /** The secret of the key `keyId` of this call; undefined when the ring has no key `ringId`. Always the same. */
  derive(asked: Pick<Asked, "userId" | "requestId">, keyId: string, ringId: string): string | undefined;
}

/** How long a request id stands for the key that it made. */
export const REQUEST_REMEMBERED_MS = 24 * 3_600_000;

/** Far more than the 44 bytes that a secret takes on average: to run out of them is less likely than any defect. */
const STREAM_BYTES = 512;

/** node:crypto takes no more. A user id of 256 characters in other scripts alone may have as many. */
const MAX_INFO_BYTES = 1024;

/** `ring`: newest first, at least one. */
export function createRequestSecrets(ring: readonly RequestKey[]): RequestSecrets {
  const byId = new Map(ring.map((key) => [key.id, key]));
  return {
    current: ring[0]!.id,
    derive({ userId, requestId }, keyId, ringId) {
      const key = byId.get(ringId);
      if (key === undefined) return undefined;
      const asked = JSON.stringify(["latchkey key secret", userId, requestId, keyId]);
      const info = Buffer.byteLength(asked) <= MAX_INFO_BYTES ? asked : sha256(asked);
      const stream = Buffer.from(hkdfSync("sha256", key.secret, "", info, STREAM_BYTES));
      let taken = 0;
      return randomBase62(SECRET_LENGTH, (size) => {
        if (taken + size > stream.length) throw new Error("no secret could be derived");
        taken += size;
        return stream.subarray(taken - size, taken);
      });
    },
  };
}

export function askedBy(method: "Create" | "Refresh", userId: string, requestId: string, input: KeyInput): Asked {
  const all = JSON.stringify([method, ...askedFor(input)]);
  return { userId, requestId, digest: sha256(requestId), arguments: sha256(all) };
}

export function isRemembered({ createdAt }: Pick<KeyRecord, "createdAt">, now: Date): boolean {
  return now.getTime() - createdAt.getTime() < REQUEST_REMEMBERED_MS;
}

/** The id was used for another call. */
export function reused(keyId: string): KeyError {
  const message = "This request_id was used within 24 hours for a call that asked for something else.";
  return new KeyError("REQUEST_ID_REUSED", message, { metadata: { key_id: keyId } });
}

export function sha256(text: string): string {
  return createHash("sha256").update(text).digest("base64url");
}
