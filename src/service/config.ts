import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { z } from "zod";
import type { TokenKey } from "../edge/tokens.ts";
import type { ListenerLimits } from "../fastpath/limits.ts";
import { NOTHING } from "../keys/policy.ts";
import { StartupError } from "../observe/startup-error.ts";
import { CLIENT_VARIABLES, isSecret, VARIABLES } from "./settings.ts";
import type { TlsFiles } from "./tls-files.ts";

type Environment = Record<string, string | undefined>;

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
    corsOrigins: settings.LATCHKEY_CORS_ORIGINS,
    gatewayAnonymous: settings.LATCHKEY_GATEWAY_ANONYMOUS,
    gatewayMetadata: settings.LATCHKEY_GATEWAY_METADATA,
    gatewayTimeoutMs: settings.LATCHKEY_GATEWAY_TIMEOUT,
    scopes: settings.LATCHKEY_SCOPES,
    memberScopes: settings.LATCHKEY_MEMBER_SCOPES,
    memberMetadata: settings.LATCHKEY_MEMBER_METADATA ?? NOTHING,
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
