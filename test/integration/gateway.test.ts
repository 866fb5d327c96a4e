import { connect } from "node:http2";
import { setTimeout as sleep } from "node:timers/promises";
import { fromBinary, fromJsonString, toBinary } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { CheckRequestSchema, CheckResponseSchema } from "#gen/envoy/service/auth/v3/external_auth_pb";
import { Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { callOn } from "../bench/calls.ts";
import { enveloped } from "../bench/messages.ts";
import { type GatewayKeys, gatewayCases } from "../support/gateway-cases.ts";
import { type Asked, CHECK_PATH, callCheck, checkRequest, DOORS, toTold } from "../support/gateway-doors.ts";
import { SERVICE_TOKEN, sha256, startService, type TestService } from "../support/service.ts";

let service: TestService;
let keys: GatewayKeys;
let goodId: string;
beforeAll(async () => {
  service = await startService();
  ({ keys, goodId } = await makeKeys(service));
});
afterAll(() => Promise.all([service, ...others].map((one) => one.stop())));
const others: TestService[] = [];

/** A service of the same keys, set up otherwise. */
async function another(env: Record<string, string>): Promise<TestService> {
  const other = await startService({ env: { MONGODB_DATABASE: service.database, ...env } });
  others.push(other);
  return other;
}

async function makeKeys({ client }: TestService) {
  const good = await client("zoë / 100%").create({ name: "build box, Köln", scopes: ["read", "write"] });
  const nameless = await client("plain").create({ scopes: ["read"] });
  const dash = await client("dash").create({ name: "-", scopes: ["read"] });
  const revoked = await client("gone").create({ scopes: ["read"] });
  await client("gone").revoke({ reason: "lost" });
  const expired = await client("late").create({ scopes: ["read"], lifetime: { case: "ttl", value: { seconds: 1n } } });
  while ((await client().verify({ key: expired.key })).outcome !== Outcome.EXPIRED) await sleep(50);
  return {
    goodId: good.apiKey!.id,
    keys: { good: good.key, nameless: nameless.key, dash: dash.key, revoked: revoked.key, expired: expired.key },
  };
}

const named = gatewayCases({ good: "", nameless: "", dash: "", revoked: "", expired: "" });
const casesBy = (door: string) => named.filter((one) => door !== "HTTP/2" || !one.repeatsAuthorization);

describe.each(Object.entries(DOORS))("asked by %s", (door, ask) => {
  const asked = (question: Asked) => ask(service.server.address, question);

  test.each(casesBy(door).map(({ name }) => name))("%s is answered as it must be", async (name) => {
    const { status, reason, challenge, missingScopes, ...question } = gatewayCases(keys).find(
      (one) => one.name === name,
    )!;
    const told = await asked(question);
    if (status === 200) {
      expect(told).toMatchObject({
        status,
        identity: {
          "x-latchkey-user": "zo%C3%AB%20/%20100%25",
          "x-latchkey-key-id": goodId,
          "x-latchkey-scopes": "read write",
          "x-latchkey-name": "build%20box%2C%20K%C3%B6ln",
        },
      });
      expect(Object.values(told.identity!).slice(0, 4).map(decodeURIComponent)).toContain("zoë / 100%");
      return;
    }
    expect(told).toEqual({
      status,
      headers: { "content-type": "application/json", "cache-control": "no-store", "www-authenticate": challenge },
      body: { reason, message: expect.stringMatching(/^[A-Z].*\.$/), ...(missingScopes && { missingScopes }) },
    });
  });

  test("a key without a name, and one that is named -, are told apart", async () => {
    const nameless = await asked({ headers: [["x-api-key", keys.nameless]] });
    expect(nameless.identity).toMatchObject({ "x-latchkey-user": "plain", "x-latchkey-name": "-" });
    const dash = await asked({ headers: [["x-api-key", keys.dash]] });
    expect(dash.identity).toMatchObject({ "x-latchkey-user": "dash", "x-latchkey-name": "%2D" });
  });

  test("the credential is taken away, and authorization only where it is one", async () => {
    const bearer = await asked({ headers: [["authorization", `Bearer ${keys.good}`]] });
    expect(bearer.removed).toEqual(expect.arrayContaining(["authorization", "x-api-key"]));
    const beside = await asked({
      headers: [
        ["authorization", "Basic dTpw"],
        ["x-api-key", keys.good],
      ],
    });
    expect(beside.removed).toContain("x-api-key");
    expect(beside.removed).not.toContain("authorization");
  });

  test("forged identity headers are overwritten or taken away, in whatever spelling", async () => {
    const forged = ["X_Latchkey_User", "x-latchkey_name", "X-LATCHKEY_SCOPES", "x-latchkey-admin"];
    const headers = [...forged, "X-Latchkey-User", "x-latchkey-user"].map((name): [string, string] => [name, "root"]);
    const { identity, removed } = await asked({ headers: [...headers, ["x-api-key", keys.nameless]] });
    expect(identity).toEqual({
      "x-latchkey-user": "plain",
      "x-latchkey-key-id": expect.stringMatching(/^\w{16}$/),
      "x-latchkey-scopes": "read",
      "x-latchkey-name": "-",
    });
    expect(removed).toEqual(expect.arrayContaining(forged.map((name) => name.toLowerCase())));
    // Aliases that were not seen too: a gateway may hide them from us, and pass them on.
    for (const alias of ["user", "key_id", "scopes", "name"]) expect(removed).toContain(`x_latchkey_${alias}`);
    for (const name of Object.keys(identity!)) expect(removed).not.toContain(name);
  });

  test("a gateway that asks for senseless scopes is told so as its own fault", async () => {
    const told = await asked({ headers: [["x-api-key", keys.good]], scopes: "read NOT!A!SCOPE" });
    expect(told).toMatchObject({ status: 503, body: { reason: "INVALID_ARGUMENT" }, headers: { "retry-after": "1" } });
  });
});

describe("Check", () => {
  const check = async (message: Uint8Array) => {
    const bytes = await callCheck(service.server.address, message);
    return fromBinary(CheckResponseSchema, bytes);
  };

  test("dynamic metadata tell other filters whose key it is, as it is stored", async () => {
    const { dynamicMetadata } = await check(checkRequest({ headers: [["x-api-key", keys.good]] }));
    expect(dynamicMetadata).toEqual({
      ...{ user: "zoë / 100%", key_id: goodId, key_prefix: `lk_${goodId.slice(0, 8)}` },
      ...{ name: "build box, Köln", scopes: ["read", "write"] },
    });
    const nameless = await check(checkRequest({ headers: [["x-api-key", keys.nameless]] }));
    expect(nameless.dynamicMetadata).not.toHaveProperty("name");
    expect((await check(checkRequest({ headers: [] }))).dynamicMetadata).toBeUndefined();
  });

  test("its status is a canonical code, for whoever reads nothing else", async () => {
    const codeOf = async (asked: Asked) => (await check(checkRequest(asked))).status?.code;
    expect(await codeOf({ headers: [["x-api-key", keys.good]] })).toBe(0);
    expect(await codeOf({ headers: [] })).toBe(16);
    expect(await codeOf({ headers: [["x-api-key", keys.good]], scopes: "admin" })).toBe(7);
    expect(await codeOf({ headers: [], scopes: "A" })).toBe(16);
    expect(await codeOf({ headers: [["x-api-key", keys.good]], scopes: "A" })).toBe(14);
  });

  const withBody = (bytes: number) => {
    const message = fromBinary(CheckRequestSchema, checkRequest({ headers: [["x-api-key", keys.good]] }));
    message.attributes!.request!.http!.rawBody = Buffer.alloc(bytes, 0xfe);
    return toBinary(CheckRequestSchema, message);
  };

  test("a large message is read, and one that is too large is answered, not failed", async () => {
    expect(toTold(await check(withBody(1_000_000)))).toMatchObject({ status: 200 });
    for (const bytes of [1_100_000, 20_000_000]) {
      expect(toTold(await check(withBody(bytes)))).toMatchObject({
        status: 431,
        body: { reason: "HEADERS_TOO_LARGE" },
      });
    }
    expect(toTold(await check(withBody(0)))).toMatchObject({ status: 200 });
  });

  test("text that is no UTF-8, and bytes that are no CheckRequest, are answered, not failed", async () => {
    const bytes = Buffer.from(
      checkRequest({
        headers: [
          ["x-api-key", keys.good],
          ["cookie", "????"],
        ],
      }),
    );
    bytes.fill(0xff, bytes.indexOf("????"), bytes.indexOf("????") + 4);
    expect(toTold(await check(bytes))).toMatchObject({ status: 200 });
    const spoiled = Buffer.from(checkRequest({ headers: [["x-api-key", "????"]] }));
    spoiled.fill(0xff, spoiled.indexOf("????"), spoiled.indexOf("????") + 4);
    expect(toTold(await check(spoiled))).toMatchObject({ status: 401, body: { reason: "MALFORMED" } });
    for (const broken of [bytes.subarray(0, -1), Buffer.of(0xff, 0xff)]) {
      expect(toTold(await check(broken))).toMatchObject({ status: 503, body: { reason: "INVALID_ARGUMENT" } });
    }
    expect(toTold(await check(new Uint8Array()))).toMatchObject({ status: 401, body: { reason: "KEY_MISSING" } });
  });

  test("Node's own server gives the same bytes as the fast one", async () => {
    const post = async (type: string, message: Uint8Array) => {
      const headers = { "content-type": type };
      const answer = await fetch(service.baseUrl + CHECK_PATH, { method: "POST", headers, body: message });
      expect(answer.status).toBe(200);
      return Buffer.from(await answer.arrayBuffer()).toString("hex");
    };
    const messages = gatewayCases(keys).map((asked) => checkRequest(asked, true));
    const spoiled = Buffer.from(
      checkRequest({
        headers: [
          ["x-api-key", keys.good],
          ["cookie", "????"],
        ],
      }),
    );
    spoiled.fill(0xff, spoiled.indexOf("????"), spoiled.indexOf("????") + 4);
    for (const message of [...messages, spoiled, spoiled.subarray(0, -1), Buffer.of(0xff)]) {
      // Only spelled as clients spell it is a content type served without Connect.
      expect(await post("Application/Proto", message)).toBe(await post("application/proto", message));
    }
  });

  test("JSON that is no CheckRequest is answered, not failed", async () => {
    for (const body of ["{", '{"attributes":{"request":7}}', '{"what":1}']) {
      const headers = { "content-type": "application/json" };
      const answer = await fetch(service.baseUrl + CHECK_PATH, { method: "POST", headers, body });
      expect(answer.status).toBe(200);
      const told = toTold(fromJsonString(CheckResponseSchema, await answer.text()));
      expect(told).toMatchObject({ status: 503, body: { reason: "INVALID_ARGUMENT" } });
    }
  });

  test("too large a message holds up nothing else on its connection", async () => {
    const session = connect(service.baseUrl);
    const headers = { "content-type": "application/grpc", te: "trailers" };
    const call = async (message: Uint8Array) => {
      const { body, trailers } = await callOn(session, { path: CHECK_PATH, headers, body: enveloped(message) });
      expect(trailers["grpc-status"]).toBe("0");
      return toTold(fromBinary(CheckResponseSchema, body.subarray(5))).status;
    };
    const good = checkRequest({ headers: [["x-api-key", keys.good]] });
    for (let round = 0; round < 5; round += 1) {
      expect(await Promise.all([call(withBody(3_000_000)), call(good)])).toEqual([431, 200]);
    }
    session.destroy();
  });
});

test("with service tokens, a gateway is asked for its own, and a client's credential is none", async () => {
  const guarded = await another({
    LATCHKEY_VERIFY_AUTH: "token",
    LATCHKEY_SERVICE_TOKENS: `gateway:sha256:${sha256(SERVICE_TOKEN)}`,
  });
  const good: Asked = { headers: [["authorization", `Bearer ${keys.good}`]] };
  for (const ask of Object.values(DOORS)) {
    const asked = (gatewayToken?: string) =>
      ask(guarded.server.address, { ...good, ...(gatewayToken !== undefined && { gatewayToken }) });
    expect(await asked(SERVICE_TOKEN)).toMatchObject({ status: 200 });
    for (const token of [undefined, "wrong", keys.good, sha256(SERVICE_TOKEN)]) {
      expect(await asked(token)).toMatchObject({ status: 503, body: { reason: "UNAUTHENTICATED" } });
    }
  }
  const client: Asked = { headers: [["authorization", `Bearer ${SERVICE_TOKEN}`]] };
  expect(await DOORS["HTTP/1.1"]!(guarded.server.address, client)).toMatchObject({ status: 503 });
  const warnings = guarded.logs().match(/"level":"warn".*a gateway asks/g) ?? [];
  expect(warnings.length).toBeGreaterThan(0);
});

test("what was refused is named with where it was seen, and a token for the upstream is left to it", async () => {
  for (const ask of Object.values(DOORS)) {
    const asked = (...headers: [string, string][]) => ask(service.server.address, { headers });
    const jwt: [string, string] = ["authorization", "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"];
    const both = await asked(["authorization", `Bearer ${keys.good}`], ["x-api-key", keys.nameless]);
    expect(both.body).toMatchObject({
      message: "More than one API key was sent, in authorization and x-api-key. Send one.",
    });
    expect((await asked(jwt)).body).toMatchObject({
      message: "What was sent in authorization is not an API key of this service.",
    });
    const admitted = await asked(jwt, ["x-api-key", keys.good]);
    expect(admitted.status).toBe(200);
    expect(admitted.removed).not.toContain("authorization");
    expect(admitted.removed).toContain("x-api-key");
  }
});

test("keys are looked for where they are configured to be, and nowhere else", async () => {
  const other = await another({ LATCHKEY_GATEWAY_KEY_FROM: "query:api_key, header:X-Token" });
  for (const ask of Object.values(DOORS)) {
    const asked = (path: string, ...headers: [string, string][]) => ask(other.server.address, { path, headers });
    expect(await asked(`/a?b=1&api_key=${keys.good}`)).toMatchObject({ status: 200 });
    expect(await asked("/", ["x-token", keys.good])).toMatchObject({ status: 200 });
    const twice = [`/?api_key=${keys.good}&api%5fkey=${keys.good}`, `/?api_key=${keys.good}&api_key=lk_x`];
    for (const path of twice) {
      expect(await asked(path)).toMatchObject({ status: 401, body: { reason: "KEY_AMBIGUOUS" } });
    }
    expect(await asked(`/?api_key=${keys.good}&api_key=`)).toMatchObject({ status: 200 });
    const both = await asked(`/?api_key=${keys.good}`, ["x-token", keys.good]);
    const message = "More than one API key was sent, in x-token and the query parameter api_key. Send one.";
    expect(both).toMatchObject({ status: 401, body: { reason: "KEY_AMBIGUOUS", message } });
    const elsewhere = await asked("/", ["authorization", `Bearer ${keys.good}`], ["x-api-key", keys.good]);
    expect(elsewhere).toMatchObject({ status: 401, body: { reason: "KEY_MISSING" } });
    const { removed } = await asked("/", ["authorization", "Bearer of another's"], ["x-token", keys.good]);
    expect(removed).not.toContain("authorization");
  }
  const message = checkRequest({ headers: [], path: `/?api%5Fkey=${keys.good}` });
  const { httpResponse } = fromBinary(CheckResponseSchema, await callCheck(other.server.address, message));
  expect(httpResponse.value).toMatchObject({ queryParametersToRemove: ["api%5Fkey"] });
});

test("every answer is counted and logged by its outcome, and no key is in it", async () => {
  for (const [door, ask] of Object.entries(DOORS)) {
    const asCases = new Set(casesBy(door).map(({ name }) => name));
    for (const asked of gatewayCases(keys)) if (asCases.has(asked.name)) await ask(service.server.address, asked);
  }
  const metrics = await (await fetch(`http://${service.server.opsAddress}/metrics`)).text();
  for (const outcome of ["valid", "key_missing", "key_ambiguous", "revoked", "insufficient_scope", "too_large"]) {
    expect(metrics).toMatch(new RegExp(`^latchkey_verify_total\\{outcome="${outcome}"\\} [1-9]`, "m"));
  }
  for (const method of ["envoy.service.auth.v3.Authorization/Check", "forward-auth/authorize"]) {
    expect(metrics).toMatch(
      new RegExp(`^latchkey_rpc_duration_seconds_count\\{method="${method}",code="ok"\\} [1-9]`, "m"),
    );
  }
  const told = (pattern: string) => new RegExp(pattern).test(service.logs());
  for (const method of ["Check", "authorize"]) {
    expect(told(`"method":"${method}","code":"ok","keyId":"${goodId}","outcome":"valid"`)).toBe(true);
    expect(told(`"method":"${method}","code":"ok","outcome":"key_missing"`)).toBe(true);
  }
  for (const key of Object.values(keys)) {
    for (const text of [service.logs(), metrics]) expect(text.includes(key.slice(-49))).toBe(false);
  }
});

test.each(Object.entries(DOORS))("asked by %s, an answer is logged once", async (_, ask) => {
  const before = service.logs().length;
  await ask(service.server.address, { headers: [] });
  const lines = service
    .logs()
    .slice(before)
    .match(/"event":"rpc"/g);
  expect(lines).toHaveLength(1);
});
