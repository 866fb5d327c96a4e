import { availableParallelism } from "node:os";
import { z } from "zod";
import {
  address,
  adminClaim,
  CENTURY_MS,
  clientNames,
  count,
  duration,
  gatewayKeySources,
  isDatabaseName,
  jwtSecret,
  keyPrefix,
  list,
  metadataNames,
  mongodbUri,
  origins,
  path,
  publicKey,
  ring,
  scopeList,
  scopePatterns,
  serviceTokens,
  text,
  timeout,
  url,
  wholeNumber,
} from "./setting-types.ts";

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
  LATCHKEY_CORS_ORIGINS: origins
    .prefault("")
    .meta({ shown: "none" })
    .describe("origins whose pages may call the service from browsers, by Connect and gRPC-Web, comma-separated"),
  LATCHKEY_GATEWAY_ANONYMOUS: scopeList
    .optional()
    .meta({ shown: "none" })
    .describe(
      "scopes of requests to a gateway that carry no key at all, comma-separated: they pass where a route needs no others, as the user `-`",
    ),
  LATCHKEY_GATEWAY_TIMEOUT: duration
    .refine((ms) => ms >= 50 && ms <= 10_000, "must be 50ms to 10s")
    .prefault("300ms")
    .describe(
      "time in which a gateway is answered that names none (as `grpc-timeout` does), the reason included: less than the gateway waits, which is 500 ms in the shipped files",
    ),
  LATCHKEY_GATEWAY_METADATA: metadataNames
    .prefault("")
    .meta({ shown: "none" })
    .describe(
      "names of metadata that gateways are told as `x-latchkey-meta-NAME`, comma-separated; Envoy has all of it in `dynamic_metadata`",
    ),
  LATCHKEY_SCOPES: scopePatterns
    .prefault("*")
    .describe("scopes that exist: patterns, comma-separated; `*` matches anything, `!pattern` takes away"),
  LATCHKEY_MEMBER_SCOPES: scopePatterns
    .prefault("!admin,!admin:*")
    .describe("scopes that callers other than admins may grant"),
  LATCHKEY_MEMBER_METADATA: scopePatterns
    .optional()
    .meta({ shown: "none" })
    .describe("names of metadata that callers other than admins may set: patterns, comma-separated"),
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

export function isSecret(type: z.ZodType): boolean {
  return z.globalRegistry.get(type)?.secret === true;
}
