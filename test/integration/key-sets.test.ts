import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, beforeEach, expect, test } from "@jest/globals";
import { exportJWK, type JWK, SignJWT } from "jose";
import { type Authenticator, createAuthenticator } from "../../src/edge/tokens.ts";
import { stillClock } from "../support/records.ts";

const HOUR_MS = 3_600_000;
const COOLDOWN_MS = 5_000;

const cleanUps: (() => unknown)[] = [];
afterEach(() => {
  for (const cleanUp of cleanUps.splice(0).reverse()) cleanUp();
});

interface Pair {
  kid?: string;
  jwk: JWK;
  privateKey: KeyObject;
}

async function pairOf(kid?: string): Promise<Pair> {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const named = kid !== undefined && { kid };
  return { ...named, jwk: { ...(await exportJWK(publicKey)), ...named, alg: "ES256" }, privateKey };
}

/** As an authorization header; `kid`: what the token says of its key. */
async function bearerOf({ privateKey, kid }: Pair): Promise<string> {
  const token = await new SignJWT({ sub: "alice", aud: "verify" })
    .setProtectedHeader({ alg: "ES256", ...(kid !== undefined && { kid }) })
    .setExpirationTime("1h")
    .sign(privateKey);
  return `Bearer ${token}`;
}

/** What the issuer serves: keys, or a text as it is; undefined: an error. */
let served: JWK[] | string | undefined;
let fetches: number;
let clock: ReturnType<typeof stillClock>;
let heard: string[];
let authenticator: Authenticator;

async function start(keys: JWK[] | undefined): Promise<void> {
  served = keys;
  fetches = 0;
  heard = [];
  clock = stillClock(1_000_000);
  const issuer = createServer((_request, response) => {
    fetches += 1;
    if (served === undefined) response.writeHead(503).end();
    else response.end(typeof served === "string" ? served : JSON.stringify({ keys: served }));
  }).listen(0, "127.0.0.1");
  await once(issuer, "listening");
  authenticator = createAuthenticator(
    {
      key: { kind: "jwks", url: `http://127.0.0.1:${(issuer.address() as AddressInfo).port}/jwks` },
      ...{ adminClaim: { name: "role", value: "admin" }, clock: () => new Date() },
      audience: "verify",
      keySet: {
        ...{ maxAgeMs: HOUR_MS, clockMs: clock.nowMs },
        onFailed: (_error, ageMs) => heard.push(`failed, ${ageMs}`),
        onRecovered: () => heard.push("recovered"),
      },
    },
    { kind: "jwt", audience: "verify" },
  );
  cleanUps.push(
    () => issuer.close(),
    () => issuer.closeAllConnections(),
    () => authenticator.stop(),
  );
}

/** "admitted", or the reason why not. */
const asUser = (bearer: string): Promise<string> =>
  authenticator.user(bearer).then(
    () => "admitted",
    ({ reason }) => reason,
  );
const asService = async (bearer: string): Promise<string> => {
  try {
    await authenticator.service(bearer, undefined);
    return "admitted";
  } catch (error) {
    return (error as { reason: string }).reason;
  }
};

let first: Pair;
let second: Pair;
beforeEach(async () => {
  [first, second] = [await pairOf("first"), await pairOf("second")];
});

test("a key set that can't be fetched again serves on, for users and for callers of Verify, until its greatest age", async () => {
  await start([first.jwk]);
  const bearer = await bearerOf(first);
  expect(await asUser(bearer)).toBe("admitted");
  served = undefined;
  clock.pass(HOUR_MS);
  expect([await asUser(bearer), await asService(bearer)]).toEqual(["admitted", "admitted"]);
  clock.pass(1);
  expect(await asUser(await bearerOf(first))).toBe("KEY_SET_UNAVAILABLE");
  expect(heard).toEqual(["failed, undefined"]);
  served = [first.jwk];
  clock.pass(COOLDOWN_MS);
  expect(await asUser(bearer)).toBe("admitted");
  expect(heard).toEqual(["failed, undefined", "recovered"]);
  expect(authenticator.keySetAgeMs).toBe(0);
});

