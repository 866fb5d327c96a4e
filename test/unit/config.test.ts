import { generateKeyPairSync } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "@jest/globals";
import { z } from "zod";
import { defaultListenerLimits } from "../../src/fastpath/limits.ts";
import { isServiceLinkName, readClientConfig, readConfig } from "../../src/service/config.ts";
import { parseDuration } from "../../src/service/duration.ts";
import { CLIENT_VARIABLES, isSecret, VARIABLES } from "../../src/service/settings.ts";

const problemsOf = (environment: Record<string, string>): string => {
  try {
    readConfig(environment);
  } catch (error) {
    return (error as Error).message;
  }
  return "";
};

test("an empty environment is a complete configuration for one machine", () => {
  const config = readConfig({});
  expect(config).toMatchObject({
    listen: { host: "127.0.0.1", port: 8080 },
    opsListen: { host: "127.0.0.1", port: 9090 },
    keyPrefix: "lk",
    verifyAuth: "none",
    maxGraceMs: 604_800_000,
    hashQueue: 64,
  });
  expect(Object.isFrozen(config)).toBe(true);
});

test("every problem is reported at once, with what to do", () => {
  const problems = problemsOf({
    LATCHKEY_LISTEN: "nowhere",
    LATCHKEY_MAX_GRACE: "7",
    LATCHKEY_MAX_TLL: "1d",
    LATCHKEY_KEY_PREFIX: "_",
  });
  for (const name of ["LATCHKEY_LISTEN", "LATCHKEY_MAX_GRACE", "LATCHKEY_MAX_TLL", "LATCHKEY_KEY_PREFIX"])
    expect(problems).toContain(name);
  expect(problems).toContain("4 problem(s)");
});

/** As kubelet sets them for two Services of a namespace, one of them dual-stack with a named port. */
const SERVICE_LINKS = {
  LATCHKEY_SERVICE_HOST: "10.96.12.7",
  LATCHKEY_SERVICE_PORT: "8080",
  LATCHKEY_SERVICE_PORT_GRPC: "8080",
  LATCHKEY_PORT: "tcp://10.96.12.7:8080",
  LATCHKEY_PORT_8080_TCP: "tcp://10.96.12.7:8080",
  LATCHKEY_PORT_8080_TCP_PROTO: "tcp",
  LATCHKEY_PORT_8080_TCP_PORT: "8080",
  LATCHKEY_PORT_8080_TCP_ADDR: "10.96.12.7",
  LATCHKEY_OPS_SERVICE_HOST: "fd00:10:96::7",
  LATCHKEY_OPS_SERVICE_PORT: "9090",
  LATCHKEY_OPS_PORT: "udp://[fd00:10:96::7]:9090",
  LATCHKEY_OPS_PORT_9090_UDP: "udp://[fd00:10:96::7]:9090",
  LATCHKEY_OPS_PORT_9090_UDP_ADDR: "fd00:10:96::7",
  LATCHKEY_OPS_PORT_132_SCTP_PROTO: "sctp",
};

test("what Kubernetes sets for a Service called latchkey is no setting, and starts as if it were not there", () => {
  expect(JSON.stringify(readConfig(SERVICE_LINKS))).toBe(JSON.stringify(readConfig({})));
});

test("a name of that form with a value of another, as LATCHKEY_PORT=8080, is refused with the setting that was meant", () => {
  for (const [name, value] of [
    ...[
      ["LATCHKEY_PORT", "8080"],
      ["LATCHKEY_PORT", ""],
      ["LATCHKEY_PORT", "tcp://latchkey:8080"],
      ["LATCHKEY_HTTP_PORT", "8080"],
    ],
    ...[
      ["LATCHKEY_PORT", "tcp://10.0.0.1:99999"],
      ["LATCHKEY_PORT_8080_TCP", "udp://10.0.0.1:8080"],
    ],
    ...[
      ["LATCHKEY_SERVICE_HOST", "latchkey"],
      ["LATCHKEY_SERVICE_PORT", "http"],
      ["LATCHKEY_PORT_80_TCP_PROTO", "udp"],
    ],
  ] as [string, string][])
    expect(problemsOf({ [name]: value })).toMatch(
      new RegExp(`1 problem.*${name} is not a variable.*LATCHKEY_LISTEN=`, "s"),
    );
  for (const name of ["LATCHKEY_PORTS", "LATCHKEY_SERVICE_TOKEN", "LATCHKEY_PORT_X_TCP", "LATCHKEY_SERVICE_HOSTS"])
    expect(problemsOf({ [name]: "tcp://10.96.12.7:8080" })).toContain(`${name} is not a variable of Latchkey; see`);
});

