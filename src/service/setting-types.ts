import { isIP, isIPv6 } from "node:net";
import { z } from "zod";
import type { GatewayKeySources } from "../edge/gateway/presented-key.ts";
import { readPublicKey } from "../edge/public-key.ts";
import type { ServiceToken } from "../edge/tokens.ts";
import { isMetadataName } from "../keys/metadata.ts";
import { isScope, parseScopePatterns, type ScopePatterns } from "../keys/policy.ts";
import type { Pepper } from "../keys/secret.ts";
import { KEY_PREFIX_PATTERN } from "../keys/text.ts";
import { isUriOption, judgeUri } from "../mongo/connection-string.ts";
import { parseDuration } from "./duration.ts";

export interface Address {
  host: string;
  port: number;
}

export const address = z.string().transform((text, context): Address => {
  const match = /^(?:\[([^\]]+)\]|([0-9A-Za-z._-]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  const isHost =
    match?.[1] === undefined ? !/^[0-9.]+$/.test(match?.[2] ?? "") || isIP(match![2]!) === 4 : isIPv6(match[1]);
  if (match && isHost && port <= 65_535) return { host: (match[1] ?? match[2])!, port };
  return fail(context, "must be host:port, for example 127.0.0.1:8080 or [::1]:8080");
});

export const duration = z.string().transform((text, context): number => {
  return parseDuration(text) ?? fail(context, "must be a number with a unit: 200ms, 1s, 15m, 24h or 7d");
});

/** Node takes what doesn't fit in 31 bits of milliseconds for 1 ms. */
export const timeout = duration.refine((ms) => ms >= 1 && ms < 2 ** 31, "must be 1ms to 24d");

export const wholeNumber = (least: number, most: number, or = "") =>
  z.string().transform((text, context): number => {
    const value = Number(text);
    if (/^\d{1,9}$/.test(text) && value >= least && value <= most) return value;
    return fail(context, `must be a whole number from ${least} to ${most}${or}`);
  });

export const count = wholeNumber(1, 999_999_999);

/** Taken as it stands, so that a blank at an end would be a part of it. */
export const text = z.string().refine((value) => /^[^\s\p{Cc}](?:[^\p{Cc}]*[^\s\p{Cc}])?$/u.test(value), {
  message: "must have no blank or line break at its ends, and no control character",
});

export const path = text.refine(
  (value) => !value.startsWith("-----BEGIN"),
  "must be the path of a file, not what is in it",
);

export const list = z.string().transform((text) =>
  text
    .split(",")
    .map((item) => item.trim())
    .filter(Boolean),
);

export const metadataNames = list.refine(
  (names) => names.every(isMetadataName) && new Set(names).size === names.length,
  "must be names of metadata, each once: 1 to 64 of the characters a-z 0-9 -, not beginning with latchkey",
);

export const origins = list.refine(
  (all) => all.every((one) => URL.canParse(one) && new URL(one).origin === one && /^https?:/.test(one)),
  "must be origins as browsers send them: https://app.example, without a path",
);

export const scopeList = list.refine(
  (scopes) => scopes.length > 0 && scopes.every(isScope),
  "must be scopes, comma-separated: 1 to 128 of the characters a-z 0-9 . _ : / - each",
);

export const keyPrefix = z
  .string()
  .regex(KEY_PREFIX_PATTERN, "must have 1 to 32 letters, digits and _, with no _ at either end");

export const scopePatterns = list.transform((patterns, context): ScopePatterns => {
  return (
    parseScopePatterns(patterns) ??
    fail(context, "must be scope patterns such as billing:*, !admin:* separated by commas")
  );
});

export const ring = list.transform((items, context): Pepper[] => {
  const secrets = items.map((item) => {
    const [, id, secret] = /^([0-9A-Za-z._-]{1,32}):([0-9A-Za-z+/_-]+={0,2})$/.exec(item) ?? [];
    return { id: id ?? "", secret: Buffer.from(secret ?? "", "base64") };
  });
  if (secrets.length === 0 || secrets.some(({ id, secret }) => id === "" || secret.length < 32)) {
    return fail(
      context,
      'must be id:base64,id:base64, newest first, of at least 32 bytes each; make one: echo "p1:$(openssl rand -base64 32)"',
    );
  }
  if (new Set(secrets.map(({ id }) => id)).size < secrets.length) return fail(context, "must not use an id twice");
  return secrets;
});

export const SERVICE_NAME = /^[0-9A-Za-z._-]{1,64}$/;

export const serviceTokens = list.transform((items, context): ServiceToken[] => {
  const tokens = items.map((item) => /^([^:]+):sha256:([0-9a-f]{64})$/.exec(item));
  if (tokens.length === 0 || !tokens.every((match) => match && SERVICE_NAME.test(match[1]!))) {
    return fail(
      context,
      "must be name:sha256:<64 hex digits>, separated by commas; make one: latchkey token --service gateway",
    );
  }
  return tokens.map((match) => ({ name: match![1]!, sha256: Buffer.from(match![2]!, "hex") }));
});

export const clientNames = list.transform((names, context): string[] => {
  if (names.length === 0 || !names.every((name) => /^(?:uri|dns|cn):[\x21-\x7e]{1,512}$/.test(name))) {
    return fail(
      context,
      "must be names such as uri:spiffe://mesh/gateway, dns:gateway.internal or cn:gateway, separated by commas",
    );
  }
  return names.map((name) => (name.startsWith("dns:") ? name.toLowerCase() : name));
});

export const adminClaim = z.string().transform((text, context): { name: string; value: string } => {
  const match = /^([^=\s]|[^=\s][^=]*[^=\s])=(\S|\S.*\S)$/.exec(text);
  return match ? { name: match[1]!, value: match[2]! } : fail(context, "must be claim=value, for example role=admin");
});

export const gatewayKeySources = list.transform((items, context): GatewayKeySources => {
  const named = (kind: string) =>
    items.filter((item) => item.startsWith(`${kind}:`)).map((item) => item.slice(kind.length + 1));
  const headers = named("header").map((name) => name.toLowerCase());
  const queries = named("query");
  const known = items.filter((item) => item === "bearer").length + headers.length + queries.length;
  const good =
    headers.every((name) => /^[a-z0-9][a-z0-9_-]{0,63}$/.test(name) && !isTaken(name)) &&
    queries.every((name) => /^[0-9A-Za-z._-]{1,64}$/.test(name));
  if (
    known === 0 ||
    known < items.length ||
    new Set([...headers, ...queries.map((name) => `?${name}`), ...items.filter((item) => item === "bearer")]).size <
      items.length ||
    !good
  ) {
    return fail(
      context,
      "must be one or more of bearer, header:NAME and query:NAME, separated by commas, each once; NAME not authorization, cookie, host or x-latchkey-…",
    );
  }
  return { bearer: items.includes("bearer"), headers, queries };
});

const TAKEN = [
  ...["authorization", "proxy-authorization", "cookie", "host", "content-length", "content-type", "transfer-encoding"],
  ...["connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "expect"],
];

/** Headers whose values are not an API key and nothing else, or that mean something to Latchkey. */
function isTaken(name: string): boolean {
  return TAKEN.includes(name) || name.replaceAll("_", "-").startsWith("x-latchkey-");
}

export const publicKey = z.string().transform((value, context): string => {
  const key = readPublicKey(value);
  return "pem" in key ? key.pem : fail(context, key.problem);
});

/** Its bytes are the key: nothing that an editor or a shell added may be among them. */
export const jwtSecret = z.string().superRefine((value, context) => {
  const problem = (message: string) => context.addIssue({ code: "custom", message });
  if (/-----BEGIN [A-Z ]+-----/.test(value))
    return problem(
      "must be a secret, and no key in PEM, which anyone may have: that belongs into LATCHKEY_JWT_PUBLIC_KEY",
    );
  if (value.includes("\uFFFD")) problem("must be UTF-8 text: of other bytes each became the same character");
  if (value.trim() !== value) problem("must have no blank or line break at its ends: it would be a part of the secret");
  if (Buffer.byteLength(value) < 32) problem("must have at least 32 bytes; make one: openssl rand -base64 48");
});

export const url = z.string().superRefine((value, context) => {
  if (!/^https?:\/\/[^\s]+$/.test(value) || !URL.canParse(value)) return void fail(context, "must be an http(s) URL");
  const { username, password, hash } = new URL(value);
  if (username !== "" || password !== "") fail(context, "must have no user and password in it: they would not be sent");
  if (hash !== "") fail(context, "must have no # in it");
});

export const mongodbUri = z.string().superRefine((text, context) => {
  const judged = judgeUri(text);
  if (judged === undefined)
    return void fail(context, "must be mongodb://host:27017/?replicaSet=rs0 or mongodb+srv://…");
  for (const name of judged.refused) {
    const why = isUriOption(name)
      ? "which Latchkey can't be run with"
      : "which is no option of a MongoDB connection string";
    fail(context, `must not have the option ${name}, ${why}: leave it out`);
  }
});

export const CENTURY_MS = 36_500 * 86_400_000;

const SYSTEM_DATABASES = ["admin", "config", "local"];

export function isDatabaseName(name: string): boolean {
  return (
    /^[^/\\. "'$*<>:|?\p{Cc}\s]+$/u.test(name) && Buffer.byteLength(name) <= 63 && !SYSTEM_DATABASES.includes(name)
  );
}

function fail(context: z.RefinementCtx, message: string): never {
  context.addIssue({ code: "custom", message });
  return z.NEVER;
}
