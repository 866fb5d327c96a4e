import { generateKeyPairSync, randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { exportJWK, SignJWT } from "jose";
import { ApiKeyService, Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { formatKey } from "../../src/keys/text.ts";
import { refusalOf } from "../support/errors.ts";
import { SERVICE_TOKEN, sha256, startService, type TestService, userToken } from "../support/service.ts";

const services: TestService[] = [];
const start = async (env: Record<string, string>) => {
  const service = await startService({ env });
  services.push(service);
  return service;
};
const withBearer = (service: TestService, authorization?: string) =>
  createClient(
    ApiKeyService,
    createConnectTransport({
      baseUrl: service.baseUrl,
      httpVersion: "1.1",
      interceptors: [
        (next) => (request) => {
          if (authorization !== undefined) request.header.set("authorization", authorization);
          return next(request);
        },
      ],
    }),
  );
const unauthenticated = { code: "Unauthenticated", reason: "UNAUTHENTICATED", retry: false };
const UNKNOWN_KEY = formatKey({ prefix: "lk", id: "0".repeat(16), secret: "0".repeat(43) });

let service: TestService;
beforeAll(async () => {
  service = await start({ LATCHKEY_JWT_ISSUER: "issuer", LATCHKEY_JWT_AUDIENCE: "users" });
});
afterAll(() => Promise.all(services.map((one) => one.stop())));

const good = { iss: "issuer", aud: "users" };
const tokenWith = (claims: object, options = {}) => userToken("alice", { claims: { ...good, ...claims }, ...options });

test("a token that says what it must is let in", async () => {
  expect(await refusalOf(withBearer(service, `Bearer ${await tokenWith({})}`).get({}))).toMatchObject({
    reason: "NO_KEY",
  });
});

test.each([
  ["no token", async () => undefined],
  ["another scheme", async () => "Basic YTpi"],
  ["no token after Bearer", async () => "Bearer "],
  ["not a JWT", async () => "Bearer abc"],
  ["signed with another secret", async () => `Bearer ${await tokenWith({}, { secret: "x".repeat(40) })}`],
  ["past its exp and the tolerance", async () => `Bearer ${await tokenWith({}, { ttlS: -31 })}`],
  ["without exp", async () => `Bearer ${await tokenWith({}, { ttlS: null })}`],
  ["without sub", async () => `Bearer ${await tokenWith({ sub: undefined })}`],
  ["an empty sub", async () => `Bearer ${await tokenWith({ sub: "" })}`],
  ["a sub of 257 characters", async () => `Bearer ${await tokenWith({ sub: "x".repeat(257) })}`],
  ["another issuer", async () => `Bearer ${await tokenWith({ iss: "other" })}`],
  ["another audience", async () => `Bearer ${await tokenWith({ aud: "other" })}`],
  ["a huge token", async () => `Bearer ${await tokenWith({ padding: "x".repeat(9_000) })}`],
  [
    "alg none",
    async () =>
      `Bearer ${Buffer.from('{"alg":"none"}').toString("base64url")}.${Buffer.from(`{"sub":"alice","exp":${2 ** 40}}`).toString("base64url")}.`,
  ],
])("refused as UNAUTHENTICATED: %s", async (_name, authorization) => {
  expect(await refusalOf(withBearer(service, await authorization()).get({}))).toMatchObject(unauthenticated);
});

test("a token is still taken up to 30 s past its exp", async () => {
  expect(await refusalOf(withBearer(service, `Bearer ${await tokenWith({}, { ttlS: -20 })}`).get({}))).toMatchObject({
    reason: "NO_KEY",
  });
});

test("the admin claim may be a string or an array holding the value", async () => {
  for (const role of ["admin", ["member", "admin"]]) {
    const admin = withBearer(service, `Bearer ${await tokenWith({ role })}`);
    expect(await refusalOf(admin.get({ userId: randomUUID() }))).toMatchObject({ reason: "NO_KEY" });
  }
  for (const role of ["Admin", ["admins"], { admin: true }, null]) {
    const member = withBearer(service, `Bearer ${await tokenWith({ role })}`);
    expect(await refusalOf(member.get({ userId: randomUUID() }))).toMatchObject({ reason: "ADMIN_REQUIRED" });
  }
});

test("an API key as the bearer of a management call is API_KEY_NOT_ALLOWED, by its shape alone", async () => {
  const client = withBearer(service, `Bearer ${UNKNOWN_KEY}`);
  for (const call of [
    () => client.create({}),
    () => client.get({}),
    () => client.refresh({}),
    () => client.revoke({}),
  ]) {
    expect(await refusalOf(call())).toMatchObject({ code: "PermissionDenied", reason: "API_KEY_NOT_ALLOWED" });
  }
});

test("the order of refusals: token, ADMIN_REQUIRED, fields, SCOPE_FORBIDDEN, state", async () => {
  const bad = { name: " ", scopes: ["admin"], userId: "bob" };
  expect(await refusalOf(withBearer(service, "Bearer x").create(bad))).toMatchObject(unauthenticated);
  const client = withBearer(service, `Bearer ${await tokenWith({ sub: randomUUID() })}`);
  expect(await refusalOf(client.create(bad))).toMatchObject({ reason: "ADMIN_REQUIRED" });
  expect(await refusalOf(client.create({ name: " ", scopes: ["admin"] }))).toMatchObject({
    reason: "INVALID_ARGUMENT",
  });
  await client.create({ scopes: ["read"] });
  expect(await refusalOf(client.create({ scopes: ["admin"] }))).toMatchObject({ reason: "SCOPE_FORBIDDEN" });
  expect(await refusalOf(client.create({ scopes: ["read"] }))).toMatchObject({ reason: "KEY_EXISTS" });
});

test("with service tokens, Verify takes those that are configured and no other", async () => {
  const guarded = await start({
    LATCHKEY_VERIFY_AUTH: "token",
    LATCHKEY_SERVICE_TOKENS: `other:sha256:${sha256("x")},gateway:sha256:${sha256(SERVICE_TOKEN)}`,
  });
  const { outcome } = await withBearer(guarded, `Bearer ${SERVICE_TOKEN}`).verify({ key: UNKNOWN_KEY });
  expect(outcome).toBe(Outcome.NOT_FOUND);
  for (const authorization of [
    undefined,
    "Bearer wrong",
    `Bearer ${sha256(SERVICE_TOKEN)}`,
    `Bearer ${await userToken("alice")}`,
  ]) {
    expect(await refusalOf(withBearer(guarded, authorization).verify({ key: UNKNOWN_KEY }))).toMatchObject(
      unauthenticated,
    );
  }
});

test("with JWTs for services, Verify needs the configured audience: a user's token does not do", async () => {
  const guarded = await start({
    LATCHKEY_VERIFY_AUTH: "jwt",
    LATCHKEY_VERIFY_AUDIENCE: "verify",
    LATCHKEY_JWT_AUDIENCE: "users",
  });
  const bearer = async (aud: string) => `Bearer ${await userToken("svc", { claims: { aud } })}`;
  expect((await withBearer(guarded, await bearer("verify")).verify({ key: "" })).outcome).toBe(Outcome.MALFORMED);
  expect(await refusalOf(withBearer(guarded, await bearer("users")).verify({ key: "" }))).toMatchObject(
    unauthenticated,
  );
});

test("a service's token is no user's, even where users' tokens need no audience", async () => {
  const guarded = await start({ LATCHKEY_VERIFY_AUTH: "jwt", LATCHKEY_VERIFY_AUDIENCE: "verify" });
  const ask = async (aud: unknown) =>
    refusalOf(withBearer(guarded, `Bearer ${await userToken("svc", { claims: { aud } })}`).get({}));
  for (const aud of ["verify", ["users", "verify"]]) expect(await ask(aud)).toMatchObject(unauthenticated);
  for (const aud of [undefined, "users"]) expect(await ask(aud)).toMatchObject({ reason: "NO_KEY" });
});

test("tokens are checked against a public key, and a token signed with that key's text as a secret is refused", async () => {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const pem = publicKey.export({ type: "spki", format: "pem" }).toString();
  const guarded = await start({ LATCHKEY_JWT_SECRET: "", LATCHKEY_JWT_PUBLIC_KEY: pem });
  const signed = new SignJWT({ sub: "alice" }).setProtectedHeader({ alg: "ES256" }).setExpirationTime("1m");
  expect(await refusalOf(withBearer(guarded, `Bearer ${await signed.sign(privateKey)}`).get({}))).toMatchObject({
    reason: "NO_KEY",
  });
  expect(
    await refusalOf(withBearer(guarded, `Bearer ${await userToken("alice", { secret: pem })}`).get({})),
  ).toMatchObject(unauthenticated);
});

test("tokens are checked against a key set, which is fetched once for many calls", async () => {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  let fetched = 0;
  const keySet = createServer(async (_request, response) => {
    fetched += 1;
    response.end(JSON.stringify({ keys: [{ ...(await exportJWK(publicKey)), kid: "k", alg: "ES256" }] }));
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => keySet.once("listening", resolve));
  const guarded = await start({
    LATCHKEY_JWT_SECRET: "",
    LATCHKEY_JWKS_URL: `http://127.0.0.1:${(keySet.address() as AddressInfo).port}/jwks`,
  });
  const token = await new SignJWT({ sub: "alice" })
    .setProtectedHeader({ alg: "ES256", kid: "k" })
    .setExpirationTime("1m")
    .sign(privateKey);
  const client = withBearer(guarded, `Bearer ${token}`);
  for (let call = 0; call < 5; call += 1) expect(await refusalOf(client.get({}))).toMatchObject({ reason: "NO_KEY" });
  expect(fetched).toBe(1);
  keySet.close();
});

test("a key set that can't be fetched is told to operators, and no caller's token is called bad for it", async () => {
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const token = await new SignJWT({ sub: "alice" })
    .setProtectedHeader({ alg: "ES256", kid: "k" })
    .setExpirationTime("1m")
    .sign(privateKey);
  const keySet = createServer((_request, response) => response.writeHead(500).end()).listen(0, "127.0.0.1");
  await once(keySet, "listening");
  const url = `http://127.0.0.1:${(keySet.address() as AddressInfo).port}/jwks`;
  const guarded = await start({ LATCHKEY_JWT_SECRET: "", LATCHKEY_JWKS_URL: url });
  expect(await refusalOf(withBearer(guarded, `Bearer ${token}`).get({}))).toMatchObject({
    ...{ code: "Unavailable", reason: "KEY_SET_UNAVAILABLE", retry: true },
  });
  expect(guarded.logs()).toMatch(/"event":"key_set_failed".*200 OK/);
  keySet.close();
});