test("no setting has a name that Kubernetes might set", () => {
  const names = Object.keys({ ...VARIABLES, ...CLIENT_VARIABLES }).flatMap((name) => [name, `${name}_FILE`]);
  expect(names.filter((name) => isServiceLinkName(name))).toEqual([]);
});

test("a time that Node's timers can't keep is refused: they would take it for none", () => {
  for (const name of ["HANDSHAKE_TIMEOUT", "HEADERS_TIMEOUT", "REQUEST_TIMEOUT", "IDLE_TIMEOUT"]) {
    for (const time of ["0s", "25d"])
      expect(problemsOf({ [`LATCHKEY_${name}`]: time })).toContain("must be 1ms to 24d");
    expect(problemsOf({ [`LATCHKEY_${name}`]: "24d" })).toBe("");
  }
  expect(problemsOf({ LATCHKEY_AUDIT_RETENTION: "24856d" })).toContain("LATCHKEY_AUDIT_RETENTION");
  // Node passes it to the kernel in whole seconds, and says nothing where that refuses.
  for (const time of ["500ms", "10h"])
    expect(problemsOf({ LATCHKEY_KEEPALIVE_PROBE: time })).toContain("must be 1s to 9h");
});

test("with MONGODB_URI, missing secrets are listed with the commands that make them", () => {
  const problems = problemsOf({ MONGODB_URI: "mongodb://db/?replicaSet=rs0" });
  expect(problems).toContain("openssl rand -base64 48");
  expect(problems).toContain('echo "p1:$(openssl rand -base64 32)"');
});

test("off loopback, LATCHKEY_VERIFY_AUTH must be said, and `none` twice", () => {
  const listen = { LATCHKEY_LISTEN: "0.0.0.0:8080", LATCHKEY_PLAINTEXT: "yes" };
  expect(problemsOf(listen)).toContain("LATCHKEY_VERIFY_AUTH must be set");
  expect(problemsOf({ ...listen, LATCHKEY_VERIFY_AUTH: "none" })).toContain("LATCHKEY_VERIFY_OPEN=yes");
  expect(problemsOf({ ...listen, LATCHKEY_VERIFY_AUTH: "none", LATCHKEY_VERIFY_OPEN: "yes" })).toBe("");
});

test("off loopback, cleartext must be said; with a certificate, or on loopback, nothing needs to be", () => {
  const tls = { LATCHKEY_TLS_CERT_FILE: "cert.pem", LATCHKEY_TLS_KEY_FILE: "key.pem" };
  for (const host of ["0.0.0.0", "[::]", "192.0.2.1", "latchkey.internal"]) {
    const listen = { LATCHKEY_LISTEN: `${host}:8080`, LATCHKEY_VERIFY_AUTH: "none", LATCHKEY_VERIFY_OPEN: "yes" };
    expect(problemsOf(listen)).toContain("set LATCHKEY_PLAINTEXT=yes");
    expect(problemsOf({ ...listen, LATCHKEY_PLAINTEXT: "no" })).toContain('LATCHKEY_PLAINTEXT is "no": it must be yes');
    expect(problemsOf({ ...listen, LATCHKEY_PLAINTEXT: "yes" })).toBe("");
    expect(problemsOf({ ...listen, ...tls })).toBe("");
  }
  for (const host of ["127.0.0.1", "localhost", "[::1]", "127.1.2.3"])
    expect(problemsOf({ LATCHKEY_LISTEN: `${host}:8080` })).toBe("");
});

