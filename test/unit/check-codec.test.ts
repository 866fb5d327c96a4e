import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { expect, test } from "@jest/globals";
import fc from "fast-check";
import { CheckRequestSchema } from "#gen/envoy/service/auth/v3/external_auth_pb";
import { createIdentity } from "../../src/edge/answer.ts";
import { createCheckReader, createCheckWriter } from "../../src/edge/codec/check.ts";
import { scopesIn } from "../../src/edge/gateway/decide.ts";
import { noteHeader, noteQuery, nothingPresented } from "../../src/edge/gateway/presented-key.ts";
import type { Entry } from "../../src/keys/verify/view.ts";

const SOURCES = {
  ...{ bearer: true, headers: ["x-api-key", "api-key"], queries: ["key"], prefixes: ["lk_"] },
  identity: createIdentity(["plan"]),
};
const reader = createCheckReader(SOURCES);

/** As the walk takes text: one character a byte. */
const bytesOf = (text: string) => Buffer.from(text, "utf8").toString("latin1");

/** The same by the generic codec. */
function readGenerically(bytes: Uint8Array) {
  const attributes = fromBinary(CheckRequestSchema, bytes).attributes;
  const http = attributes?.request?.http;
  const presented = nothingPresented();
  for (const [name, value] of Object.entries(http?.headers ?? {})) {
    noteHeader(presented, SOURCES, bytesOf(name), bytesOf(value));
  }
  noteQuery(presented, SOURCES, bytesOf(http?.path ?? ""));
  for (const { key, value, rawValue } of http?.headerMap?.headers ?? []) {
    const text = rawValue.length > 0 ? Buffer.from(rawValue).toString("latin1") : bytesOf(value);
    noteHeader(presented, SOURCES, bytesOf(key), text);
  }
  return { presented, requiredScopes: scopesIn(bytesOf(attributes?.contextExtensions["latchkey-scopes"] ?? "")) };
}

const interesting = fc.constantFrom(
  ...[
    "authorization",
    "Authorization",
    "x-api-key",
    "api-key",
    "x-latchkey-user",
    "x_latchkey_user",
    "X-Latchkey_Name",
  ],
  ...["x-latchkey-", "x-latchkez-user", "accept", ":path", "", "x", "x.latchkey.user", "ключ"],
);
const name = fc.oneof({ weight: 3, arbitrary: interesting }, fc.string({ unit: "binary", maxLength: 20 }));
const value = fc.oneof(
  fc.constantFrom("Bearer lk_a", "bearer  lk_b ", "Bearer", "Basic x", "lk_c", " lk_d", "a,b", "Basic a, Bearer b", ""),
  fc.string({ unit: "binary", maxLength: 300 }),
);
const path = fc.constantFrom("/", "/?key=lk_q", "/?a=1&key=lk_q&k%65y=lk_r#key=x", "/?key", "/?%zz=1&key=%zz");
const text = fc.string({ unit: "binary", maxLength: 200 });
const scopes = fc.constantFrom("read", "read write", "read,write", "", " ", "admin");
const peer = fc.record({ service: text, principal: text, certificate: text, labels: fc.dictionary(text, text) });
/** Fields that the subset leaves out, of every type. */
const unknown = fc.array(
  fc.oneof(
    fc
      .uint8Array({ maxLength: 100 })
      .map((content) => ({ no: 20, wireType: 2, data: Uint8Array.of(content.length, ...content) })),
    fc.constantFrom(
      { no: 300, wireType: 0, data: Uint8Array.of(0x81, 0x80, 0x01) },
      { no: 21, wireType: 1, data: new Uint8Array(8) },
      { no: 22, wireType: 5, data: new Uint8Array(4) },
    ),
  ),
  { maxLength: 3 },
);

