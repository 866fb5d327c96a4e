import { createHash } from "node:crypto";
import type { FieldViolation } from "./errors.ts";

export interface Page<T> {
  items: T[];
  /** Undefined: there is nothing after these. */
  nextToken: string | undefined;
}

const DEFAULT_SIZE = 50;
const MAX_SIZE = 500;
const DIGEST_BYTES = 9;

export function checkPageSize(size: number, violations: FieldViolation[]): number {
  if (size < 0 || size > MAX_SIZE) {
    violations.push({ field: "page_size", description: `must be 0 to ${MAX_SIZE}; 0 means ${DEFAULT_SIZE}` });
  }
  return size === 0 ? DEFAULT_SIZE : size;
}

/** The id of the last item of the page before; undefined: there is none. A token is only good for the search that gave it. */
export function readPageToken(token: string, search: object, violations: FieldViolation[]): string | undefined {
  if (token === "") return undefined;
  const bytes = Buffer.from(token, "base64url");
  const last = bytes.subarray(DIGEST_BYTES).toString("latin1");
  if (/^[0-9A-Za-z]{1,64}$/.test(last) && pageToken(search, last) === token) return last;
  const description = "is not a token that this search gave; leave it out to begin anew";
  violations.push({ field: "page_token", description });
  return undefined;
}

/** Of a page's items together. Clients of gRPC take 4 MiB by default. */
export const MAX_PAGE_BYTES = 3.5 * 1024 * 1024;

/**
 * One item more than the page holds must have been looked for. `bytesOf`: about what an item takes in an answer; a page ends
 * before `MAX_PAGE_BYTES`.
 */
export function pageOf<T extends { id: string }>(
  found: T[],
  size: number,
  search: object,
  bytesOf: (item: T) => number = () => 0,
): Page<T> {
  let bytes = 0;
  const isWithin = (item: T, index: number) => {
    bytes += bytesOf(item);
    return index === 0 || bytes <= MAX_PAGE_BYTES;
  };
  const end = found.slice(0, size).findIndex((item, index) => !isWithin(item, index));
  const items = found.slice(0, end < 0 ? size : end);
  const more = found.length > items.length;
  return { items, nextToken: more ? pageToken(search, items.at(-1)!.id) : undefined };
}

function pageToken(search: object, last: string): string {
  const digest = createHash("sha256").update(JSON.stringify(search)).digest().subarray(0, DIGEST_BYTES);
  return Buffer.concat([digest, Buffer.from(last, "latin1")]).toString("base64url");
}