test("client certificates need a CA and TLS, and what is set for them means nothing without them", () => {
  const tls = { LATCHKEY_TLS_CERT_FILE: "cert.pem", LATCHKEY_TLS_KEY_FILE: "key.pem" };
  const mtls = { LATCHKEY_VERIFY_AUTH: "mtls", LATCHKEY_TLS_CLIENT_CA_FILE: "ca.pem" };
  const all = { ...tls, ...mtls };
  expect(readConfig(all)).toMatchObject({ verifyAuth: "mtls", verifyClients: [], tls: { clientCaFile: "ca.pem" } });
  expect(problemsOf({ ...tls, LATCHKEY_VERIFY_AUTH: "mtls" })).toContain("LATCHKEY_TLS_CLIENT_CA_FILE must be set");
  expect(problemsOf(mtls)).toContain("LATCHKEY_TLS_CERT_FILE and LATCHKEY_TLS_KEY_FILE must be set");
  expect(problemsOf({ ...tls, LATCHKEY_TLS_CLIENT_CA_FILE: "ca.pem" })).toContain("means nothing unless");
  expect(problemsOf({ LATCHKEY_VERIFY_CLIENTS: "cn:gateway" })).toContain("means nothing unless");
  expect(readConfig({ ...all, LATCHKEY_VERIFY_CLIENTS: "uri:spiffe://a/B,dns:A.b, cn:C" }).verifyClients).toEqual([
    ...["uri:spiffe://a/B", "dns:a.b", "cn:C"],
  ]);
  for (const names of ["gateway", ",", "cn:", "ip:10.0.0.1"])
    expect(problemsOf({ ...all, LATCHKEY_VERIFY_CLIENTS: names })).toMatch(
      /LATCHKEY_VERIFY_CLIENTS is .*: it must be names/,
    );
});

test("each way to admit callers of Verify needs what it checks against", () => {
  expect(problemsOf({ LATCHKEY_VERIFY_AUTH: "token" })).toContain("LATCHKEY_SERVICE_TOKENS");
  expect(problemsOf({ LATCHKEY_VERIFY_AUTH: "jwt" })).toContain("LATCHKEY_VERIFY_AUDIENCE");
  const same = { LATCHKEY_VERIFY_AUTH: "jwt", LATCHKEY_VERIFY_AUDIENCE: "a", LATCHKEY_JWT_AUDIENCE: "a" };
  expect(problemsOf(same)).toContain("must differ");
});

test("TLS takes a certificate and its key, never one of them alone", () => {
  const [certFile, keyFile] = ["cert.pem", "key.pem"];
  expect(problemsOf({ LATCHKEY_TLS_CERT_FILE: certFile })).toContain("need each other");
  expect(problemsOf({ LATCHKEY_TLS_KEY_FILE: keyFile })).toContain("need each other");
  const both = { LATCHKEY_TLS_CERT_FILE: certFile, LATCHKEY_TLS_KEY_FILE: keyFile };
  expect(readConfig(both).tls).toEqual({ certFile, keyFile, clientCaFile: undefined });
});

test("the listener's limits are its own defaults, and each has its variable", () => {
  expect(readConfig({}).limits).toEqual(defaultListenerLimits);
  const environment = Object.fromEntries(
    Object.entries(VARIABLES)
      .filter(([name]) => /^LATCHKEY_(MAX_(?!TTL|GRACE|STALENESS)|(?!READ|GATEWAY)\w+_TIMEOUT$|KEEPALIVE)/.test(name))
      .map(([name], index) => [name, /TIMEOUT|PROBE/.test(name) ? `${600 + index}s` : String(600 + index)]),
  );
  const values = Object.values(readConfig(environment).limits);
  expect(values.map((value) => (value >= 600_000 ? value / 1_000 : value)).toSorted((a, b) => a - b)).toEqual(
    values.map((_value, index) => 600 + index),
  );
});

test("exactly one way to check user tokens may be set", () => {
  const two = { LATCHKEY_JWT_SECRET: "x".repeat(32), LATCHKEY_JWKS_URL: "https://id.example/jwks" };
  expect(problemsOf(two)).toContain("exclude each other");
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const pem = publicKey.export({ type: "spki", format: "pem" }).toString();
  expect(readConfig({ LATCHKEY_JWT_PUBLIC_KEY: pem }).tokenKey).toEqual({ kind: "publicKey", pem });
  for (const bad of ["garbage", " ", privateKey.export({ type: "pkcs8", format: "pem" }).toString()])
    expect(problemsOf({ LATCHKEY_JWT_PUBLIC_KEY: bad })).toContain("LATCHKEY_JWT_PUBLIC_KEY is ");
});

