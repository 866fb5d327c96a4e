import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { expect, test } from "@jest/globals";
import { SignJWT } from "jose";
import { readPublicKey } from "../../src/edge/public-key.ts";
import { createAuthenticator } from "../../src/edge/tokens.ts";
import { readConfig } from "../../src/service/config.ts";

interface Pair {
  publicKey: KeyObject;
  privateKey: KeyObject;
}

const rsa = generateKeyPairSync("rsa", { modulusLength: 2_048 });
const ec = (namedCurve: string) => generateKeyPairSync("ec", { namedCurve });
const pemOf = ({ publicKey }: Pair, type: "spki" | "pkcs1" = "spki") =>
  publicKey.export({ type, format: "pem" }).toString();

/** Who a token says that it is of, where it is checked with `pem` as it stands in the environment. */
async function userOf(pem: string, { privateKey }: Pair, alg: string): Promise<string> {
  const { tokenKey, adminClaim } = readConfig({ LATCHKEY_JWT_PUBLIC_KEY: pem });
  const authenticator = await createAuthenticator(
    { key: tokenKey!, adminClaim, clock: () => new Date() },
    { kind: "none" },
  );
  const token = await new SignJWT({})
    .setProtectedHeader({ alg })
    .setSubject("alice")
    .setExpirationTime("5m")
    .sign(privateKey);
  return (await authenticator.user(`Bearer ${token}`)).userId;
}

const pem = pemOf(rsa);
const body = pem.replaceAll(/-----[^-]+-----|\s/g, "");

test.each([
  ["as openssl writes it", pem],
  ["without a line break at its end", pem.trimEnd()],
  ["with line breaks of Windows", pem.replaceAll("\n", "\r\n")],
  ["with blanks before and after", ` \n${pem}\n `],
  ["with line breaks as the two characters \\n", pem.replaceAll("\n", "\\n")],
  ["with blanks for line breaks", pem.trimEnd().replaceAll("\n", " ")],
  ["in one line", `-----BEGIN PUBLIC KEY-----${body}-----END PUBLIC KEY-----`],
  ["after words about it", `Modulus: 2048 bit\n${pem}`],
  ["as PKCS #1", pemOf(rsa, "pkcs1")],
])("a public key %s checks tokens from the start on", async (_, spelt) => {
  expect(await userOf(spelt, rsa, "RS256")).toBe("alice");
});

test.each([
  ["PS512", rsa],
  ["ES256", ec("P-256")],
  ["ES384", ec("P-384")],
  ["ES512", ec("P-521")],
  ["EdDSA", generateKeyPairSync("ed25519")],
] as [string, Pair][])("a key for %s checks tokens", async (alg, pair) => {
  expect(await userOf(pemOf(pair), pair, alg)).toBe("alice");
});

test("what is no key that tokens can be checked with is refused at the start, with what to do", () => {
  const problem = (text: string) => {
    const read = readPublicKey(text);
    return "problem" in read ? read.problem : "";
  };
  const privatePem = rsa.privateKey.export({ type: "pkcs8", format: "pem" }).toString();
  for (const text of [
    privatePem,
    privatePem + pem,
    ec("P-256").privateKey.export({ type: "sec1", format: "pem" }).toString(),
  ])
    expect(problem(text)).toContain("openssl pkey -pubout");
  expect(problem(pem.replaceAll("PUBLIC KEY", "CERTIFICATE"))).toContain("openssl x509 -pubkey");
  expect(problem(pem + pemOf(ec("P-256")))).toContain("must be one key");
  for (const text of ["", "garbage", body, pem.slice(0, 100), JSON.stringify(rsa.publicKey.export({ format: "jwk" }))])
    expect(problem(text)).toContain("must be a public key in PEM");
  expect(problem(`-----BEGIN PUBLIC KEY-----\n${body.slice(0, 200)}\n-----END PUBLIC KEY-----`)).toContain("cut short");
  const useless = [ec("secp256k1"), generateKeyPairSync("x25519"), generateKeyPairSync("ed448")] as Pair[];
  for (const pair of [...useless, generateKeyPairSync("rsa", { modulusLength: 1_024 }) as Pair])
    expect(problem(pemOf(pair))).toContain("2048 bits or more");
});
