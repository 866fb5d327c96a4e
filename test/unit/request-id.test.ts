import { createHmac } from "node:crypto";
import { expect, test } from "@jest/globals";
import { askedBy, createRequestSecrets } from "../../src/keys/request-id.ts";

const keyOf = (id: string, fill: number) => ({ id, secret: Buffer.alloc(32, fill) });
const asked = { userId: "alice", requestId: "r".repeat(22) };

test("a secret is drawn uniformly from HKDF-SHA-256 of the request key, the user, the request id and the key id", () => {
  const { derive } = createRequestSecrets([keyOf("k1", 1)]);
  const info = JSON.stringify(["latchkey key secret", "alice", asked.requestId, "0000000000000000"]);
  // RFC 5869, step by step.
  const extracted = createHmac("sha256", Buffer.alloc(32)).update(Buffer.alloc(32, 1)).digest();
  const blocks: Buffer[] = [];
  for (let count = 1; count <= 16; count += 1) {
    const before = blocks.at(-1) ?? Buffer.alloc(0);
    const block = createHmac("sha256", extracted)
      .update(before)
      .update(info)
      .update(Buffer.from([count]))
      .digest();
    blocks.push(block);
  }
  const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  const expected = [...Buffer.concat(blocks)].filter((byte) => byte < 248).map((byte) => alphabet[byte % 62]);
  expect(derive(asked, "0000000000000000", "k1")).toBe(expected.slice(0, 43).join(""));
});

test("another user, request id, key id or request key makes another secret, and none is favoured", () => {
  const { derive } = createRequestSecrets([keyOf("k2", 2), keyOf("k1", 1)]);
  const secrets = [
    derive(asked, "0000000000000000", "k1"),
    derive(asked, "0000000000000000", "k2"),
    derive(asked, "0000000000000001", "k1"),
    derive({ ...asked, userId: "alice2" }, "0000000000000000", "k1"),
    derive({ ...asked, requestId: "s".repeat(22) }, "0000000000000000", "k1"),
    derive({ userId: 'alice","x', requestId: asked.requestId }, "0000000000000000", "k1"),
  ];
  expect(new Set(secrets).size).toBe(secrets.length);
  for (const secret of secrets) expect(secret).toMatch(/^[0-9A-Za-z]{43}$/);
  const counts = new Map<string, number>();
  for (let index = 0; index < 4_000; index += 1) {
    for (const digit of derive(asked, String(index), "k1")!) counts.set(digit, (counts.get(digit) ?? 0) + 1);
  }
  // 172,000 digits: 2,774 of each, and a bias of modulo 256 would give the first eight 3,360.
  expect(counts.size).toBe(62);
  for (const count of counts.values()) expect(Math.abs(count - 2_774)).toBeLessThan(350);
});

test("the longest user id in another script has its secrets too", () => {
  const { derive } = createRequestSecrets([keyOf("k1", 1)]);
  const longest = (first: string) => ({ userId: first + "\u{1f511}".repeat(255), requestId: "r".repeat(64) });
  const [one, other] = [derive(longest("a"), "0", "k1"), derive(longest("b"), "0", "k1")];
  expect(one).toMatch(/^[0-9A-Za-z]{43}$/);
  expect(other).not.toBe(one);
});

test("under a request key that is not in the ring nothing can be derived", () => {
  expect(createRequestSecrets([keyOf("k2", 2)]).derive(asked, "0000000000000000", "k1")).toBeUndefined();
});

test("calls count as the same when they would make the same key", () => {
  const id = "r".repeat(22);
  const digest = (fields: object, method: "Create" | "Refresh" = "Create") =>
    askedBy(method, "alice", id, { scopes: ["read"], ...fields }).arguments;
  const ttl = (seconds: bigint, nanos = 0) => ({ lifetime: { case: "ttl" as const, value: { seconds, nanos } } });
  expect(digest({ scopes: ["b", "a", "b"], name: " n " })).toBe(digest({ scopes: ["a", "b"], name: "n" }));
  const all = [
    digest({}),
    digest({}, "Refresh"),
    digest({ name: "n" }),
    digest({ scopes: ["write"] }),
    digest(ttl(5n)),
    digest(ttl(5n, 1)),
    digest({ lifetime: { case: "expiresAt", value: { seconds: 5n, nanos: 0 } } }),
    digest({ gracePeriod: { seconds: 5n, nanos: 0 } }),
  ];
  expect(new Set(all).size).toBe(all.length);
});