test("scopes that are only blanks and commas are refused: none at all would mean all", () => {
  for (const name of ["LATCHKEY_SCOPES", "LATCHKEY_MEMBER_SCOPES"])
    for (const blank of [" ", ",", " , "]) expect(problemsOf({ [name]: blank })).toContain(name);
});

test("a file is named only for what is read from files: else what is in it would be left unset", () => {
  for (const name of Object.keys(VARIABLES).filter((known) => known.startsWith("LATCHKEY_"))) {
    const problems = problemsOf({ [`${name}_FILE`]: "/nonexistent" });
    const isRead = isSecret(VARIABLES[name as keyof typeof VARIABLES]);
    expect(problems).toContain(isRead ? `${name}_FILE can't be read` : `${name}_FILE is not a variable`);
  }
});

test("a span that no date or timer can hold is refused, and a lifetime that is over at once", () => {
  for (const [name, bad] of [
    ["MAX_TTL", ["0s", "500ms", "36501d", "999999999d"]],
    ["MAX_GRACE", ["36501d"]],
    ["MAX_STALENESS", ["50ms", "2h", "100d"]],
    ["READ_TIMEOUT", ["5ms", "30d"]],
    ["PURGE_AFTER", ["0s", "23h", "36501d", "999999999d"]],
    ["OUTAGE_GRACE", ["8d", "36500d"]],
  ] as const)
    for (const span of bad) expect(problemsOf({ [`LATCHKEY_${name}`]: span })).toContain(`LATCHKEY_${name}`);
  expect(problemsOf({ LATCHKEY_MAX_TTL: "36500d", LATCHKEY_PURGE_AFTER: "36500d", LATCHKEY_OUTAGE_GRACE: "7d" })).toBe(
    "",
  );
});

test("a secret is also read from a file, without its last line break, and a problem never quotes it", () => {
  const directory = mkdtempSync(join(tmpdir(), "latchkey config "));
  const file = join(directory, "secret");
  writeFileSync(file, `${"s".repeat(40)}\n`);
  const read = readConfig({ LATCHKEY_JWT_SECRET_FILE: file });
  rmSync(directory, { recursive: true });
  expect(read.tokenKey).toEqual({ kind: "secret", secret: "s".repeat(40) });
  expect(problemsOf({ LATCHKEY_JWT_SECRET_FILE: "/does/not/exist" })).toContain(
    "LATCHKEY_JWT_SECRET_FILE can't be read",
  );
  const short = problemsOf({
    LATCHKEY_JWT_SECRET: "canary",
    LATCHKEY_PEPPERS: "canary",
    LATCHKEY_SERVICE_TOKENS: "canary",
  });
  expect(short).toContain("3 problem(s)");
  expect(short).not.toContain("canary");
});

test("a pepper has at least 32 bytes and an id of its own", () => {
  const good = Buffer.alloc(32).toString("base64");
  expect(readConfig({ LATCHKEY_PEPPERS: `b:${good},a:${good}` }).peppers?.map(({ id }) => id)).toEqual(["b", "a"]);
  expect(problemsOf({ LATCHKEY_PEPPERS: "a:c2hvcnQ=" })).toContain("at least 32 bytes");
  expect(problemsOf({ LATCHKEY_PEPPERS: `a:${good},a:${good}` })).toContain("twice");
});

test("durations carry their unit", () => {
  expect(["200ms", "1s", "15m", "24h", "7d"].map(parseDuration)).toEqual([
    200, 1_000, 900_000, 86_400_000, 604_800_000,
  ]);
  expect(["", "7", "1.5s", "-1s", "1w", "s"].map(parseDuration)).toEqual(Array(6).fill(undefined));
});

