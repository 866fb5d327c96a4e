import { createPublicKey, generateKeyPairSync, randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { type AddressInfo, createServer as createTcpServer, type Server } from "node:net";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "@jest/globals";
import { decodeJwt, decodeProtectedHeader } from "jose";
import { createLatchkeyClient } from "../../src/client/index.ts";
import { newDirectory, runToEnd, stopProcesses } from "../support/process.ts";
import { JWT_SECRET, startService, type TestService, userToken } from "../support/service.ts";

let service: TestService;
const servers: Server[] = [];
beforeAll(async () => {
  service = await startService();
});
afterEach(async () => {
  await stopProcesses();
  for (const server of servers.splice(0)) server.close();
});
afterAll(() => service.stop());

async function listening(server: Server): Promise<string> {
  servers.push(server.listen(0, "127.0.0.1"));
  await once(server, "listening");
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

test("--version prints the package's version", async () => {
  const { version } = JSON.parse(readFileSync("package.json", "utf8"));
  expect(await runToEnd(["--version"], {})).toEqual({ code: 0, output: version });
});

test("a service that is not there is told with its URL and what to do, by every command that calls one and by doctor", async () => {
  const url = await listening(createTcpServer());
  servers.pop()!.close();
  const env = { LATCHKEY_URL: url, LATCHKEY_TOKEN: "x", LATCHKEY_DATA_DIR: newDirectory() };
  const words = `${url} does not answer (ECONNREFUSED). Start the service (npx latchkey serve), or say where it is by LATCHKEY_URL or --url.`;
  const commands = ["create --scope read", "get", "refresh", "revoke", "verify"];
  const admin = ["list", "get x", "revoke x", "revoke-presented", "audit"].map((command) => `admin ${command}`);
  for (const command of [...commands, ...admin])
    expect(await runToEnd(command.split(" "), env, "key")).toEqual({ code: 1, output: `latchkey: ${words}` });
  expect((await runToEnd(["doctor"], env)).output).toContain(`FAIL  service: ${words}`);
}, 300_000);

test("what answers in Latchkey's place, or not at all, is told with its URL", async () => {
  const other = await listening(createServer((_, response) => response.writeHead(404).end("nothing here")));
  const silent = await listening(createTcpServer(() => {}));
  const get = async (url: string) => (await runToEnd(["get", "--token", "x", "--url", url], {})).output;
  expect(await get(other)).toContain(`${other} does not answer as Latchkey does`);
  expect(await get(silent)).toContain(`${silent} does not answer in time.`);
  expect(await get("127.0.0.1:8080")).toContain("--url must be an http(s) URL");
}, 60_000);

test("get shows a key's name, scopes, end and last use, a line each", async () => {
  const user = randomUUID();
  const env = { LATCHKEY_URL: service.baseUrl, LATCHKEY_TOKEN: await userToken(user) };
  await runToEnd(["create", "--scope", "read", "write", "--name", "lap top", "--ttl", "1h"], env);
  const { apiKey } = await service.client(user).get({});
  const ends = new Date(Number(apiKey!.expiresAt!.seconds) * 1_000 + apiKey!.expiresAt!.nanos / 1e6).toISOString();
  const lines = (await runToEnd(["get"], env)).output.split("\n");
  expect(lines).toEqual(expect.arrayContaining([`key        ${apiKey!.prefix}`, "name       lap top"]));
  expect(lines).toEqual(expect.arrayContaining(["scopes     read write", `ends       ${ends}`, "last used  not yet"]));
}, 60_000);

test("beside a remote service's URL no development token is made", async () => {
  const { code, output } = await runToEnd(["create", "--user", "alice", "--scope", "read"], {
    ...{ LATCHKEY_URL: "https://latchkey.example:8443", LATCHKEY_DATA_DIR: newDirectory() },
  });
  expect({ code, output }).toEqual({ code: 1, output: expect.stringMatching(/set LATCHKEY_TOKEN.*latchkey\.example/) });
});

const rules = {
  LATCHKEY_JWT_ISSUER: "https://issuer.example/",
  LATCHKEY_JWT_AUDIENCE: "latchkey",
  LATCHKEY_ADMIN_CLAIM: "groups=key-admins",
};

test("with a MongoDB of one's own the first key is made by a token that LATCHKEY_JWT_SECRET signed, with iss, aud and the admin claim as configured", async () => {
  const strict = await startService({ env: rules });
  try {
    const env = { ...rules, LATCHKEY_JWT_SECRET: JWT_SECRET, LATCHKEY_URL: strict.baseUrl };
    const { output: token } = await runToEnd(["token", "--user", "alice"], env);
    const { iat, exp, ...claims } = decodeJwt(token);
    expect(claims).toEqual({ sub: "alice", iss: rules.LATCHKEY_JWT_ISSUER, aud: rules.LATCHKEY_JWT_AUDIENCE });
    expect(exp! - iat!).toBe(15 * 60);
    const created = await runToEnd(["create", "--scope", "read"], { ...env, LATCHKEY_TOKEN: token });
    expect(created).toEqual({ code: 0, output: expect.stringMatching(/^lk_\w+$/) });
    const admin = await runToEnd(["token", "--user", "root", "--admin", "--ttl", "1h"], env);
    expect((await runToEnd(["admin", "list"], { ...env, LATCHKEY_TOKEN: admin.output })).output).toContain("alice");
    // Not without saying so: the secret of a real service is nobody's by accident.
    expect(await runToEnd(["create", "--user", "bob", "--scope", "read"], env)).toEqual({
      code: 1,
      output: expect.stringContaining("npx latchkey token --user alice"),
    });
    for (const [ttl, bound] of [
      ["61m", "must be at most 1h"],
      ["10ms", "must be at least 1s"],
    ] as const)
      expect((await runToEnd(["token", "--user", "alice", "--ttl", ttl], env)).output).toContain(bound);
  } finally {
    await strict.stop();
  }
}, 120_000);

test("token --key signs with a private key, PEM or JWK, and refuses one that does not belong to the configured public key", async () => {
  const dir = newDirectory();
  const pairs = {
    RS256: generateKeyPairSync("rsa", { modulusLength: 2_048 }),
    ES384: generateKeyPairSync("ec", { namedCurve: "P-384" }),
    EdDSA: generateKeyPairSync("ed25519"),
  };
  for (const [alg, { privateKey }] of Object.entries(pairs)) {
    const file = join(dir, `${alg}.pem`);
    writeFileSync(file, privateKey.export({ type: "pkcs8", format: "pem" }));
    const publicKey = String(createPublicKey(privateKey).export({ type: "spki", format: "pem" }));
    const own = await startService({ env: { ...rules, LATCHKEY_JWT_SECRET: "", LATCHKEY_JWT_PUBLIC_KEY: publicKey } });
    const env = { ...rules, LATCHKEY_JWT_PUBLIC_KEY: publicKey };
    const { output: token } = await runToEnd(["token", "--user", "alice", "--key", file], env);
    const { apiKey } = await createLatchkeyClient({ baseUrl: own.baseUrl, token }).create({ scopes: ["read"] });
    expect([decodeProtectedHeader(token).alg, apiKey?.userId]).toEqual([alg, "alice"]);
    await own.stop();
  }
  const env = { LATCHKEY_JWT_PUBLIC_KEY: String(pairs.EdDSA.publicKey.export({ type: "spki", format: "pem" })) };
  const token = async (...args: string[]) => (await runToEnd(["token", "--user", "alice", ...args], env)).output;
  expect(await token()).toContain("--key FILE");
  expect(await token("--key", join(dir, "RS256.pem"))).toContain("not the private one of LATCHKEY_JWT_PUBLIC_KEY");
  const jwk = join(dir, "key.jwk");
  writeFileSync(jwk, JSON.stringify({ ...pairs.EdDSA.privateKey.export({ format: "jwk" }), kid: "first" }));
  expect(decodeProtectedHeader(await token("--key", jwk))).toEqual({ alg: "EdDSA", typ: "JWT", kid: "first" });
  writeFileSync(jwk, "canary");
  const damaged = await token("--key", jwk);
  expect(damaged).toContain("holds no private key");
  expect(damaged).not.toContain("canary");
}, 120_000);
