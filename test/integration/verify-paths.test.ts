import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import fc from "fast-check";
import { VerifyResponseSchema } from "#gen/latchkey/v1/api_key_service_pb";
import { startService, type TestService } from "../support/service.ts";

let service: TestService;
let key: string;
beforeAll(async () => {
  service = await startService();
  ({ key } = await service.client().create({ scopes: ["read"] }));
});
afterAll(() => service.stop());

/** The answer but for its time. */
async function verify(contentType: string, body: Uint8Array) {
  const response = await fetch(`${service.baseUrl}/latchkey.v1.ApiKeyService/Verify`, {
    method: "POST",
    headers: { "content-type": contentType },
    body,
  });
  const bytes = Buffer.from(await response.arrayBuffer());
  if (response.status !== 200) return { status: response.status, error: JSON.parse(bytes.toString()) };
  const answer = fromBinary(VerifyResponseSchema, bytes);
  delete answer.asOf;
  return { status: 200, answer: Buffer.from(toBinary(VerifyResponseSchema, answer)).toString("hex") };
}

function varint(value: bigint): number[] {
  return value < 128n ? [Number(value)] : [Number(value & 127n) | 128, ...varint(value >> 7n)];
}

const tag = (field: number, type: number) => varint(BigInt(field * 8 + type));
const delimited = (field: number, content: Uint8Array) => [
  ...tag(field, 2),
  ...varint(BigInt(content.length)),
  ...content,
];

const bytes = fc.uint8Array({ maxLength: 20 });
const text = fc.oneof(
  fc.constantFrom("", "read", "write", "NOT A SCOPE", "ключ", "x".repeat(200)).map((one) => Buffer.from(one)),
  bytes,
);
const keyText = fc.oneof(
  { weight: 3, arbitrary: fc.constant(0).map(() => Buffer.from(key)) },
  fc.constant(0).map(() => Buffer.from(`${key.slice(0, -1)}é`)),
  text,
);
const huge = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const group = bytes.map((content) => [...tag(9, 3), ...delimited(1, content), ...tag(9, 4)]);

/** One field: as callers send it, or anything else that a field may be, or may not. */
const field = fc.oneof(
  { weight: 4, arbitrary: keyText.map((content) => delimited(1, content)) },
  { weight: 3, arbitrary: text.map((content) => delimited(2, content)) },
  { weight: 2, arbitrary: fc.constantFrom(0n, 1n, 2n).map((value) => [...tag(3, 0), ...varint(value)]) },
  huge.map((value) => [...tag(3, 0), ...varint(value)]),
  // The same number in more bytes than it needs, and in more than any may have.
  fc.integer({ min: 1, max: 11 }).map((extra) => [...tag(3, 0), 0x81, ...Array<number>(extra).fill(0x80), 0]),
  fc.tuple(fc.integer({ min: 1, max: 20 }), huge).map(([number, value]) => [...tag(number, 0), ...varint(value)]),
  fc.tuple(fc.integer({ min: 1, max: 20 }), bytes).map(([number, content]) => delimited(number, content)),
  fc.tuple(fc.constantFrom(1, 2), huge).map(([number, length]) => [...tag(number, 2), ...varint(length)]),
  fc.tuple(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 0, max: 7 })).map(([number, type]) => tag(number, type)),
  group,
  bytes.map((content) => [...content]),
);
const request = fc
  .tuple(fc.array(field, { maxLength: 6 }), fc.oneof({ weight: 4, arbitrary: fc.constant(0) }, fc.nat(10)))
  .map(([fields, cut]) => Uint8Array.from(fields.flat()).slice(0, cut === 0 ? undefined : -cut));

test("whatever bytes are sent as a VerifyRequest, the fast path and Node's own server give the same answer", async () => {
  const statuses = new Set<number>();
  await fc.assert(
    fc.asyncProperty(request, async (body) => {
      // Only spelled as clients spell it is a content type served without Connect.
      const [fast, node] = [await verify("application/proto", body), await verify("Application/Proto", body)];
      statuses.add(fast.status);
      expect(fast).toEqual(node);
    }),
    { numRuns: 1_000 },
  );
  expect([...statuses].sort()).toEqual([200, 400]);
}, 120_000);