test("docs/configuration.md shows every variable, its default and its effect as config.ts has them, and the README names none that is not there", () => {
  const page = readFileSync("docs/configuration.md", "utf8");
  const documented = [...page.matchAll(/^\| `((?:LATCHKEY|MONGO)\w+)`( °)? \| (.*?) \| (.*) \|$/gm)].map((match) =>
    match.slice(1, 5),
  );
  const defined = Object.entries({ ...VARIABLES, ...CLIENT_VARIABLES }).map(([name, type]) => {
    const meta = z.globalRegistry.get(type as z.ZodType) as { shown?: string; description?: string };
    const prefault = (type as { def: { defaultValue?: unknown } }).def.defaultValue;
    const shown = meta.shown ?? (prefault ? `\`${prefault}\`` : "–");
    return [name, isSecret(type as z.ZodType) ? " °" : undefined, shown, meta.description];
  });
  expect(documented).toEqual(defined);
  const named = readFileSync("README.md", "utf8")
    .match(/`(?:LATCHKEY|MONGO\w*)_\w+`/g)!
    .map((name) => name.slice(1, -1));
  expect(named.length).toBeGreaterThan(7);
  const known = [...defined.map(([name]) => name), "LATCHKEY_TLS_KEY_FILE"];
  expect(named.filter((name) => !known.includes(name))).toEqual([]);
});

test("a gateway's keys are looked for in what is named, each once, and never where another thing belongs", () => {
  const from = (list: string) => readConfig({ LATCHKEY_GATEWAY_KEY_FROM: list }).gatewayKeyFrom;
  expect(readConfig({}).gatewayKeyFrom).toEqual({ bearer: true, headers: ["x-api-key"], queries: [] });
  expect(from("query:api_key, header:X-Token,header:api_key")).toEqual({
    bearer: false,
    headers: ["x-token", "api_key"],
    queries: ["api_key"],
  });
  for (const list of [
    ...[",", "basic", "bearer,bearer", "header:", "header:a b", "query:", "query:a&b", "cookie:a", "header:x:y"],
    ...["header:authorization", "header:Cookie", "header:host", "header:x-latchkey-user", "header:X_Latchkey-Key"],
  ]) {
    expect(problemsOf({ LATCHKEY_GATEWAY_KEY_FROM: list })).toMatch(/LATCHKEY_GATEWAY_KEY_FROM is .*: it must be/);
  }
});

const ALL = { ...VARIABLES, ...CLIENT_VARIABLES };
const problemOf = (name: string, value: string): string => {
  try {
    if (name in VARIABLES) readConfig({ [name]: value });
    else readClientConfig({ [name]: value });
  } catch (error) {
    return (error as Error).message;
  }
  return "";
};

test("a value that is blank, or in quotes as docker's --env-file leaves them, is refused in every setting", () => {
  for (const name of Object.keys(ALL))
    for (const value of [" ", "\t", " \n"])
      expect(problemOf(name, value)).toContain(`${name} is blank: set it, or leave it out`);
  for (const name of Object.keys(ALL))
    for (const value of ['"127.0.0.1:8080"', "'x'"])
      expect(problemOf(name, value)).toContain(`${name} has quotes around it`);
});

