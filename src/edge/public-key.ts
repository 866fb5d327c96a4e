import { createPublicKey, type KeyObject } from "node:crypto";

/** A public key as tokens are checked with it. */
type PublicKey = { pem: string } | { problem: string };

const FORMS = { "PUBLIC KEY": "spki", "RSA PUBLIC KEY": "pkcs1" } as const;
const CURVES = ["prime256v1", "secp384r1", "secp521r1"];
const MIN_RSA_BITS = 2_048;

/**
 * `text` in the one spelling that the check of tokens takes (SPKI, PEM), or what is wrong with it. Taken are also a PKCS #1 key,
 * line breaks that became blanks or `\n`, as environments make them, and words before and after.
 */
export function readPublicKey(text: string): PublicKey {
  const blocks = [...text.matchAll(/-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----/gs)];
  const [first, second] = blocks;
  if (blocks.some(([, label]) => label!.endsWith("PRIVATE KEY")))
    return { problem: "must be the public half of the key: openssl pkey -pubout -in private.pem" };
  if (first?.[1] === "CERTIFICATE")
    return { problem: "must be the key in the certificate alone: openssl x509 -pubkey -noout -in certificate.pem" };
  if (second !== undefined)
    return {
      problem: "must be one key; where tokens are signed with several, serve a key set and set LATCHKEY_JWKS_URL",
    };
  const type = FORMS[first?.[1] as keyof typeof FORMS];
  if (first === undefined || type === undefined)
    return { problem: "must be a public key in PEM, from -----BEGIN PUBLIC KEY----- to -----END PUBLIC KEY-----" };
  const key = parsed(first[2]!.replaceAll(/\\r|\\n|\s/g, ""), type);
  if (key === undefined)
    return { problem: "must be a public key in PEM; what stands between its BEGIN and END is none, or is cut short" };
  return isChecked(key)
    ? { pem: key.export({ type: "spki", format: "pem" }).toString() }
    : {
        problem: `must be an RSA key of ${MIN_RSA_BITS} bits or more, or one on P-256, P-384, P-521 or Ed25519: no token signed with any other is taken`,
      };
}

function parsed(base64: string, type: "spki" | "pkcs1"): KeyObject | undefined {
  try {
    return createPublicKey({ key: Buffer.from(base64, "base64"), format: "der", type });
  } catch {
    return undefined;
  }
}

/** Whether there is an algorithm by which a token signed with it is taken. */
function isChecked({ asymmetricKeyType: type, asymmetricKeyDetails: details }: KeyObject): boolean {
  if (type === "rsa") return (details?.modulusLength ?? 0) >= MIN_RSA_BITS;
  if (type === "ec") return CURVES.includes(details?.namedCurve ?? "");
  return type === "ed25519";
}
