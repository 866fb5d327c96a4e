import { readFileSync } from "node:fs";
import { isIP, isIPv6 } from "node:net";
import { availableParallelism, homedir } from "node:os";
import { join, resolve } from "node:path";
import { z } from "zod";
import type { GatewayKeySources } from "../edge/gateway/presented-key.ts";
import { readPublicKey } from "../edge/public-key.ts";
import type { ServiceToken, TokenKey } from "../edge/tokens.ts";
import type { ListenerLimits } from "../fastpath/listen.ts";
import { parseScopePatterns, type ScopePatterns } from "../keys/policy.ts";
import type { Pepper } from "../keys/secret.ts";
import { KEY_PREFIX_PATTERN } from "../keys/text.ts";
import { isUriOption, judgeUri } from "../mongo/connection-string.ts";
import { StartupError } from "../observe/startup-error.ts";
import { parseDuration } from "./duration.ts";
import type { TlsFiles } from "./tls-files.ts";

type Environment = Record<string, string | undefined>;

export interface Address {
  host: string;
  port: number;
}

const address = z.string().transform((text, context): Address => {
  const match = /^(?:\[([^\]]+)\]|([0-9A-Za-z._-]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  const isHost =
    match?.[1] === undefined ? !/^[0-9.]+$/.test(match?.[2] ?? "") || isIP(match![2]!) === 4 : isIPv6(match[1]);
  if (match && isHost && port <= 65_535) return { host: (match[1] ?? match[2])!, port };
  return fail(context, "must be host:port, for example 127.0.0.1:8080 or [::1]:8080");
});

const duration = z.string().transform((text, context): number => {
  return parseDuration(text) ?? fail(context, "must be a number with a unit: 200ms, 1s, 15m, 24h or 7d");
});

/** Node takes what doesn't fit in 31 bits of milliseconds for 1 ms. */
const timeout = duration.refine((ms) => ms >= 1 && ms < 2 ** 31, "must be 1ms to 24d");

const wholeNumber = (least: number, most: number, or = "") =>
  z.string().transform((text, context): number => {
    const value = Number(text);
    if (/^\d{1,9}$/.test(text) && value >= least && value <= most) return value;
    return fail(context, `must be a whole number from ${least} to ${most}${or}`);
  });

const count = wholeNumber(1, 999_999_999);

/** Taken as it stands, so that a blank at an end would be a part of it. */
const text = z.string().refine((value) => /^[^\s\p{Cc}](?:[^\p{Cc}]*[^\s\p{Cc}])?$/u.test(value), {
  message: "must have no blank or line break at its ends, and no control character",
});

const path = text.refine((value) => !value.startsWith("-----BEGIN"), "must be the path of a file, not what is in it");

const list = z.string().transform((text) =>
  text
    .split(",")
    .map((item) => item.trim())
    .filter(Boolean),
);

const keyPrefix = z
  .string()
  .regex(KEY_PREFIX_PATTERN, "must have 1 to 32 letters, digits and _, with no _ at either end");

const scopePatterns = list.transform((patterns, context): ScopePatterns => {
  return (
    parseScopePatterns(patterns) ??
    fail(context, "must be scope patterns such as billing:*, !admin:* separated by commas")
  );
});

const ring = list.transform((items, context): Pepper[] => {
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

const serviceTokens = list.transform((items, context): ServiceToken[] => {
  const tokens = items.map((item) => /^([^:]+):sha256:([0-9a-f]{64})$/.exec(item));
  if (tokens.length === 0 || !tokens.every((match) => match && SERVICE_NAME.test(match[1]!))) {
    return fail(
      context,
      "must be name:sha256:<64 hex digits>, separated by commas; make one: latchkey token --service gateway",
    );
  }
  return tokens.map((match) => ({ name: match![1]!, sha256: Buffer.from(match![2]!, "hex") }));
});

const clientNames = list.transform((names, context): string[] => {
  if (names.length === 0 || !names.every((name) => /^(?:uri|dns|cn):[\x21-\x7e]{1,512}$/.test(name))) {
    return fail(
      context,
      "must be names such as uri:spiffe://mesh/gateway, dns:gateway.internal or cn:gateway, separated by commas",
    );
  }
  return names.map((name) => (name.startsWith("dns:") ? name.toLowerCase() : name));
});

const adminClaim = z.string().transform((text, context): { name: string; value: string } => {
  const match = /^([^=\s]|[^=\s][^=]*[^=\s])=(\S|\S.*\S)$/.exec(text);
  return match ? { name: match[1]!, value: match[2]! } : fail(context, "must be claim=value, for example role=admin");
});

const gatewayKeySources = list.transform((items, context): GatewayKeySources => {
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

const publicKey = z.string().transform((value, context): string => {
  const key = readPublicKey(value);
  return "pem" in key ? key.pem : fail(context, key.problem);
});

/** Its bytes are the key: nothing that an editor or a shell added may be among them. */
const jwtSecret = z.string().superRefine((value, context) => {
  const problem = (message: string) => context.addIssue({ code: "custom", message });
  if (/-----BEGIN [A-Z ]+-----/.test(value))
    return problem(
      "must be a secret, and no key in PEM, which anyone may have: that belongs into LATCHKEY_JWT_PUBLIC_KEY",
    );
  if (value.includes("\uFFFD")) problem("must be UTF-8 text: of other bytes each became the same character");
  if (value.trim() !== value) problem("must have no blank or line break at its ends: it would be a part of the secret");
  if (Buffer.byteLength(value) < 32) problem("must have at least 32 bytes; make one: openssl rand -base64 48");
});

const url = z.string().superRefine((value, context) => {
  if (!/^https?:\/\/[^\s]+$/.test(value) || !URL.canParse(value)) return void fail(context, "must be an http(s) URL");
  const { username, password, hash } = new URL(value);
  if (username !== "" || password !== "") fail(context, "must have no user and password in it: they would not be sent");
  if (hash !== "") fail(context, "must have no # in it");
});

const mongodbUri = z.string().superRefine((text, context) => {
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

const CENTURY_MS = 36_500 * 86_400_000;

/** Every variable there is. `describe` is its effect in docs/configuration.md; `meta.shown` its default there. */
export const VARIABLES = {
  LATCHKEY_LISTEN: address
    .prefault("127.0.0.1:8080")
    .describe("address of the one public port (port 0: any, printed in the ready line)"),
  LATCHKEY_OPS_LISTEN: z
    .union([z.literal("off"), address], "must be host:port, for example 127.0.0.1:9090 or [::1]:9090, or off")
    .prefault("127.0.0.1:9090")
    .describe("metrics, liveness and readiness over plain HTTP; `off`"),
  LATCHKEY_DATA_DIR: path.prefault(".latchkey").describe("embedded database and development secrets"),
  MONGODB_URI: mongodbUri
    .optional()
    .meta({ secret: true, shown: "embedded" })
    .describe("where records live: a replica set or a sharded cluster"),
  MONGODB_DATABASE: z
    .string()
    .refine(
      isDatabaseName,
      "must be a database name of MongoDB: up to 63 bytes, none of / \\ . $ * < > : | ? or quotes or blanks, and not admin, config or local",
    )
    .prefault("latchkey")
    .describe("the database in it"),
  MONGOD_BINARY: path.optional().meta({ shown: "found or fetched" }).describe("the `mongod` to run when embedded"),
  LATCHKEY_KEY_PREFIX: keyPrefix.prefault("lk").describe("what new keys begin with"),
  LATCHKEY_KEY_PREFIX_ALSO: list
    .pipe(z.array(keyPrefix))
    .prefault("")
    .describe("earlier prefixes whose keys go on working, comma-separated"),
  LATCHKEY_PEPPERS: ring
    .optional()
    .meta({ secret: true, shown: "made once when embedded" })
    .describe("`id:base64,id:base64`, newest first: keys of the fingerprints"),
  LATCHKEY_REQUEST_KEYS: ring
    .optional()
    .meta({ secret: true, shown: "made once when embedded" })
    .describe(
      "`id:base64,id:base64`, newest first: what secrets of calls with a `request_id` are derived from; unset beside `MONGODB_URI`: `request_id` is refused",
    ),
  LATCHKEY_JWT_SECRET: jwtSecret
    .optional()
    .meta({ secret: true, shown: "made once when embedded" })
    .describe("HS256 secret of user tokens, its UTF-8 bytes. Exactly one of this and the next two"),
  LATCHKEY_JWT_PUBLIC_KEY: publicKey
    .optional()
    .meta({ secret: true })
    .describe("public key of user tokens, PEM (SPKI)"),
  LATCHKEY_JWKS_URL: url.optional().describe("key set of user tokens"),
  LATCHKEY_JWKS_MAX_AGE: duration
    .refine((ms) => ms >= 60_000 && ms < 2 ** 31, "must be 1m to 24d")
    .prefault("12h")
    .describe(
      "how long the last key set that could be fetched is good without another; it is fetched every few minutes",
    ),
  LATCHKEY_JWT_ISSUER: text.optional().describe("`iss` that user tokens must carry"),
  LATCHKEY_JWT_AUDIENCE: text
    .optional()
    .describe("`aud` that user tokens must carry; unset: any but `LATCHKEY_VERIFY_AUDIENCE`"),
  LATCHKEY_ADMIN_CLAIM: adminClaim
    .prefault("role=admin")
    .describe("claim and value that mark an admin; the claim may be a string or an array holding the value"),
  LATCHKEY_VERIFY_AUTH: z
    .enum(["none", "token", "jwt", "mtls"], "must be none, token, jwt or mtls")
    .optional()
    .meta({ shown: "`none` on loopback" })
    .describe(
      "who may call Verify, Watch and ask as a gateway: anyone (`none`), holders of a service token (`token`), of a JWT (`jwt`), of a client certificate (`mtls`). Off loopback it must be said",
    ),
  LATCHKEY_VERIFY_OPEN: z
    .literal("yes", "must be yes, or be left out")
    .optional()
    .describe("`yes`: said a second time, that `none` is meant off loopback"),
  LATCHKEY_VERIFY_AUDIENCE: text.optional().describe("`aud` of the JWTs of callers of Verify, needed for `jwt`"),
  LATCHKEY_SERVICE_TOKENS: serviceTokens
    .optional()
    .meta({ secret: true })
    .describe("`name:sha256:hex,…`, needed for `token`; `latchkey token --service NAME` makes one"),
  LATCHKEY_VERIFY_CLIENTS: clientNames
    .optional()
    .meta({ shown: "any" })
    .describe(
      "for `mtls`, names of which a client's certificate must have one, comma-separated: `uri:…` and `dns:…` (alternative names), `cn:…`",
    ),
  LATCHKEY_GATEWAY_KEY_FROM: gatewayKeySources
    .prefault("bearer,header:x-api-key")
    .describe(
      "where requests to a gateway carry their API key, comma-separated: `bearer` (`authorization`), `header:NAME`, `query:NAME`. Headers whose NAME has more than letters, digits and hyphens are dropped by many gateways (nginx; Caddy from 2.11.4 on, with `_`)",
    ),
  LATCHKEY_GATEWAY_TIMEOUT: duration
    .refine((ms) => ms >= 50 && ms <= 10_000, "must be 50ms to 10s")
    .prefault("300ms")
    .describe(
      "time in which a gateway is answered that names none (as `grpc-timeout` does), the reason included: less than the gateway waits, which is 500 ms in the shipped files",
    ),
  LATCHKEY_SCOPES: scopePatterns
    .prefault("*")
    .describe("scopes that exist: patterns, comma-separated; `*` matches anything, `!pattern` takes away"),
  LATCHKEY_MEMBER_SCOPES: scopePatterns
    .prefault("!admin,!admin:*")
    .describe("scopes that callers other than admins may grant"),
  LATCHKEY_MAX_TTL: duration
    .refine((ms) => ms >= 1_000 && ms <= CENTURY_MS, "must be 1s to 36500d")
    .optional()
    .describe("longest lifetime of a key"),
  LATCHKEY_MAX_GRACE: duration
    .refine((ms) => ms <= CENTURY_MS, "must be at most 36500d")
    .prefault("7d")
    .describe("longest grace period of a replaced key"),
  LATCHKEY_AUDIT_RETENTION: duration
    // MongoDB keeps the seconds of a TTL index in 31 bits.
    .refine((ms) => ms >= 1_000 && ms <= 24_855 * 86_400_000, "must be 1s to 24855d")
    .prefault("90d")
    .describe("how long entries of the audit trail are kept"),
  LATCHKEY_PURGE_AFTER: duration
    .refine((ms) => ms >= 86_400_000 && ms <= CENTURY_MS, "must be 1d to 36500d")
    .optional()
    .meta({ shown: "never" })
    .describe("records of keys are removed this long after the keys ended"),
  LATCHKEY_MAX_STALENESS: duration
    .refine((ms) => ms >= 100 && ms <= 3_600_000, "must be 100ms to 1h")
    .prefault("1s")
    .describe("a revoked key is refused everywhere within this time while MongoDB answers"),
  LATCHKEY_OUTAGE_GRACE: duration
    // For as long a process that is cut off takes a revoked key.
    .refine((ms) => ms <= 7 * 86_400_000, "must be at most 7d")
    .prefault("30s")
    .describe(
      "how long keys in memory stay good, counted from the last proof of freshness, while it does not; `0s`: not at all",
    ),
  LATCHKEY_READ_TIMEOUT: duration
    .refine((ms) => ms >= 10 && ms <= 3_600_000, "must be 10ms to 1h")
    .prefault("150ms")
    .describe("time without an answer to a read of Verify after which MongoDB counts as away"),
  // The most that a Map can hold: 2²⁴ entries.
  LATCHKEY_CACHE_KEYS: wholeNumber(1, 16_000_000).prefault("100000").describe("records held in memory"),
  LATCHKEY_WORKERS: z
    .union(
      [z.literal("auto").transform(() => availableParallelism()), wholeNumber(1, 1_024)],
      "must be a whole number from 1 to 1024, or auto",
    )
    .prefault("1")
    .describe("processes that share the public port; `auto`: one a core. Each keeps a memory of records of its own"),
  LATCHKEY_HASH_CONCURRENCY: wholeNumber(1, 1_024)
    .optional()
    .meta({ shown: "cores" })
    .describe("argon2 runs at once, of all workers together"),
  LATCHKEY_HASH_QUEUE: count.prefault("64").describe("calls that may wait for one, a worker"),
  LATCHKEY_TLS_CERT_FILE: path
    .optional()
    .describe("certificate of the public port, PEM, with what stands between it and its root; unset: cleartext"),
  LATCHKEY_TLS_KEY_FILE: path.optional().describe("its key, PEM"),
  LATCHKEY_TLS_CLIENT_CA_FILE: path
    .optional()
    .describe("who signs the certificates of clients, PEM, needed for `mtls`"),
  LATCHKEY_PLAINTEXT: z
    .literal("yes", "must be yes, or be left out")
    .optional()
    .describe("`yes`: cleartext is meant though `LATCHKEY_LISTEN` is not a loopback address"),
  LATCHKEY_MAX_MESSAGE_BYTES: wholeNumber(256, 999_999_999).prefault("65536").describe("largest request message"),
  LATCHKEY_MAX_CONNECTIONS: count.prefault("10000").describe("connections at once; more are closed unanswered"),
  LATCHKEY_MAX_STREAMS: count
    .prefault("250")
    .describe(
      "HTTP/2 streams at once on a connection; of those opened beyond, 1,000 wait, and more are refused by OVERLOADED",
    ),
  LATCHKEY_MAX_HEADER_BYTES: wholeNumber(512, 999_999_999)
    .prefault("16384")
    .describe("all headers of a request together"),
  LATCHKEY_MAX_HEADERS: wholeNumber(16, 999_999_999).prefault("128").describe("headers of an HTTP/2 request"),
  LATCHKEY_MAX_SESSION_MEMORY: count.prefault("4").describe("MiB that an HTTP/2 connection may hold"),
  LATCHKEY_MAX_INVALID_FRAMES: count
    .prefault("100")
    .describe("invalid HTTP/2 frames after which a connection is closed"),
  LATCHKEY_MAX_REJECTED_STREAMS: count
    .prefault("1000")
    .describe("streams refused on an HTTP/2 connection after which it is closed"),
  LATCHKEY_HANDSHAKE_TIMEOUT: timeout
    .prefault("10s")
    .describe("time for a TLS handshake, in cleartext for the first bytes"),
  LATCHKEY_HEADERS_TIMEOUT: timeout.prefault("10s").describe("time for the headers of an HTTP/1.1 request"),
  LATCHKEY_REQUEST_TIMEOUT: timeout
    .prefault("30s")
    .describe(
      "time for a whole request, and for its client to take what it is sent: over HTTP/2 a whole answer, on any connection some of it",
    ),
  LATCHKEY_IDLE_TIMEOUT: timeout
    .prefault("2m")
    .describe("time without a request or an open stream after which a connection is closed"),
  LATCHKEY_DRAIN_DELAY: duration
    .refine((ms) => ms <= 3_600_000, "must be at most 1h")
    .prefault("0s")
    .describe(
      "how long connections and calls are still taken after SIGTERM, while readiness already says no: as long as balancers and gateways take to notice, `5s` under Kubernetes",
    ),
  LATCHKEY_KEEPALIVE_PROBE: duration
    // Linux takes whole seconds, up to 32,767.
    .refine((ms) => ms >= 1_000 && ms <= 9 * 3_600_000, "must be 1s to 9h")
    .prefault("1m")
    .describe("silence after which TCP probes whether a client is still there"),
  LATCHKEY_LOG_LEVEL: z
    .enum(["trace", "debug", "info", "warn", "error", "silent"], "must be trace, debug, info, warn, error or silent")
    .prefault("info")
    .describe("`debug` also logs each Verify"),
};

/** Variables of the CLI's client commands. */
export const CLIENT_VARIABLES = {
  LATCHKEY_URL: url.prefault("http://127.0.0.1:8080").describe("the service that `latchkey create`, `get`, … call"),
  LATCHKEY_TOKEN: z
    .string()
    .regex(/^[\x21-\x7e]+$/, "must be one line of visible ASCII characters")
    .optional()
    .meta({ secret: true })
    .describe("the bearer token they send"),
  LATCHKEY_CA_FILE: path
    .optional()
    .meta({ shown: "well-known" })
    .describe("who signed the certificate of an https service, PEM"),
  LATCHKEY_CLIENT_CERT_FILE: path.optional().describe("the certificate that they show, PEM, for `mtls`"),
  LATCHKEY_CLIENT_KEY_FILE: path.optional().describe("its key, PEM"),
};

const schema = z.object(VARIABLES);
const clientSchema = z.object(CLIENT_VARIABLES);
type Settings = z.output<typeof schema>;

export type Config = Readonly<ReturnType<typeof toConfig>>;

/** The environment as a frozen configuration. Throws a StartupError that lists every problem at once. */
export function readConfig(environment: Environment = process.env): Config {
  const problems: string[] = [];
  const parsed = parse(schema, environment, problems);
  const known = new Set(
    Object.entries({ ...VARIABLES, ...CLIENT_VARIABLES }).flatMap(([name, type]) =>
      isSecret(type) ? [name, `${name}_FILE`] : [name],
    ),
  );
  for (const [name, value] of Object.entries(environment)) {
    // A typo must not silently leave a limit unset.
    if (name.startsWith("LATCHKEY_") && !known.has(name) && !isServiceLink(name, value ?? ""))
      problems.push(unknownVariable(name));
  }
  if (parsed.success && parsed.isWhole) problems.push(...contradictions(parsed.data));
  if (problems.length > 0 || !parsed.success) {
    throw new StartupError(
      `The configuration has ${problems.length} problem(s):\n${problems.map((problem) => `  - ${problem}`).join("\n")}`,
    );
  }
  return Object.freeze(toConfig(parsed.data, environment));
}

/** The forms of what Kubernetes sets for a Service called `latchkey` or `latchkey-…` in the same namespace. */
const SERVICE_LINKS: [name: RegExp, isItsValue: (value: string, transport?: string) => boolean][] = [
  [/^LATCHKEY_(?:\w+_)?SERVICE_HOST$/, (value) => isIP(value) !== 0],
  [/^LATCHKEY_(?:\w+_)?SERVICE_PORT(?:_\w+)?$/, isPort],
  [/^LATCHKEY_(?:\w+_)?PORT(?:_\d+_(TCP|UDP|SCTP))?$/, isEndpoint],
  [/^LATCHKEY_(?:\w+_)?PORT_\d+_(TCP|UDP|SCTP)_PROTO$/, (value, transport) => value === transport],
  [/^LATCHKEY_(?:\w+_)?PORT_\d+_(?:TCP|UDP|SCTP)_PORT$/, isPort],
  [/^LATCHKEY_(?:\w+_)?PORT_\d+_(?:TCP|UDP|SCTP)_ADDR$/, (value) => isIP(value) !== 0],
];

/** By name and value together, so that no misspelt setting passes for one. */
function isServiceLink(name: string, value: string): boolean {
  return SERVICE_LINKS.some(([form, isItsValue]) => {
    const match = form.exec(name);
    return match !== null && isItsValue(value, match[1]?.toLowerCase());
  });
}

/** Whether a name is such that Kubernetes might set it. No setting has one. */
export function isServiceLinkName(name: string): boolean {
  return SERVICE_LINKS.some(([form]) => form.test(name));
}

function isEndpoint(value: string, transport?: string): boolean {
  const [, scheme, bracketed, plain, port] = /^(tcp|udp|sctp):\/\/(?:\[([^\]]+)\]|([^:[\]]+)):(\d+)$/.exec(value) ?? [];
  if (scheme === undefined || (transport !== undefined && scheme !== transport)) return false;
  return isIP(bracketed ?? plain!) === (bracketed === undefined ? 4 : 6) && isPort(port!);
}

function isPort(text: string): boolean {
  return /^\d{1,5}$/.test(text) && Number(text) > 0 && Number(text) <= 65_535;
}

function unknownVariable(name: string): string {
  if (isServiceLinkName(name))
    return `${name} is not a variable of Latchkey: the address and port that it listens on are set together, by LATCHKEY_LISTEN=127.0.0.1:8080`;
  return `${name} is not a variable of Latchkey; see docs/configuration.md`;
}

const SYSTEM_DATABASES = ["admin", "config", "local"];

function isDatabaseName(name: string): boolean {
  return (
    /^[^/\\. "'$*<>:|?\p{Cc}\s]+$/u.test(name) && Buffer.byteLength(name) <= 63 && !SYSTEM_DATABASES.includes(name)
  );
}

/** Files in PEM; `certFile` and `keyFile` are set together. */
export interface ClientTlsFiles {
  caFile?: string | undefined;
  certFile?: string | undefined;
  keyFile?: string | undefined;
}

interface ClientConfig {
  url: string;
  token: string | undefined;
  tls: ClientTlsFiles;
}

/** The settings of the CLI's client commands. */
export function readClientConfig(environment: Environment = process.env): ClientConfig {
  const problems: string[] = [];
  const parsed = parse(clientSchema, environment, problems);
  const { LATCHKEY_CLIENT_CERT_FILE: certFile, LATCHKEY_CLIENT_KEY_FILE: keyFile } = parsed.data ?? {};
  if ((certFile === undefined) !== (keyFile === undefined))
    problems.push("LATCHKEY_CLIENT_CERT_FILE and LATCHKEY_CLIENT_KEY_FILE need each other: set both, or neither");
  if (problems.length > 0 || !parsed.success) throw new StartupError(problems.join("\n"));
  return {
    url: parsed.data.LATCHKEY_URL.replace(/\/+$/, ""),
    token: parsed.data.LATCHKEY_TOKEN,
    tls: { caFile: parsed.data.LATCHKEY_CA_FILE, certFile, keyFile },
  };
}

/** Only a literal loopback address counts: a name may come to mean something else. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));
}

/** Settings that one way alone of authenticating callers of Verify needs. */
const ONLY_WITH = [
  ["LATCHKEY_VERIFY_OPEN", "none"],
  ["LATCHKEY_SERVICE_TOKENS", "token"],
  ["LATCHKEY_VERIFY_AUDIENCE", "jwt"],
  ["LATCHKEY_TLS_CLIENT_CA_FILE", "mtls"],
  ["LATCHKEY_VERIFY_CLIENTS", "mtls"],
] as const;

function contradictions(settings: Settings): string[] {
  const problems: string[] = [];
  const { MONGODB_URI: uri, LATCHKEY_VERIFY_AUTH: verifyAuth } = settings;
  const tokenKeys = [settings.LATCHKEY_JWT_SECRET, settings.LATCHKEY_JWT_PUBLIC_KEY, settings.LATCHKEY_JWKS_URL].filter(
    (value) => value !== undefined,
  );
  if (tokenKeys.length > 1) {
    problems.push(
      "LATCHKEY_JWT_SECRET, LATCHKEY_JWT_PUBLIC_KEY and LATCHKEY_JWKS_URL exclude each other: set exactly one",
    );
  }
  if (uri !== undefined && tokenKeys.length === 0) {
    problems.push(
      "LATCHKEY_JWKS_URL, LATCHKEY_JWT_PUBLIC_KEY or LATCHKEY_JWT_SECRET must be set when MONGODB_URI is; a secret is made by: openssl rand -base64 48",
    );
  }
  if (uri !== undefined && settings.LATCHKEY_PEPPERS === undefined) {
    problems.push('LATCHKEY_PEPPERS must be set when MONGODB_URI is; make one: echo "p1:$(openssl rand -base64 32)"');
  }
  if ((settings.LATCHKEY_TLS_CERT_FILE === undefined) !== (settings.LATCHKEY_TLS_KEY_FILE === undefined))
    problems.push("LATCHKEY_TLS_CERT_FILE and LATCHKEY_TLS_KEY_FILE need each other: set both, or neither");
  if (verifyAuth === "mtls" && settings.LATCHKEY_TLS_CLIENT_CA_FILE === undefined) {
    problems.push(
      "LATCHKEY_TLS_CLIENT_CA_FILE must be set when LATCHKEY_VERIFY_AUTH is mtls: who signs the clients' certificates",
    );
  }
  for (const [name, meant] of ONLY_WITH) {
    if (settings[name] !== undefined && verifyAuth !== meant)
      problems.push(`${name} means nothing unless LATCHKEY_VERIFY_AUTH is ${meant}: set that, or leave it out`);
  }
  if (settings.LATCHKEY_PLAINTEXT !== undefined && settings.LATCHKEY_TLS_CERT_FILE !== undefined)
    problems.push(
      "LATCHKEY_PLAINTEXT means nothing beside LATCHKEY_TLS_CERT_FILE: the port speaks TLS. Leave one of them out",
    );
  const { LATCHKEY_LISTEN: listen, LATCHKEY_OPS_LISTEN: ops } = settings;
  if (ops !== "off" && listen.port !== 0 && listen.port === ops.port && listen.host === ops.host)
    problems.push("LATCHKEY_LISTEN and LATCHKEY_OPS_LISTEN are the same address: set another port for one of them");
  if (settings.LATCHKEY_TLS_CLIENT_CA_FILE !== undefined && settings.LATCHKEY_TLS_CERT_FILE === undefined)
    problems.push("LATCHKEY_TLS_CERT_FILE and LATCHKEY_TLS_KEY_FILE must be set when LATCHKEY_TLS_CLIENT_CA_FILE is");
  const { host } = settings.LATCHKEY_LISTEN;
  if (!isLoopback(host) && settings.LATCHKEY_TLS_CERT_FILE === undefined && settings.LATCHKEY_PLAINTEXT !== "yes") {
    problems.push(
      `LATCHKEY_TLS_CERT_FILE and LATCHKEY_TLS_KEY_FILE must be set when LATCHKEY_LISTEN is not a loopback address (it is ${host}): keys and tokens would cross the network in cleartext. If something else encrypts them there (a service mesh, a proxy on the same host), set LATCHKEY_PLAINTEXT=yes`,
    );
  }
  if (!isLoopback(host) && verifyAuth === undefined) {
    problems.push(
      `LATCHKEY_VERIFY_AUTH must be set when LATCHKEY_LISTEN is not a loopback address (it is ${host}): mtls, token, jwt or none`,
    );
  }
  if (!isLoopback(host) && verifyAuth === "none" && settings.LATCHKEY_VERIFY_OPEN !== "yes") {
    problems.push(
      `LATCHKEY_VERIFY_AUTH=none lets anyone who reaches ${host} call Verify; if that is meant, also set LATCHKEY_VERIFY_OPEN=yes`,
    );
  }
  if (verifyAuth === "token" && settings.LATCHKEY_SERVICE_TOKENS === undefined) {
    problems.push(
      "LATCHKEY_SERVICE_TOKENS must be set when LATCHKEY_VERIFY_AUTH is token; make one: latchkey token --service gateway",
    );
  }
  if (verifyAuth === "jwt" && settings.LATCHKEY_VERIFY_AUDIENCE === undefined) {
    problems.push(
      "LATCHKEY_VERIFY_AUDIENCE must be set when LATCHKEY_VERIFY_AUTH is jwt: the audience of service callers' tokens",
    );
  }
  if (verifyAuth === "jwt" && settings.LATCHKEY_VERIFY_AUDIENCE === settings.LATCHKEY_JWT_AUDIENCE) {
    problems.push("LATCHKEY_VERIFY_AUDIENCE must differ from LATCHKEY_JWT_AUDIENCE, or any user could call Verify");
  }
  return problems;
}

function toConfig(settings: Settings, environment: Environment) {
  return {
    listen: settings.LATCHKEY_LISTEN,
    opsListen: settings.LATCHKEY_OPS_LISTEN,
    dataDir: resolve(settings.LATCHKEY_DATA_DIR),
    cacheDir: join(environment.XDG_CACHE_HOME || join(homedir(), ".cache"), "latchkey"),
    path: environment.PATH,
    mongodbUri: settings.MONGODB_URI,
    database: settings.MONGODB_DATABASE,
    mongodBinary: settings.MONGOD_BINARY,
    keyPrefix: settings.LATCHKEY_KEY_PREFIX,
    /** The current prefix and the earlier ones. */
    keyPrefixes: [settings.LATCHKEY_KEY_PREFIX, ...settings.LATCHKEY_KEY_PREFIX_ALSO],
    peppers: settings.LATCHKEY_PEPPERS,
    /** Undefined: made once when embedded, else none. */
    requestKeys: settings.LATCHKEY_REQUEST_KEYS,
    tokenKey: tokenKey(settings),
    jwksMaxAgeMs: settings.LATCHKEY_JWKS_MAX_AGE,
    tokenIssuer: settings.LATCHKEY_JWT_ISSUER,
    tokenAudience: settings.LATCHKEY_JWT_AUDIENCE,
    adminClaim: settings.LATCHKEY_ADMIN_CLAIM,
    verifyAuth: settings.LATCHKEY_VERIFY_AUTH ?? "none",
    verifyAudience: settings.LATCHKEY_VERIFY_AUDIENCE,
    serviceTokens: settings.LATCHKEY_SERVICE_TOKENS ?? [],
    /** Names, one of which a client's certificate must have; empty: any will do. */
    verifyClients: settings.LATCHKEY_VERIFY_CLIENTS ?? [],
    gatewayKeyFrom: settings.LATCHKEY_GATEWAY_KEY_FROM,
    gatewayTimeoutMs: settings.LATCHKEY_GATEWAY_TIMEOUT,
    scopes: settings.LATCHKEY_SCOPES,
    memberScopes: settings.LATCHKEY_MEMBER_SCOPES,
    maxTtlMs: settings.LATCHKEY_MAX_TTL,
    maxGraceMs: settings.LATCHKEY_MAX_GRACE,
    auditRetentionMs: settings.LATCHKEY_AUDIT_RETENTION,
    /** Undefined: never. */
    purgeAfterMs: settings.LATCHKEY_PURGE_AFTER,
    maxStalenessMs: settings.LATCHKEY_MAX_STALENESS,
    outageGraceMs: settings.LATCHKEY_OUTAGE_GRACE,
    readTimeoutMs: settings.LATCHKEY_READ_TIMEOUT,
    cacheKeys: settings.LATCHKEY_CACHE_KEYS,
    workers: settings.LATCHKEY_WORKERS,
    hashConcurrency: settings.LATCHKEY_HASH_CONCURRENCY,
    hashQueue: settings.LATCHKEY_HASH_QUEUE,
    tls: tlsFiles(settings),
    drainDelayMs: settings.LATCHKEY_DRAIN_DELAY,
    limits: {
      maxConnections: settings.LATCHKEY_MAX_CONNECTIONS,
      maxConcurrentStreams: settings.LATCHKEY_MAX_STREAMS,
      maxHeaderBytes: settings.LATCHKEY_MAX_HEADER_BYTES,
      maxHeaderPairs: settings.LATCHKEY_MAX_HEADERS,
      maxSessionMemoryMiB: settings.LATCHKEY_MAX_SESSION_MEMORY,
      maxSessionInvalidFrames: settings.LATCHKEY_MAX_INVALID_FRAMES,
      maxSessionRejectedStreams: settings.LATCHKEY_MAX_REJECTED_STREAMS,
      maxMessageBytes: settings.LATCHKEY_MAX_MESSAGE_BYTES,
      firstBytesTimeoutMs: settings.LATCHKEY_HANDSHAKE_TIMEOUT,
      headersTimeoutMs: settings.LATCHKEY_HEADERS_TIMEOUT,
      requestTimeoutMs: settings.LATCHKEY_REQUEST_TIMEOUT,
      idleTimeoutMs: settings.LATCHKEY_IDLE_TIMEOUT,
      keepAliveProbeMs: settings.LATCHKEY_KEEPALIVE_PROBE,
    } satisfies ListenerLimits,
    logLevel: settings.LATCHKEY_LOG_LEVEL,
  };
}

function tlsFiles(settings: Settings): TlsFiles | undefined {
  const { LATCHKEY_TLS_CERT_FILE: certFile, LATCHKEY_TLS_KEY_FILE: keyFile } = settings;
  if (certFile === undefined || keyFile === undefined) return undefined;
  return { certFile, keyFile, clientCaFile: settings.LATCHKEY_TLS_CLIENT_CA_FILE };
}

function tokenKey(settings: Settings): TokenKey | undefined {
  if (settings.LATCHKEY_JWT_SECRET !== undefined) return { kind: "secret", secret: settings.LATCHKEY_JWT_SECRET };
  if (settings.LATCHKEY_JWT_PUBLIC_KEY !== undefined)
    return { kind: "publicKey", pem: settings.LATCHKEY_JWT_PUBLIC_KEY };
  if (settings.LATCHKEY_JWKS_URL !== undefined) return { kind: "jwks", url: settings.LATCHKEY_JWKS_URL };
  return undefined;
}

/** Secrets may also come from files, so that they need not stand in an environment. Empty values count as unset. */
function parse<Shape extends z.ZodRawShape>(schema: z.ZodObject<Shape>, environment: Environment, problems: string[]) {
  const values: Environment = {};
  for (const [name, type] of Object.entries(schema.shape)) {
    const secret = isSecret(type as z.ZodType);
    const file = (secret && environment[`${name}_FILE`]) || undefined;
    const value = file === undefined ? environment[name] || undefined : readSecret(name, file, problems);
    if (environment[name] && file !== undefined) problems.push(`${name} and ${name}_FILE exclude each other: set one`);
    const spoilt = value === undefined ? undefined : whatSpoils(value);
    if (spoilt === undefined) values[name] = value;
    else problems.push(`${name} ${spoilt}`);
  }
  const parsed = schema.safeParse(values);
  for (const {
    path: [name],
    message,
  } of parsed.error?.issues ?? []) {
    const value = values[String(name)] ?? "";
    const kind = isSecret(schema.shape[String(name)] as z.ZodType) ? kindOf(value) : shown(value);
    problems.push(`${String(name)} is ${kind}: it ${message}`);
  }
  return { ...parsed, isWhole: problems.length === 0 };
}

/** Characters that no value has on purpose. */
function whatSpoils(value: string): string | undefined {
  if (value.trim() === "") return "is blank: set it, or leave it out";
  if (/^\s*(["']).*\1\s*$/s.test(value))
    return "has quotes around it, which are taken for a part of it (docker --env-file leaves them): leave them out";
  return undefined;
}

/** For values that may be secret. */
function kindOf(value: string): string {
  const [, label] = /-----BEGIN ([A-Z0-9 ]{1,40})-----/.exec(value) ?? [];
  if (label !== undefined) return `PEM (${label})`;
  const lines = value.split("\n").length;
  return `${value.length} character(s)${lines > 1 ? ` in ${lines} lines` : ""}`;
}

/** For the others; a password in a URL, or a key where a path belongs, is secret all the same. */
function shown(value: string): string {
  if (value.includes("-----BEGIN ")) return kindOf(value);
  const open = value.replace(/\/\/[^/]*@/, "//…@");
  return JSON.stringify(open.length > 80 ? `${open.slice(0, 80)}…` : open);
}

function readSecret(name: string, file: string, problems: string[]): string | undefined {
  try {
    const text = new TextDecoder().decode(readFileSync(file)).replace(/\r?\n$/, "");
    if (text === "") problems.push(`${name}_FILE names a file that is empty`);
    return text || undefined;
  } catch (error) {
    // Its path is not shown: it may be the secret itself, where that was set by mistake.
    const { code = "" } = error as NodeJS.ErrnoException;
    problems.push(`${name}_FILE can't be read (${code}): it must be the path of a file that this user may read`);
    return undefined;
  }
}

export function isSecret(type: z.ZodType): boolean {
  return z.globalRegistry.get(type)?.secret === true;
}

function fail(context: z.RefinementCtx, message: string): never {
  context.addIssue({ code: "custom", message });
  return z.NEVER;
}