/** Of each setting something that it can't be. Those that take any text are told by what no text has. */
const BAD: Record<string, string[]> = {
  LATCHKEY_LISTEN: ["8080", ":8080", "*:8080", "127.0.0.1:99999", "256.0.0.1:80", "[127.0.0.1]:80", "::1:80", " a:1"],
  LATCHKEY_OPS_LISTEN: ["no", "9090", "http://127.0.0.1:9090"],
  LATCHKEY_DATA_DIR: ["a\0b", "/data "],
  MONGODB_URI: ["db:27017", "postgres://db/", "mongodb://db/?loadBalanced=true"],
  MONGODB_DATABASE: ["local", "admin", "config", "a.b", "a b", "\u00e4".repeat(32), "a$b"],
  MONGOD_BINARY: ["/bin/mongod\n"],
  LATCHKEY_KEY_PREFIX: ["_", "a-b", "x".repeat(33)],
  LATCHKEY_KEY_PREFIX_ALSO: ["lk,_"],
  LATCHKEY_PEPPERS: ["c2VjcmV0", "p1:c2hvcnQ=", "p1:not base64"],
  LATCHKEY_REQUEST_KEYS: ["c2VjcmV0"],
  LATCHKEY_JWT_SECRET: ["short", `${"s".repeat(40)}\n`, ` ${"s".repeat(40)}`, `\uFFFD${"s".repeat(40)}`],
  LATCHKEY_JWT_PUBLIC_KEY: ["garbage"],
  LATCHKEY_JWKS_URL: [
    "id.example/jwks",
    "ftp://id.example",
    "https:id",
    "https://user:pw@id.example/jwks",
    "https://id/#a",
  ],
  LATCHKEY_JWKS_MAX_AGE: ["30s", "25d"],
  LATCHKEY_JWT_ISSUER: ["https://id.example\n", " x"],
  LATCHKEY_JWT_AUDIENCE: ["latchkey "],
  LATCHKEY_ADMIN_CLAIM: ["admin", "=admin", "role=", "role = admin"],
  LATCHKEY_VERIFY_AUTH: ["yes", "Token"],
  LATCHKEY_VERIFY_OPEN: ["true"],
  LATCHKEY_VERIFY_AUDIENCE: ["a\nb"],
  LATCHKEY_SERVICE_TOKENS: ["gateway:secret", `gateway:sha256:${"A".repeat(64)}`],
  LATCHKEY_VERIFY_CLIENTS: ["gateway"],
  LATCHKEY_GATEWAY_KEY_FROM: ["header:X-Key,header:x-key", "header:content-length", "basic"],
  LATCHKEY_GATEWAY_TIMEOUT: ["0", "9x"],
  LATCHKEY_SCOPES: ["A B"],
  LATCHKEY_MEMBER_SCOPES: ["A B"],
  LATCHKEY_CORS_ORIGINS: ["*", "https://app.example/", "app.example", "https://a.example/b", "file://x"],
  LATCHKEY_GATEWAY_ANONYMOUS: ["A B", "read,Write"],
  LATCHKEY_MEMBER_METADATA: ["A B", "Plan"],
  LATCHKEY_GATEWAY_METADATA: ["Plan", "plan,plan", "latchkey-x", "a_b"],
  LATCHKEY_MAX_TTL: ["7", "0s"],
  LATCHKEY_MAX_GRACE: ["7 d"],
  LATCHKEY_AUDIT_RETENTION: ["1w"],
  LATCHKEY_PURGE_AFTER: ["1h", "36501d"],
  LATCHKEY_MAX_STALENESS: ["1"],
  LATCHKEY_OUTAGE_GRACE: ["8d", "-1s"],
  LATCHKEY_READ_TIMEOUT: ["150"],
  LATCHKEY_CACHE_KEYS: ["0", "1e5", "16777217"],
  LATCHKEY_WORKERS: ["0", "2048", "all"],
  LATCHKEY_HASH_CONCURRENCY: ["0", "2048"],
  LATCHKEY_HASH_QUEUE: ["0"],
  LATCHKEY_TLS_CERT_FILE: ["-----BEGIN CERTIFICATE-----\ncanary\n-----END CERTIFICATE-----"],
  LATCHKEY_TLS_KEY_FILE: ["-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----"],
  LATCHKEY_TLS_CLIENT_CA_FILE: ["/etc/ca.pem "],
  LATCHKEY_PLAINTEXT: ["no"],
  LATCHKEY_MAX_MESSAGE_BYTES: ["1", "64k"],
  LATCHKEY_MAX_CONNECTIONS: ["0"],
  LATCHKEY_MAX_STREAMS: ["0"],
  LATCHKEY_MAX_HEADER_BYTES: ["1"],
  LATCHKEY_MAX_HEADERS: ["3"],
  LATCHKEY_MAX_SESSION_MEMORY: ["0"],
  LATCHKEY_MAX_INVALID_FRAMES: ["0"],
  LATCHKEY_MAX_REJECTED_STREAMS: ["0"],
  LATCHKEY_HANDSHAKE_TIMEOUT: ["25d"],
  LATCHKEY_HEADERS_TIMEOUT: ["0s"],
  LATCHKEY_REQUEST_TIMEOUT: ["30"],
  LATCHKEY_IDLE_TIMEOUT: ["25d"],
  LATCHKEY_DRAIN_DELAY: ["2h"],
  LATCHKEY_KEEPALIVE_PROBE: ["10h"],
  LATCHKEY_LOG_LEVEL: ["verbose"],
  LATCHKEY_URL: ["localhost:8080", "https://user:canary@latchkey.example"],
  LATCHKEY_TOKEN: ["two words"],
  LATCHKEY_CA_FILE: ["-----BEGIN CERTIFICATE-----"],
  LATCHKEY_CLIENT_CERT_FILE: [" cert.pem"],
  LATCHKEY_CLIENT_KEY_FILE: ["-----BEGIN PRIVATE KEY-----\ncanary"],
};