const request = fc
  .record({
    ...{ source: peer, path, id: text, body: text, unknown, size: fc.bigInt({ min: -1n, max: 2n ** 62n }) },
    headers: fc.dictionary(name, value, { maxKeys: 25 }),
    headerMap: fc.array(fc.record({ key: name, value, rawValue: fc.uint8Array({ maxLength: 40 }) }), { maxLength: 6 }),
    contextExtensions: fc.dictionary(fc.oneof(fc.constant("latchkey-scopes"), text), fc.oneof(scopes, text), {
      maxKeys: 3,
    }),
  })
  .map(({ source, headers, headerMap, contextExtensions, unknown: $unknown, ...rest }) => {
    const http = { ...rest, headers, headerMap: { headers: headerMap } };
    const made: MessageInitShape<typeof CheckRequestSchema> = {
      attributes: { source, destination: source, request: { time: { seconds: 9n }, http }, contextExtensions },
    };
    const message = create(CheckRequestSchema, made);
    message.attributes!.$unknown = $unknown;
    message.attributes!.request!.http!.$unknown = $unknown;
    for (const header of message.attributes!.request!.http!.headerMap!.headers) header.$unknown = $unknown;
    return toBinary(CheckRequestSchema, message);
  });

test("whatever stands in a CheckRequest, the walk finds in it what the generic codec does", () => {
  let found = 0;
  fc.assert(
    fc.property(request, (bytes) => {
      const read = reader.read(Buffer.from(bytes));
      if (read.presented.key !== "") found += 1;
      expect(read).toEqual(readGenerically(bytes));
    }),
    { numRuns: 2_000 },
  );
  expect(found).toBeGreaterThan(100);
});

test("whatever bytes come, the walk ends, and what is cut off or no message is told apart from a CheckRequest", () => {
  fc.assert(
    fc.property(request, fc.nat(), fc.nat(255), (bytes, where, byte) => {
      const changed = Buffer.from(bytes);
      changed[where % changed.length] = byte;
      expect(reader.read(changed)).toHaveProperty("presented");
      const cut = changed.subarray(0, where % changed.length);
      expect(reader.read(cut)).toHaveProperty("presented");
    }),
    { numRuns: 2_000 },
  );
  const whole = Buffer.from(toBinary(CheckRequestSchema, create(CheckRequestSchema, { attributes: { source: {} } })));
  expect(reader.read(whole).requiredScopes).toEqual([]);
  for (const broken of [whole.subarray(0, -1), Buffer.of(0xff), Buffer.of(0x0a, 0x05, 0x0a), Buffer.alloc(12, 0x80)]) {
    expect(reader.read(broken).requiredScopes).toBeUndefined();
  }
});

test("text that is no UTF-8 is read past, and where the key is it spoils no other", () => {
  const message = create(CheckRequestSchema, {
    attributes: { request: { http: { headers: { "x-api-key": "lk_a", cookie: "????" }, body: "????" } } },
  });
  const bytes = Buffer.from(toBinary(CheckRequestSchema, message));
  for (let at = bytes.indexOf("????"); at >= 0; at = bytes.indexOf("????")) bytes.fill(0xff, at, at + 4);
  expect(() => fromBinary(CheckRequestSchema, bytes)).toThrow();
  expect(reader.read(bytes)).toMatchObject({ presented: { key: "lk_a", count: 1 }, requiredScopes: [] });
});

test("no more answers are kept than is said, and with them no more entries: the view's own limit would be none otherwise", () => {
  const writer = createCheckWriter(SOURCES, 4);
  const presented = nothingPresented();
  const entries = Array.from({ length: 9 }, (_, index) => entryOf(`key${index}`));
  const answers = entries.map((entry) => writer.allowed(entry, presented));
  const kept = entries.filter((entry, index) => writer.allowed(entry, presented) === answers[index]).length;
  expect(writer.allowed(entries[8]!, presented)).toBe(writer.allowed(entries[8]!, presented));
  expect(kept).toBeLessThanOrEqual(4);
});

function entryOf(id: string): Entry {
  const absent = { name: undefined, expiresAt: undefined, retiresAt: undefined, revokedAt: undefined };
  return {
    ...{ ...absent, id, userId: "alice", prefix: "lk", scopes: ["read"], state: "active", createdAt: 0, rev: 1 },
    ...{
      lastUsedAt: undefined,
      revocationReason: undefined,
      metadata: undefined,
      suspended: undefined,
      revocationCause: undefined,
      changesAtMs: undefined,
      usedS: 0,
    },
    ...{ digests: undefined, provenDigest: undefined },
    ...{ encoded: undefined, encodedJson: undefined, encodedState: undefined },
  };
}
