import { execFile } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { connect as connectHttp2, type SecureClientSessionOptions } from "node:http2";
import { type RequestOptions, request } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from "node:tls";
import { promisify } from "node:util";
import { Code, createClient } from "@connectrpc/connect";
import {
  compressionGzip,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
} from "@connectrpc/connect-node";
import { credentials, loadPackageDefinition, Metadata, type ServiceError } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { Authorization } from "#gen/envoy/service/auth/v3/external_auth_pb";
import { ApiKeyService, Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { createCa, type TestIdentity } from "../support/certificates.ts";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

const directory = mkdtempSync(join(tmpdir(), "latchkey tls "));
const ca = createCa("the ca");
const otherCa = createCa("another ca");
const namesake = createCa("the ca");
const server = ca.issue({ cn: "latchkey", dns: ["localhost"], ips: ["127.0.0.1"] });
const gateway = ca.issue({ cn: "ignored", uris: ["spiffe://mesh/gateway"], dns: ["GATEWAY.internal"] });

type Files = {
  LATCHKEY_TLS_CERT_FILE: string;
  LATCHKEY_TLS_KEY_FILE: string;
  LATCHKEY_TLS_CLIENT_CA_FILE: string;
};

let made = 0;
function filesOf(identity: TestIdentity, clientCa: string): Files {
  made += 1;
  const file = (name: string, content: string) => {
    const path = join(directory, `${made}-${name}.pem`);
    put(path, content);
    return path;
  };
  return {
    LATCHKEY_TLS_CERT_FILE: file("cert", identity.cert),
    LATCHKEY_TLS_KEY_FILE: file("key", identity.key),
    LATCHKEY_TLS_CLIENT_CA_FILE: file("ca", clientCa),
  };
}

/** In one instant, as who replaces certificates should. */
function put(path: string, content: string): void {
  writeFileSync(`${path}.new`, content);
  renameSync(`${path}.new`, path);
}

const services: TestService[] = [];
async function start(env: Record<string, string>, clock?: () => Date): Promise<TestService> {
  const service = await startService({ env: { LATCHKEY_VERIFY_AUTH: "mtls", ...env }, ...(clock && { clock }) });
  services.push(service);
  return service;
}

let service: TestService;
let key: string;
beforeAll(async () => {
  service = await start({
    ...filesOf(server, ca.cert),
    LATCHKEY_VERIFY_CLIENTS: "cn:nobody,uri:spiffe://mesh/gateway",
  });
  ({ key } = await createClient(ApiKeyService, grpc()).create({ scopes: ["read"] }, await asUser("alice")));
});
afterAll(async () => {
  await Promise.all(services.map((one) => one.stop()));
  rmSync(directory, { recursive: true });
});

const asUser = async (user: string) => ({ headers: { authorization: `Bearer ${await userToken(user)}` } });
const urlOf = ({ server: { address } }: TestService) => `https://${address}`;

type Certificate = Partial<TestIdentity>;
const trusting = (certificate: Certificate) => ({ ca: ca.cert, ...certificate });
const gzip = { sendCompression: compressionGzip, compressMinBytes: 0 };

function grpc(certificate: Certificate = {}, more: object = {}, of = service) {
  return createGrpcTransport({ baseUrl: urlOf(of), nodeOptions: trusting(certificate), ...more });
}

function http1(certificate: Certificate, more: object = {}) {
  const nodeOptions: RequestOptions = { ...trusting(certificate), agent: false };
  return createConnectTransport({ baseUrl: urlOf(service), httpVersion: "1.1", nodeOptions, ...more });
}

/** The outcome, or the reason of the refusal. */
async function outcomeOf(call: Promise<{ outcome: Outcome }>): Promise<string> {
  return call.then(
    ({ outcome }) => Outcome[outcome]!,
    async (error) => String((await refusalOf(Promise.reject(error))).reason),
  );
}

async function firstOf<T>(items: AsyncIterable<T>): Promise<T> {
  for await (const item of items) return item;
  throw new Error("there was none");
}

async function* one<T>(item: T): AsyncGenerator<T> {
  yield item;
}

/** Over HTTP/1.1, with a body of known or unknown length. */
async function post(certificate: Certificate, chunked: boolean): Promise<string> {
  const body = JSON.stringify({ key });
  const length = chunked ? { "transfer-encoding": "chunked" } : { "content-length": body.length };
  const sent = request(`${urlOf(service)}/latchkey.v1.ApiKeyService/Verify`, {
    ...{ ...trusting(certificate), agent: false, method: "POST" },
    headers: { "content-type": "application/json", ...length },
  });
  sent.end(body);
  const [response] = await once(sent, "response");
  const answer = JSON.parse(await textOf(response));
  return answer.outcome?.replace("OUTCOME_", "") ?? answer.details[0].debug.reason;
}

async function textOf(stream: AsyncIterable<unknown>): Promise<string> {
  let text = "";
  for await (const chunk of stream) text += chunk;
  return text;
}

/** As if by the status of a gateway. */
const told = (status: number) => (status === 200 ? "VALID" : status === 503 ? "UNAUTHENTICATED" : String(status));

const checkRequest = () => ({
  attributes: { request: { http: { headers: { "x-api-key": key } } } },
});

async function check(transport: ReturnType<typeof grpc>): Promise<string> {
  const { httpResponse } = await createClient(Authorization, transport).check(checkRequest());
  if (httpResponse.case === "okResponse") return "VALID";
  return told(Number(httpResponse.case === "deniedResponse" && httpResponse.value.status?.code));
}

const verifyBy = (transport: ReturnType<typeof grpc>) =>
  outcomeOf(createClient(ApiKeyService, transport).verify({ key }));

/** Every way a call may take through the service. */
const WAYS: Record<string, (certificate: Certificate) => Promise<string>> = {
  "Verify over gRPC": (certificate) => verifyBy(grpc(certificate)),
  "Verify over gRPC, compressed": (certificate) => verifyBy(grpc(certificate, gzip)),
  "Verify over gRPC-Web": (certificate) =>
    verifyBy(createGrpcWebTransport({ baseUrl: urlOf(service), httpVersion: "2", nodeOptions: trusting(certificate) })),
  "Verify over HTTP/1.1": (certificate) => post(certificate, false),
  "Verify over HTTP/1.1, in chunks": (certificate) => post(certificate, true),
  "Verify over HTTP/1.1, compressed": (certificate) => verifyBy(http1(certificate, gzip)),
  BatchVerify: (certificate) =>
    outcomeOf(
      createClient(ApiKeyService, grpc(certificate))
        .batchVerify({ requests: [{ key }] })
        .then(({ results }) => results[0]!.result.value as { outcome: Outcome }),
    ),
  VerifyStream: (certificate) => stream(grpc(certificate)),
  "VerifyStream, compressed": (certificate) => stream(grpc(certificate, gzip)),
  Watch: (certificate) =>
    outcomeOf(
      firstOf(createClient(ApiKeyService, grpc(certificate)).watch({})).then(() => ({ outcome: Outcome.VALID })),
    ),
  Check: (certificate) => check(grpc(certificate)),
  "Check over HTTP/1.1, compressed": (certificate) => check(http1(certificate, gzip)),
  "Check, compressed": (certificate) => check(grpc(certificate, gzip)),
  "forward-auth over HTTP/1.1": async (certificate) => {
    const sent = request(`${urlOf(service)}/v1/authorize`, {
      ...{ ...trusting(certificate), agent: false, headers: { "x-api-key": key } },
    }).end();
    const [response] = await once(sent, "response");
    return told(response.statusCode);
  },
  "forward-auth over HTTP/2": async (certificate) => {
    const session = connectHttp2(urlOf(service), trusting(certificate) as SecureClientSessionOptions);
    const asked = session.request({ ":path": "/v1/authorize", "x-api-key": key });
    const [headers] = await Promise.race([once(asked, "response"), once(asked, "close")]);
    session.close();
    return told(Number(headers?.[":status"]));
  },
};

function stream(transport: ReturnType<typeof grpc>): Promise<string> {
  const answers = createClient(ApiKeyService, transport).verifyStream(one({ request: { key } }));
  return outcomeOf(firstOf(answers).then(({ result }) => result!.result.value as { outcome: Outcome }));
}

describe.each(Object.entries(WAYS))("%s", (_name, ask) => {
  test("is answered to whom the CA gave a name that may ask", async () => {
    expect(await ask(gateway)).toBe("VALID");
  });

  test("is refused to whom has no certificate, one of another CA, one that has ended, one of a server, or another name", async () => {
    const right = { uris: ["spiffe://mesh/gateway"] };
    const strangers: Certificate[] = [
      {},
      otherCa.issue(right),
      ca.issue({ ...right, until: new Date(Date.now() - 1_000) }),
      ca.issue({ ...right, usage: "server" }),
      ca.issue({ cn: "spiffe://mesh/gateway", uris: ["spiffe://mesh/gateway2"], dns: ["nobody", "cn:nobody"] }),
    ];
    for (const stranger of strangers) expect(await ask(stranger)).toBe("UNAUTHENTICATED");
    // OpenSSL may break the connection off over its signature.
    expect(await ask(namesake.issue(right)).catch(() => "broken off")).not.toBe("VALID");
  });
});

test("a user manages a key with a token on the same port, without a certificate, and a certificate is no user", async () => {
  for (const transport of [grpc(), http1({}), grpc(gateway), grpc({}, gzip)]) {
    const client = createClient(ApiKeyService, transport);
    expect((await client.get({}, await asUser("alice"))).apiKey?.userId).toBe("alice");
    expect(await refusalOf(client.get({}))).toMatchObject({ reason: "UNAUTHENTICATED" });
  }
});

test("a name is taken as it was written: alternative names in quotes, and lists of names in one, are none", async () => {
  const only = await start({ ...filesOf(server, ca.cert), LATCHKEY_VERIFY_CLIENTS: "dns:gateway.internal,cn:a+b" });
  const ask = (certificate: TestIdentity) =>
    outcomeOf(createClient(ApiKeyService, grpc(certificate, {}, only)).verify({ key: "" }));
  expect(await ask(gateway)).toBe("MALFORMED");
  expect(await ask(ca.issue({ cn: "a+b" }))).toBe("MALFORMED");
  for (const dns of ["x, DNS:gateway.internal", 'x", DNS:gateway.internal, "', "gateway.internal\0.example"]) {
    expect(await ask(ca.issue({ dns: [dns] }))).toBe("UNAUTHENTICATED");
  }
});

test("without names, any certificate of the CA will do", async () => {
  const any = await start(filesOf(server, ca.cert));
  const ask = (certificate: Certificate) =>
    outcomeOf(createClient(ApiKeyService, grpc(certificate, {}, any)).verify({ key: "" }));
  expect(await ask(ca.issue({}))).toBe("MALFORMED");
  expect(await ask({})).toBe("UNAUTHENTICATED");
});

test("grpc-js and buf, clients of other makes, prove themselves too", async () => {
  const definition = loadPackageDefinition(
    loadSync("proto/latchkey/v1/api_key_service.proto", { includeDirs: ["proto"], enums: String, defaults: true }),
  );
  type Callback = (error: ServiceError | null, answer: { outcome: string }) => void;
  type Client = { verify(request: object, metadata: Metadata, done: Callback): void; close(): void };
  const { ApiKeyService: Service } = (
    definition.latchkey as unknown as { v1: Record<string, new (...parts: unknown[]) => Client> }
  ).v1;
  const verify = async (certificate?: TestIdentity) => {
    const pair = certificate ? [Buffer.from(certificate.key), Buffer.from(certificate.cert)] : [];
    const client = new Service!(service.server.address, credentials.createSsl(Buffer.from(ca.cert), ...pair));
    try {
      return await new Promise<string>((resolve, reject) => {
        client.verify({ key }, new Metadata(), (error, answer) => (error ? reject(error) : resolve(answer.outcome)));
      });
    } finally {
      client.close();
    }
  };
  expect(await verify(gateway)).toBe("OUTCOME_VALID");
  await expect(verify()).rejects.toMatchObject({ code: Code.Unauthenticated });

  const files = filesOf(gateway, ca.cert);
  const { LATCHKEY_TLS_CERT_FILE: cert, LATCHKEY_TLS_KEY_FILE: keyFile, LATCHKEY_TLS_CLIENT_CA_FILE: caFile } = files;
  const { stdout } = await promisify(execFile)("node_modules/.bin/buf", [
    ...["curl", "--schema", "proto", "--protocol", "grpc", "--cacert", caFile, "--cert", cert, "--key", keyFile],
    ...["--data", JSON.stringify({ key }), `${urlOf(service)}/latchkey.v1.ApiKeyService/Verify`],
  ]);
  expect(JSON.parse(stdout)).toMatchObject({ outcome: "OUTCOME_VALID" });
});

test("a connection that outlives its client's certificate is refused what the certificate was for", async () => {
  let aheadMs = 0;
  const aging = await start(filesOf(server, ca.cert), () => new Date(Date.now() + aheadMs));
  const session = connectHttp2(urlOf(aging), trusting(gateway) as SecureClientSessionOptions);
  const ask = () => verifyOn(session);
  expect(await ask()).toBe("OUTCOME_MALFORMED");
  aheadMs = 2 * 3_600_000;
  expect(await ask()).toMatch(/certificate has expired/);
  session.close();
});

type Session = ReturnType<typeof connectHttp2>;

/** The outcome or the message, in JSON over HTTP/2. */
async function verifyOn(session: Session): Promise<string> {
  const asked = session.request({
    ...{ ":method": "POST", ":path": "/latchkey.v1.ApiKeyService/Verify", "content-type": "application/json" },
  });
  asked.end("{}");
  const { outcome, message } = JSON.parse(await textOf(asked));
  return outcome ?? message;
}

async function openTls(of: TestService, options: ConnectionOptions): Promise<TLSSocket> {
  const [host, port] = of.server.address.split(":");
  const socket = connectTls({ host: host!, port: Number(port), ca: ca.cert, ALPNProtocols: ["h2"], ...options });
  const ticket = once(socket, "session");
  ticket.catch(() => {});
  tickets.set(socket, ticket);
  await once(socket, "secureConnect");
  return socket;
}

const tickets = new WeakMap<TLSSocket, Promise<Buffer[]>>();

async function ticketOf(socket: TLSSocket): Promise<Buffer> {
  return (await tickets.get(socket))![0]!;
}

async function askOn(socket: TLSSocket): Promise<string> {
  const session = connectHttp2("https://localhost", { createConnection: () => socket });
  try {
    return await verifyOn(session);
  } finally {
    session.destroy();
  }
}

describe.each(["TLSv1.2", "TLSv1.3"] as const)("a session of %s that is resumed", (version) => {
  const only = { minVersion: version, maxVersion: version };

  test("is nobody's when it was nobody's, though Node calls it authorized", async () => {
    const any = await start(filesOf(server, ca.cert));
    const first = await openTls(any, only);
    expect(await askOn(first)).toMatch(/certificate is needed/);
    const again = await openTls(any, { ...only, session: await ticketOf(first) });
    expect(again.isSessionReused()).toBe(true);
    expect(await askOn(again)).toMatch(/certificate is needed/);
  });

  test("is not resumed once another CA is in place: who was let in by the old one has to prove itself again", async () => {
    const files = filesOf(server, ca.cert);
    const any = await start(files);
    const first = await openTls(any, { ...only, ...gateway });
    expect(await askOn(first)).toBe("OUTCOME_MALFORMED");
    put(files.LATCHKEY_TLS_CLIENT_CA_FILE, otherCa.cert);
    await untilLogged(any, "tls_renewed");
    const again = await openTls(any, { ...only, ...gateway, session: await ticketOf(first) });
    expect(await askOn(again)).toMatch(/certificate is needed/);
  });
});

async function untilLogged({ logs }: TestService, event: string, times = 1): Promise<void> {
  while (logs().split(`"event":"${event}"`).length <= times) await sleep(50);
}

test("a new certificate, key and CA are taken up without a restart; connections that are open go on", async () => {
  const files = filesOf(server, ca.cert);
  const renewed = await start(files);
  const serial = async () => {
    const socket = await openTls(renewed, {});
    const { serialNumber } = socket.getPeerCertificate();
    socket.destroy();
    return serialNumber;
  };
  const before = await serial();
  const open = connectHttp2(urlOf(renewed), trusting(gateway) as SecureClientSessionOptions);
  expect(await verifyOn(open)).toBe("OUTCOME_MALFORMED");

  const next = ca.issue({ cn: "latchkey", dns: ["localhost"], ips: ["127.0.0.1"], until: new Date(Date.now() + 9e6) });
  put(files.LATCHKEY_TLS_CERT_FILE, next.cert);
  put(files.LATCHKEY_TLS_KEY_FILE, next.key);
  put(files.LATCHKEY_TLS_CLIENT_CA_FILE, `${otherCa.cert}${ca.cert}`);
  while ((await serial()) === before) await sleep(50);
  expect(await verifyOn(open)).toBe("OUTCOME_MALFORMED");
  for (const issuer of [ca, otherCa]) {
    expect(await askOn(await openTls(renewed, issuer.issue({})))).toBe("OUTCOME_MALFORMED");
  }
  const old = openTls(renewed, { minVersion: "TLSv1", maxVersion: "TLSv1.1", ciphers: "DEFAULT@SECLEVEL=0" });
  await expect(old).rejects.toThrow();
  open.close();
  const { values } = renewed.server.metrics;
  const expiry = (await values()).find((metric) => "name" in metric && metric.name === EXPIRY) as { values: object[] };
  expect(expiry.values).toMatchObject([{ value: Math.floor((Date.now() + 9e6) / 10_000) * 10_000 }].map(nearly));
});

const EXPIRY = "latchkey_tls_certificate_expiry_seconds";
const nearly = ({ value }: { value: number }) => ({ value: expect.closeTo(value / 1_000, -2) });

test("what can't be used is logged once, names the file, and changes nothing; when it is mended, it is taken up", async () => {
  const files = filesOf(server, ca.cert);
  const kept = await start(files);
  const next = ca.issue({ dns: ["localhost"], ips: ["127.0.0.1"] });
  const broken: [keyof Files, string, string][] = [
    ["LATCHKEY_TLS_CERT_FILE", next.cert, "not the one that the certificate was made for"],
    ["LATCHKEY_TLS_CERT_FILE", ca.issue({ rsa: true }).cert, "not the one that the certificate was made for"],
    ["LATCHKEY_TLS_CLIENT_CA_FILE", "no CA", "holds no certificate in PEM"],
    ["LATCHKEY_TLS_CLIENT_CA_FILE", `${ca.cert}${otherCa.cert.slice(0, -200)}`, "one that is cut short"],
    [
      "LATCHKEY_TLS_CLIENT_CA_FILE",
      createCa("an old ca", new Date(Date.now() - 1_000)).cert,
      "holds only certificates that have ended",
    ],
  ];
  const right: Record<keyof Files, string> = {
    LATCHKEY_TLS_CERT_FILE: server.cert,
    LATCHKEY_TLS_KEY_FILE: server.key,
    LATCHKEY_TLS_CLIENT_CA_FILE: ca.cert,
  };
  for (const [index, [file, content, why]] of broken.entries()) {
    put(files[file], content);
    await untilLogged(kept, "tls_refused", index + 1);
    expect(kept.logs()).toContain(why);
    expect(await askOn(await openTls(kept, gateway))).toBe("OUTCOME_MALFORMED");
    put(files[file], right[file]);
    await untilLogged(kept, "tls_renewed", index + 1);
  }
  rmSync(files.LATCHKEY_TLS_KEY_FILE);
  await untilLogged(kept, "tls_refused", broken.length + 1);
  expect(kept.logs()).toContain(`LATCHKEY_TLS_KEY_FILE=${files.LATCHKEY_TLS_KEY_FILE} can't be read (ENOENT)`);
  expect(await askOn(await openTls(kept, gateway))).toBe("OUTCOME_MALFORMED");
  for (const line of [server.key, next.key].flatMap((pem) => pem.split("\n").slice(1, -2)))
    expect(kept.logs()).not.toContain(line);
}, 60_000);

test("the service does not start on a CA that is none", async () => {
  const files = filesOf(server, "no CA");
  await expect(start({ ...files })).rejects.toThrow(/LATCHKEY_TLS_CLIENT_CA_FILE=.* holds no certificate in PEM/);
  await expect(start({ ...files, LATCHKEY_TLS_CLIENT_CA_FILE: "nowhere" })).rejects.toThrow(/nowhere can't be read/);
});

test("a certificate or a CA that has ended is told of at the start", async () => {
  const ended = new Date(Date.now() - 1_000);
  for (const [files, sentence] of [
    [filesOf(ca.issue({ until: ended }), ca.cert), "holds a certificate that ended on"],
    [filesOf(server, createCa("an old ca", ended).cert), "no client can prove itself"],
  ] as const) {
    const { logs } = await start({ ...files });
    expect(logs()).toContain('"event":"tls_expired"');
    expect(logs()).toContain(sentence);
  }
});
