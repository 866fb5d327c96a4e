import assert from "node:assert";
import { gunzipSync, gzipSync } from "node:zlib";
import { type DescMessage, fromBinary, fromJsonString, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { CheckRequestSchema } from "#gen/envoy/service/auth/v3/external_auth_pb";
import {
  BatchVerifyRequestSchema,
  Consistency,
  VerifyRequestSchema,
  VerifyStreamRequestSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import { createIdentity } from "../../../src/edge/answer.ts";
import { createCheckReader } from "../../../src/edge/codec/check.ts";
import {
  decodeBatch,
  decodeStreamed,
  decodeVerify,
  decodeVerifyJson,
  isPlain,
} from "../../../src/edge/codec/verify.ts";
import { scopesIn } from "../../../src/edge/gateway/decide.ts";
import {
  isAmbiguous,
  noteHeader,
  noteQuery,
  nothingPresented,
  parametersOf,
} from "../../../src/edge/gateway/presented-key.ts";
import { createAuthenticator } from "../../../src/edge/tokens.ts";
import { createHpackDecoder, encodeFields, HpackError } from "../../../src/fastpath/http2/hpack.ts";
import { messageIn } from "../../../src/fastpath/unary.ts";
import { FORMATS } from "../../../src/fastpath/wire-format.ts";
import { KeyError } from "../../../src/keys/errors.ts";
import { formatKey, parseAnyKey } from "../../../src/keys/text.ts";
import type { VerifyInput } from "../../../src/keys/verify/verify.ts";
import type { FuzzTarget } from "../fuzz.ts";

const KEY = formatKey({ prefix: "lk", id: "0123456789abcdef", secret: "s".repeat(43) });
const OTHER_KEY = formatKey({ prefix: "acme_live", id: "A".repeat(16), secret: "Z".repeat(43) });
const text = (...texts: string[]) => texts.map((one) => Buffer.from(one, "latin1"));

/** What the generic codec makes of it; undefined: it refuses. */
function generically<T>(decode: () => T): T | undefined {
  try {
    return decode();
  } catch {
    return undefined;
  }
}

const keyParser: FuzzTarget = {
  name: "key",
  seeds: text(KEY, OTHER_KEY),
  run(input) {
    for (const candidate of [input.toString("latin1"), input.toString("utf8")]) {
      const parsed = parseAnyKey(candidate);
      if (parsed === undefined) continue;
      assert.equal(formatKey(parsed), candidate);
      assert.match(candidate, /^[0-9A-Za-z][0-9A-Za-z_]*$/);
    }
  },
};

function sameInput(input: VerifyInput, message: MessageShape<typeof VerifyRequestSchema> | undefined): void {
  assert(message !== undefined, "the generic codec refuses what was decoded by hand");
  const { key, requiredScopes, strong } = input;
  assert.deepEqual(
    { key, requiredScopes: [...requiredScopes], strong },
    { key: message.key, requiredScopes: message.requiredScopes, strong: message.consistency === Consistency.STRONG },
  );
}

const verifyMessage = { key: KEY, requiredScopes: ["read", "write:all"], consistency: Consistency.STRONG };
const verifyBytes = Buffer.from(toBinary(VerifyRequestSchema, message(VerifyRequestSchema, verifyMessage)));

function message<D extends DescMessage>(schema: D, fields: object): MessageShape<D> {
  return fromJsonString(schema, JSON.stringify(fields));
}

const verify: FuzzTarget = {
  name: "verify",
  seeds: [
    verifyBytes,
    Buffer.from(toBinary(VerifyRequestSchema, message(VerifyRequestSchema, { key: "\u00e9", consistency: 1 }))),
  ],
  run(input) {
    const decoded = decodeVerify(input, 0, input.length);
    if (decoded !== undefined && isPlain(decoded)) {
      sameInput(
        decoded,
        generically(() => fromBinary(VerifyRequestSchema, input)),
      );
    }
    // Within a larger buffer nothing beyond the ends is looked at.
    const within = Buffer.concat([verifyBytes, input, verifyBytes]);
    assert.deepEqual(decodeVerify(within, verifyBytes.length, verifyBytes.length + input.length), decoded);
  },
};

const many = { requests: [verifyMessage, {}, { key: OTHER_KEY }], omitRecords: true };
const batch: FuzzTarget = {
  name: "verify-many",
  seeds: [
    Buffer.from(toBinary(BatchVerifyRequestSchema, message(BatchVerifyRequestSchema, many))),
    Buffer.from(toBinary(VerifyStreamRequestSchema, message(VerifyStreamRequestSchema, { request: verifyMessage }))),
  ],
  run(input) {
    const decoded = decodeBatch(input);
    if (decoded !== undefined) {
      const { inputs, omitRecords } = decoded;
      const whole = generically(() => fromBinary(BatchVerifyRequestSchema, input));
      assert.equal(inputs.length, whole?.requests.length);
      assert.equal(omitRecords, whole?.omitRecords);
      for (const [index, one] of inputs.entries()) sameInput(one, whole?.requests[index]);
    }
    const streamed = decodeStreamed(input);
    if (streamed !== undefined) {
      sameInput(streamed, generically(() => fromBinary(VerifyStreamRequestSchema, input))?.request);
    }
  },
};

const json: FuzzTarget = {
  name: "verify-json",
  seeds: text(
    JSON.stringify({ key: KEY, requiredScopes: ["read"], consistency: "CONSISTENCY_STRONG" }),
    '{"key":"a","required_scopes":[],"consistency":2}',
    '{ "key" : "\\u006ck_" , "requiredScopes" : null }',
    "{}",
  ),
  run(input) {
    const decoded = decodeVerifyJson(input);
    if (decoded === undefined) return;
    sameInput(
      decoded,
      generically(() => fromJsonString(VerifyRequestSchema, input.toString("utf8"))),
    );
  },
};

const SOURCES = {
  ...{ bearer: true, headers: ["x-api-key"], queries: ["key"], prefixes: ["lk_"] },
  identity: createIdentity(["plan"]),
};
const reader = createCheckReader(SOURCES);
const checkOf = (http: object, scopes = "read") =>
  Buffer.from(
    toBinary(
      CheckRequestSchema,
      message(CheckRequestSchema, {
        attributes: { request: { http }, contextExtensions: { "latchkey-scopes": scopes } },
      }),
    ),
  );

const check: FuzzTarget = {
  name: "check",
  seeds: [
    checkOf({
      path: `/a?key=${KEY}`,
      headers: { authorization: `Bearer ${KEY}`, accept: "*/*", "x-latchkey_user": "x" },
    }),
    checkOf({ headers: { "x-api-key": KEY, "x-request-id": "1" } }, "read write"),
    checkOf({ headerMap: { headers: [{ key: "X-Api-Key", rawValue: Buffer.from(KEY).toString("base64") }] } }),
  ],
  run(input) {
    const { presented, requiredScopes } = reader.read(input);
    const decoded = generically(() => fromBinary(CheckRequestSchema, input));
    if (requiredScopes === undefined || decoded === undefined) return;
    // The generic codec reads a field of another type than its own as its own; it is an unknown one.
    if (!haveSameBytes(toBinary(CheckRequestSchema, decoded), input)) return;
    const { attributes } = decoded;
    const http = attributes?.request?.http;
    const expected = nothingPresented();
    const latin1 = (value: string) => Buffer.from(value).toString("latin1");
    for (const [name, value] of Object.entries(http?.headers ?? {}))
      noteHeader(expected, SOURCES, latin1(name), latin1(value));
    noteQuery(expected, SOURCES, latin1(http?.path ?? ""));
    for (const { key, value, rawValue } of http?.headerMap?.headers ?? [])
      noteHeader(
        expected,
        SOURCES,
        latin1(key),
        rawValue.length > 0 ? Buffer.from(rawValue).toString("latin1") : latin1(value),
      );
    // Of repeated entries and messages the generic codec keeps the last; to see more keys than that only refuses more.
    if (isAmbiguous(presented) || presented.count > expected.count) return;
    assert.equal(presented.count, expected.count);
    if (expected.count === 1) assert.equal(presented.key, expected.key);
    const scopes = scopesIn(latin1(attributes?.contextExtensions["latchkey-scopes"] ?? ""));
    assert.deepEqual([...requiredScopes], scopes);
  },
};

/** In whatever order: entries of maps have none. */
function haveSameBytes(one: Uint8Array, other: Uint8Array): boolean {
  return Buffer.from(one).sort().equals(Buffer.from(other).sort());
}

/** Something of a key's form, alone or in a list. */
function holdsKey(value: string): boolean {
  return value.split(",").some((one) => one.trim().startsWith("lk_"));
}

const headers: FuzzTarget = {
  name: "presented-key",
  seeds: text(
    `authorization: Bearer ${KEY}`,
    `X-API-Key: ${KEY}`,
    "authorization: Basic a, Bearer b",
    "X_Latchkey-User: admin",
    `:path: /a?b=c&key=${KEY}&k%65y=x#f`,
  ),
  run(input) {
    const presented = nothingPresented();
    let credentials = 0;
    for (const line of input.toString("latin1").split("\n")) {
      const [name = "", value = ""] = line.split(": ", 2);
      if (name === ":path") {
        noteQuery(presented, SOURCES, value);
        credentials += parametersOf(value).filter((one) => one.name === "key" && holdsKey(one.value)).length;
      } else noteHeader(presented, SOURCES, name, value);
      if (name.toLowerCase() === "x-api-key" && holdsKey(value)) credentials += 1;
      if (name.toLowerCase() === "authorization" && /^[ \t]*bearer[ \t]+lk_/i.test(value)) credentials += 1;
    }
    assert(presented.count >= credentials, "a credential was overlooked");
    if (presented.count > 1) assert(isAmbiguous(presented));
    const inQuery = presented.queryNames !== undefined;
    if (presented.count > 0 && !isAmbiguous(presented) && !inQuery) assert(!presented.key.includes(","));
  },
};

const SECRET = "a-secret-that-nobody-is-told-of-0123456789";
const authenticator = createAuthenticator(
  { key: { kind: "secret", secret: SECRET }, adminClaim: { name: "role", value: "admin" }, clock: () => new Date() },
  { kind: "jwt", audience: "verify" },
);
const part = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
const claims = part({ sub: "alice", exp: 4e9, aud: "verify", role: "admin" });

const tokens: FuzzTarget = {
  name: "token",
  seeds: text(
    `Bearer ${part({ alg: "none" })}.${claims}.`,
    `Bearer ${part({ alg: "HS256", typ: "JWT" })}.${claims}.${"A".repeat(43)}`,
    `Bearer ${part({ alg: "HS256", crit: ["exp"], b64: false })}.${claims}.AA`,
    `Bearer ${KEY}`,
  ),
  async run(input) {
    const header = input.toString("latin1");
    const admit = await authenticator;
    await assert.rejects(admit.user(header), KeyError);
    await assert.rejects(async () => admit.service(header, undefined), KeyError);
  },
};

const PROTOCOLS = [...new Set(FORMATS.values())];
const framing: FuzzTarget = {
  name: "framing",
  seeds: [
    ...[Buffer.from([0, 0, 0, 0, 3, 1, 2, 3]), Buffer.from([1, 0, 0, 0, 0]), Buffer.alloc(0)],
    ...[gzipSync("a message"), Buffer.concat([Buffer.of(1, 0, 0, 0, gzipSync("abc").length), gzipSync("abc")])],
  ],
  run(input) {
    for (const format of PROTOCOLS) {
      const inflated = messageIn(format, true, input, 64);
      if (inflated !== undefined && input[0] === (format.protocol === "connect" ? 0x1f : 1))
        assert.deepEqual(inflated, gunzipSync(format.protocol === "connect" ? input : input.subarray(5)));
      const found = messageIn(format, false, input, 64);
      if (found === undefined) continue;
      assert(found.length <= 64);
      if (format.protocol === "connect") assert.deepEqual(found, input);
      else assert.deepEqual(Buffer.concat([Buffer.of(0, 0, 0, 0, found.length), found]), input);
    }
  },
};

const MAX_LIST = 2_000;
const hpack: FuzzTarget = {
  name: "hpack",
  seeds: [
    encodeFields([":method", "POST", ":path", "/x", "content-type", "application/grpc"]),
    // Indexed, kept in the table, Huffman-coded, and two changes of the table's size (RFC 7541, C.4 and 4.2).
    Buffer.from("828684418cf1e3c2e5f23a6ba0ab90f4ff", "hex"),
    Buffer.from("828684be5886a8eb10649cbf", "hex"),
    Buffer.from("20 3fe11f 40 0161 03626364 be be".replaceAll(" ", ""), "hex"),
  ],
  run(input) {
    const decoder = createHpackDecoder({ maxTableBytes: 512, maxListBytes: MAX_LIST });
    const half = input.length >> 1;
    for (const block of [input, input.subarray(half), input.subarray(0, half)]) {
      try {
        const before = decoder.version;
        const list = decoder.decode(block);
        const size = list.reduce((sum, one) => sum + one.length, 0);
        assert(list.length % 2 === 0 && size <= MAX_LIST);
        // What is remembered of a block rests on this.
        if (decoder.version === before) assert.deepEqual(decoder.decode(block), list);
        assert.deepEqual(
          createHpackDecoder({ maxTableBytes: 512, maxListBytes: MAX_LIST }).decode(encodeFields(list)),
          list,
        );
      } catch (error) {
        if (!(error instanceof HpackError)) throw error;
        return;
      }
    }
  },
};

export const codecs: readonly FuzzTarget[] = [
  ...[keyParser, verify, batch, json, check, headers, tokens, framing, hpack],
];