test("a set that was never fetched is KEY_SET_UNAVAILABLE, and asked for once in five seconds", async () => {
  await start(undefined);
  const bearer = await bearerOf(first);
  for (let call = 0; call < 5; call += 1) expect(await asUser(bearer)).toBe("KEY_SET_UNAVAILABLE");
  expect(fetches).toBe(1);
  served = [first.jwk];
  clock.pass(COOLDOWN_MS);
  expect(await asUser(bearer)).toBe("admitted");
  expect(fetches).toBe(2);
});

test("a new signing key is taken up at its first use, with at most one fetch in five seconds however many unknown ones come", async () => {
  await start([first.jwk]);
  expect(await asUser(await bearerOf(first))).toBe("admitted");
  served = [first.jwk, second.jwk];
  clock.pass(COOLDOWN_MS);
  const bearer = await bearerOf(second);
  expect(await Promise.all([asUser(bearer), asService(bearer), asUser(bearer)])).toEqual(Array(3).fill("admitted"));
  expect(fetches).toBe(2);
  for (let stranger = 0; stranger < 10; stranger += 1)
    expect(await asUser(await bearerOf(await pairOf(`stranger ${stranger}`)))).toBe("UNAUTHENTICATED");
  expect(fetches).toBe(2);
});

test("a new key under an old id, or without one, is taken up at its first use too", async () => {
  for (const kid of ["same", undefined]) {
    const [old, fresh] = [await pairOf(kid), await pairOf(kid)];
    await start([old.jwk]);
    expect(await asUser(await bearerOf(old))).toBe("admitted");
    served = [fresh.jwk];
    clock.pass(COOLDOWN_MS);
    expect(await asUser(await bearerOf(fresh))).toBe("admitted");
    expect(await asUser(await bearerOf(old))).toBe("UNAUTHENTICATED");
  }
});

test("only what the last good set can't decide is KEY_SET_UNAVAILABLE: a key it does not have, and no forgery of one it has", async () => {
  await start([first.jwk]);
  expect(await asUser(await bearerOf(first))).toBe("admitted");
  served = undefined;
  clock.pass(COOLDOWN_MS);
  expect(await asUser(await bearerOf(second))).toBe("KEY_SET_UNAVAILABLE");
  expect(await asUser(await bearerOf({ ...second, kid: "first" }))).toBe("UNAUTHENTICATED");
  expect(await asUser(await bearerOf(first))).toBe("admitted");
  expect(await asUser("Bearer garbage")).toBe("UNAUTHENTICATED");
});

test("a key that a fetched set no longer holds is refused at once, also to whoever was admitted by it a moment ago", async () => {
  await start([first.jwk, second.jwk]);
  const bearer = await bearerOf(first);
  expect([await asService(bearer), await asUser(bearer)]).toEqual(["admitted", "admitted"]);
  served = [second.jwk];
  clock.pass(COOLDOWN_MS);
  // Whatever has the set fetched again.
  await asUser(await bearerOf(await pairOf("stranger")));
  expect([await asService(bearer), await asUser(bearer)]).toEqual(["UNAUTHENTICATED", "UNAUTHENTICATED"]);
  // It was decided: an outage of the issuer does not open it again.
  served = undefined;
  clock.pass(COOLDOWN_MS);
  expect([await asService(bearer), await asUser(bearer)]).toEqual(["UNAUTHENTICATED", "UNAUTHENTICATED"]);
});

test("a token without kid is tried against every key that fits", async () => {
  const unnamed = await pairOf();
  await start([first.jwk, second.jwk, unnamed.jwk]);
  for (const { privateKey, jwk } of [first, second, unnamed])
    expect(await asUser(await bearerOf({ privateKey, jwk }))).toBe("admitted");
  const { privateKey, jwk } = await pairOf();
  expect(await asUser(await bearerOf({ privateKey, jwk }))).toBe("UNAUTHENTICATED");
});

test.each([
  ["no JSON", "nothing"],
  ["no key set", JSON.stringify({ keys: "none" })],
  ["too large", JSON.stringify({ keys: [], padding: "x".repeat(1024 * 1024) })],
])("an answer that is %s leaves the last good set as it is", async (_what, answer) => {
  await start([first.jwk]);
  const bearer = await bearerOf(first);
  expect(await asUser(bearer)).toBe("admitted");
  served = answer;
  clock.pass(COOLDOWN_MS);
  expect(await asUser(await bearerOf(second))).toBe("KEY_SET_UNAVAILABLE");
  expect(await asUser(bearer)).toBe("admitted");
});