test("every refusal of a setting names it, the kind of value that was seen, and what it must be; never a secret", () => {
  expect(Object.keys(BAD).sort()).toEqual(Object.keys(ALL).sort());
  for (const [name, values] of Object.entries(BAD))
    for (const value of values) {
      const problem = problemOf(name, value);
      const lines = problem.split("\n").filter((line) => line.includes(name));
      expect({ name, value, lines }).toMatchObject({
        lines: expect.arrayContaining([expect.stringMatching(/ is .+: it must /s)]),
      });
      if (isSecret(ALL[name as keyof typeof ALL] as z.ZodType)) expect(problem).not.toContain(value.trim());
      expect(problem).not.toMatch(/canary|:pw@/);
    }
});

test("what contradicts another setting, or means nothing without it, is refused with both names and what to do", () => {
  const tls = { LATCHKEY_TLS_CERT_FILE: "cert.pem", LATCHKEY_TLS_KEY_FILE: "key.pem" };
  const token = `gateway:sha256:${"0".repeat(64)}`;
  const cases: [Record<string, string>, ...names: string[]][] = [
    [{ LATCHKEY_VERIFY_AUDIENCE: "verify" }, "LATCHKEY_VERIFY_AUDIENCE", "LATCHKEY_VERIFY_AUTH is jwt"],
    [{ LATCHKEY_SERVICE_TOKENS: token }, "LATCHKEY_SERVICE_TOKENS", "LATCHKEY_VERIFY_AUTH is token"],
    [{ LATCHKEY_SERVICE_TOKENS: token, LATCHKEY_VERIFY_AUTH: "none" }, "LATCHKEY_SERVICE_TOKENS", "is token"],
    [{ LATCHKEY_VERIFY_CLIENTS: "cn:a" }, "LATCHKEY_VERIFY_CLIENTS", "LATCHKEY_VERIFY_AUTH is mtls"],
    [{ LATCHKEY_VERIFY_OPEN: "yes" }, "LATCHKEY_VERIFY_OPEN", "LATCHKEY_VERIFY_AUTH is none"],
    [{ ...tls, LATCHKEY_PLAINTEXT: "yes" }, "LATCHKEY_PLAINTEXT", "LATCHKEY_TLS_CERT_FILE"],
    [{ LATCHKEY_LISTEN: "127.0.0.1:9090" }, "LATCHKEY_LISTEN", "LATCHKEY_OPS_LISTEN"],
    [{ LATCHKEY_TLS_CERT_FILE: "cert.pem" }, "LATCHKEY_TLS_CERT_FILE", "LATCHKEY_TLS_KEY_FILE"],
    [
      { LATCHKEY_JWT_SECRET: "s".repeat(40), LATCHKEY_JWT_SECRET_FILE: "README.md" },
      "LATCHKEY_JWT_SECRET_FILE",
      "set one",
    ],
  ];
  for (const [environment, ...names] of cases) {
    const problems = problemsOf(environment);
    for (const name of names) expect(problems).toContain(name);
    expect(problems).toMatch(/set (?:both|that|one|another)|[Ll]eave (?:it|one of them) out/);
  }
});

test("a file of a secret may hold what editors and shells leave, and no message tells its path, which may be the secret", () => {
  const directory = mkdtempSync(join(tmpdir(), "latchkey config "));
  const read = (content: string | Buffer) => {
    writeFileSync(join(directory, "secret"), content);
    return problemsOf({ LATCHKEY_JWT_SECRET_FILE: join(directory, "secret") });
  };
  const secret = "s".repeat(40);
  for (const content of [secret, `${secret}\n`, `${secret}\r\n`, `\uFEFF${secret}\n`]) expect(read(content)).toBe("");
  expect(read("")).toContain("LATCHKEY_JWT_SECRET_FILE names a file that is empty");
  expect(read(`${secret}\n\n`)).toContain(
    "LATCHKEY_JWT_SECRET is 41 character(s) in 2 lines: it must have no blank or line break",
  );
  expect(read(Buffer.alloc(48, 0xff))).toContain("must be UTF-8 text");
  rmSync(directory, { recursive: true });
  expect(problemsOf({ LATCHKEY_JWT_SECRET_FILE: "canary" })).toMatch(
    /_FILE can't be read \(ENOENT\): it must be the path(?!.*canary)/s,
  );
});
