import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, jest, test } from "@jest/globals";
import { Authorization } from "#gen/envoy/service/auth/v3/external_auth_pb";
import { startService, type TestService } from "../support/service.ts";

jest.setTimeout(120_000);

const OURS = "https://console.example";

describe("pages of other origins", () => {
  let service: TestService;
  let closed: TestService;
  let key: string;
  beforeAll(async () => {
    [service, closed] = await Promise.all([
      startService({ env: { LATCHKEY_CORS_ORIGINS: `${OURS},http://localhost:5173` } }),
      startService(),
    ]);
    ({ key } = await service.client("alice").create({ scopes: ["read"] }));
  });
  afterAll(async () => {
    await Promise.all([service.stop(), closed.stop()]);
  });

  const ask = (one: TestService, origin: string | undefined, path: string, init: RequestInit = {}) =>
    fetch(`${one.baseUrl}/latchkey.v1.ApiKeyService/${path}`, {
      ...{ method: "POST", body: JSON.stringify({ key }), ...init },
      headers: { "content-type": "application/json", ...(origin && { origin }), ...init.headers },
    });
  const preflight = (one: TestService, origin: string) =>
    ask(one, origin, "Verify", {
      ...{ method: "OPTIONS", headers: { "access-control-request-method": "POST" } },
      body: null,
    });

  test("that are named may ask, and read what they are answered, errors too", async () => {
    const before = await preflight(service, OURS);
    expect([before.status, before.headers.get("access-control-allow-origin")]).toEqual([204, OURS]);
    for (const header of ["content-type", "authorization", "connect-timeout-ms", "x-grpc-web"])
      expect(before.headers.get("access-control-allow-headers")!.toLowerCase()).toContain(header);
    expect(before.headers.get("access-control-allow-credentials")).toBeNull();
    const answer = await ask(service, OURS, "Verify");
    expect(await answer.json()).toMatchObject({ outcome: "OUTCOME_VALID" });
    const refused = await ask(service, OURS, "Get", { body: "{}" });
    expect(refused.status).toBe(401);
    for (const { headers } of [answer, refused]) {
      expect([headers.get("access-control-allow-origin"), headers.get("vary")]).toEqual([OURS, "origin"]);
      expect(headers.get("access-control-expose-headers")!.toLowerCase()).toContain("grpc-status-details-bin");
    }
  });

  test("that are not named, and all where none is, read nothing: their browser keeps it from them", async () => {
    for (const [one, origin] of [
      [service, "https://evil.example"],
      [service, `${OURS}.evil.example`],
      [service, "null"],
      [closed, OURS],
    ] as const) {
      const answers = [await preflight(one, origin), await ask(one, origin, "Verify")];
      for (const { headers } of answers) expect(headers.get("access-control-allow-origin")).toBeNull();
    }
  });

  test("are served the same answers as who has no origin", async () => {
    const withoutTime = ({ asOf: _, ...answer }: { asOf?: string }) => answer;
    const answers = [OURS, "https://evil.example", undefined].map(async (origin) =>
      withoutTime((await (await ask(service, origin, "Verify")).json()) as object),
    );
    const [first, ...others] = await Promise.all(answers);
    expect(first).toMatchObject({ outcome: "OUTCOME_VALID" });
    for (const other of others) expect(other).toEqual(first);
  });
});

describe("requests to a gateway without a key", () => {
  let service: TestService;
  let key: string;
  beforeAll(async () => {
    service = await startService({
      env: { LATCHKEY_GATEWAY_ANONYMOUS: "read,list", LATCHKEY_GATEWAY_METADATA: "plan" },
    });
    ({ key } = await service.client("alice").create({ scopes: ["read"] }));
  });
  afterAll(() => service.stop());

  const authorize = async (headers: Record<string, string>, query = "") => {
    const answer = await fetch(`${service.baseUrl}/v1/authorize${query}`, { headers });
    const told = Object.fromEntries([...answer.headers].filter(([name]) => name.startsWith("x-latchkey-")));
    return { status: answer.status, told };
  };
  const NOBODY = {
    ...{ "x-latchkey-user": "-", "x-latchkey-key-id": "-", "x-latchkey-name": "-", "x-latchkey-meta-plan": "-" },
    "x-latchkey-scopes": "read list",
  };

  test("pass as nobody with the scopes that are configured, where a route needs no others", async () => {
    expect(await authorize({})).toEqual({ status: 200, told: NOBODY });
    expect(await authorize({}, "?scopes=list")).toEqual({ status: 200, told: NOBODY });
    expect((await authorize({}, "?scopes=list,write")).status).toBe(401);
    expect(await authorize({ "x-api-key": "", authorization: "Bearer " })).toEqual({ status: 200, told: NOBODY });
    // Another scheme is none of ours.
    expect((await authorize({ authorization: "Basic YTpi" })).told).toEqual(NOBODY);
  });

  test("and anything else where a key may stand is judged as ever: a bad key never passes", async () => {
    await service.client("alice").revoke({});
    while ((await authorize({ "x-api-key": key })).status === 200) await new Promise(setImmediate);
    for (const bad of [key, "garbage", "lk_x", "-"])
      expect([bad, (await authorize({ "x-api-key": bad })).status]).toEqual([bad, 401]);
    expect((await authorize({ authorization: "Bearer eyJhbGciOiJub25lIn0.e30." })).status).toBe(401);
  });

  test("are told to Envoy by headers alone: there is nothing to say of a key", async () => {
    const envoy = createClient(Authorization, createGrpcTransport({ baseUrl: service.baseUrl }));
    const { httpResponse, dynamicMetadata } = await envoy.check({ attributes: { request: { http: { headers: {} } } } });
    if (httpResponse.case !== "okResponse") throw new Error(`refused: ${httpResponse.case}`);
    const headers = Object.fromEntries(httpResponse.value.headers.map(({ header }) => [header!.key, header!.value]));
    expect(headers).toEqual(NOBODY);
    expect(dynamicMetadata).toEqual({ scopes: ["read", "list"] });
  });
});
