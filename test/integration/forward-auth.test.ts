import { once } from "node:events";
import { connect as connectHttp2, constants } from "node:http2";
import { connect as connectTcp, type Socket } from "node:net";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "@jest/globals";
import { get1, get2 } from "../support/gateway-doors.ts";
import { startService, type TestService } from "../support/service.ts";

let service: TestService;
let key: string;
beforeAll(async () => {
  service = await startService();
  ({ key } = await service.client().create({ scopes: ["read"] }));
});
afterAll(() => service.stop());

const sockets: Socket[] = [];
afterEach(() => {
  for (const socket of sockets.splice(0)) socket.destroy();
});

function openSocket(): Socket {
  const [host, port] = service.server.address.split(":") as [string, string];
  const socket = connectTcp({ host, port: Number(port), noDelay: true });
  socket.on("error", () => {});
  sockets.push(socket);
  return socket;
}

/** What comes until `pattern` is in it. */
async function until(socket: Socket, pattern: RegExp): Promise<string> {
  let text = "";
  while (!pattern.test(text)) {
    const [chunk] = await once(socket, "data");
    text += chunk.toString("latin1");
  }
  return text;
}

const good = (): [string, string][] => [["x-api-key", key]];
const METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"];
const PATHS = ["/v1/authorize", "/v1/authorize/", "/v1/authorize/a/b?c=d", "/v1/authorize?e=f", "/v1/authorize*"];
const OTHERS = ["/v1/authorizes", "/v1/authorize-all", "/v1", "/v2/authorize"];

describe.each([
  ["HTTP/1.1", get1],
  ["HTTP/2", get2],
])("over %s", (_, get) => {
  const ask = (path: string, headers: [string, string][] = good(), method = "GET") =>
    get(service.server.address, path, headers, method);

  test("any method is answered alike, and a request that may pass has an empty answer", async () => {
    for (const method of METHODS) {
      const answer = await ask("/v1/authorize", good(), method);
      expect(answer).toMatchObject({ status: 200, body: "", headers: { "content-length": "0" } });
      expect(answer.headers).toMatchObject({ "cache-control": "no-store", "x-latchkey-scopes": "read" });
      const denied = await ask("/v1/authorize", [], method);
      expect(JSON.parse(denied.body)).toEqual({ reason: "KEY_MISSING", message: "No API key was sent." });
      expect(denied.status).toBe(401);
    }
  });

  test("HEAD has the same headers and never a body", async () => {
    expect(await ask("/v1/authorize", good(), "HEAD")).toMatchObject({ status: 200, body: "" });
    const [head, whole] = [await ask("/v1/authorize", [], "HEAD"), await ask("/v1/authorize", [])];
    expect(head).toMatchObject({ status: 401, body: "" });
    for (const name of ["content-length", "content-type", "www-authenticate", "cache-control", "x-latchkey-denial"]) {
      expect(head.headers[name]).toBe(whole.headers[name]);
    }
  });

  test("any path below is answered alike, and what only looks so is not there", async () => {
    for (const path of PATHS) expect(await ask(path)).toMatchObject({ status: 200 });
    for (const path of OTHERS) expect(await ask(path)).toMatchObject({ status: 404 });
  });

  test("a denial stands in a header too, on one line of visible ASCII, and nowhere else", async () => {
    const denied = await ask("/v1/authorize", [["x-api-key", "x"]]);
    expect(denied.headers["x-latchkey-denial"]).toBe(denied.body);
    const lacking = await ask("/v1/authorize?scopes=admin");
    expect(lacking.headers["x-latchkey-denial"]).toBe(lacking.body);
    expect((await ask("/v1/authorize")).headers).not.toHaveProperty("x-latchkey-denial");
  });

  test("scopes come from the header and the query together, in any separation", async () => {
    const missing = async (path: string, scopes?: string) => {
      const headers =
        scopes === undefined ? good() : [...good(), ["x-latchkey-required-scopes", scopes] as [string, string]];
      const { status, body } = await ask(path, headers);
      return status === 403 ? JSON.parse(body).missingScopes : status;
    };
    expect(await missing("/v1/authorize?scopes=read")).toBe(200);
    expect(await missing("/v1/authorize?scopes=read+a%20b,c&scopes=d")).toEqual(["a", "b", "c", "d"]);
    expect(await missing("/v1/authorize", "read, a  b")).toEqual(["a", "b"]);
    expect(await missing("/v1/authorize?scopes=a", "b")).toEqual(["b", "a"]);
    // There the query is the client's, whose word it may be.
    expect(await missing("/v1/authorize/login?scopes=openid")).toBe(200);
    expect(await missing("/v1/authorize/login?scopes=openid", "a")).toEqual(["a"]);
  });
});

test("a key is looked for in the query of what the client asked for, wherever the gateway says it", async () => {
  const queries = await startService({
    env: { MONGODB_DATABASE: service.database, LATCHKEY_GATEWAY_KEY_FROM: "query:k" },
  });
  const reason = async (path: string, headers: Record<string, string> = {}) => {
    const { status, body } = await get1(queries.server.address, path, Object.entries(headers));
    return status === 200 ? "OK" : JSON.parse(body).reason;
  };
  for (const name of ["x-forwarded-uri", "x-original-uri", "x-original-url", "x-envoy-original-path"]) {
    expect(await reason("/v1/authorize", { [name]: `https://shop.example/a?k=${key}` })).toBe("OK");
  }
  expect(await reason(`/v1/authorize/a?k=${key}`)).toBe("OK");
  // The gateway's own query is not the client's.
  expect(await reason(`/v1/authorize?k=${key}`)).toBe("KEY_MISSING");
  const same = { "x-forwarded-uri": `/a?k=${key}`, "x-original-url": `https://shop.example/a?k=${key}` };
  expect(await reason("/v1/authorize", same)).toBe("OK");
  expect(await reason(`/v1/authorize/a?k=${key}`, { "x-forwarded-uri": `/a?k=${key}x` })).toBe("KEY_AMBIGUOUS");
  await queries.stop();
});

test("Upgrade and Expect are the client's affair: both are answered, and no body is asked for", async () => {
  const socket = openSocket();
  const upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
  socket.write(`GET /v1/authorize HTTP/1.1\r\nhost: a\r\nx-api-key: ${key}\r\n${upgrade}\r\n`);
  expect(await until(socket, /\r\n\r\n/)).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  socket.write("GET /v1/authorize HTTP/1.1\r\nhost: a\r\n\r\n");
  expect(await until(socket, /KEY_MISSING"[^{]*}/)).toMatch(/^HTTP\/1\.1 401 /);
  for (const expectation of ["100-continue", "something else"]) {
    const expecting = openSocket();
    const head = `POST /v1/authorize HTTP/1.1\r\nhost: a\r\nx-api-key: ${key}\r\ncontent-length: 9\r\n`;
    expecting.write(`${head}expect: ${expectation}\r\n\r\n`);
    expect(await until(expecting, /\r\n\r\n/)).toMatch(/^HTTP\/1\.1 200 OK\r\n(?:.+\r\n)*connection: close\r\n/i);
  }
});

test("elsewhere, Expect is met as HTTP has it", async () => {
  const rpc = "POST /latchkey.v1.ApiKeyService/Verify HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
  const socket = openSocket();
  socket.write(`${rpc}content-length: 2\r\nexpect: 100-continue\r\n\r\n`);
  expect(await until(socket, /\r\n\r\n/)).toMatch(/^HTTP\/1\.1 100 Continue\r\n/);
  socket.write("{}");
  expect(await until(socket, /OUTCOME_MALFORMED/)).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  const other = openSocket();
  other.write(`${rpc}content-length: 2\r\nexpect: wonders\r\n\r\n{}`);
  expect(await until(other, /\r\n\r\n/)).toMatch(/^HTTP\/1\.1 417 /);
});

test("over HTTP/1.1 no body is waited for: a small one is read past, and one that goes on is broken off", async () => {
  const socket = openSocket();
  const head = `POST /v1/authorize HTTP/1.1\r\nhost: a\r\nx-api-key: ${key}\r\n`;
  socket.write(`${head}content-length: 100000\r\n\r\n`);
  expect(await until(socket, /\r\n\r\n/)).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  socket.write(Buffer.alloc(100_000));
  socket.write(`${head}\r\n`);
  expect(await until(socket, /\r\n\r\n/)).toMatch(/^HTTP\/1\.1 200 OK\r\n/);

  const endless = openSocket();
  endless.write(`${head}transfer-encoding: chunked\r\n\r\n`);
  expect(await until(endless, /\r\n\r\n/)).toMatch(/^HTTP\/1\.1 200 OK\r\n/);
  const closed = once(endless, "close");
  const chunk = Buffer.concat([Buffer.from("10000\r\n"), Buffer.alloc(0x10000), Buffer.from("\r\n")]);
  const pump = setInterval(() => {
    if (!endless.destroyed && endless.writableLength < 1_000_000) endless.write(chunk);
  }, 1);
  await closed;
  clearInterval(pump);
});

test("over HTTP/2 no body is waited for: one that goes on is broken off, and the connection stays", async () => {
  const session = connectHttp2(`http://${service.server.address}`);
  const ask = () => session.request({ ":method": "POST", ":path": "/v1/authorize", "x-api-key": key });
  const [endless, small] = [ask(), ask()];
  const [answer] = await once(endless, "response");
  expect(answer[":status"]).toBe(200);
  endless.resume();
  const closed = once(endless, "close");
  const pump = setInterval(() => {
    if (endless.writable && endless.writableLength < 1_000_000) endless.write(Buffer.alloc(65_536));
  }, 1);
  await closed;
  clearInterval(pump);
  expect(endless.rstCode).toBe(constants.NGHTTP2_NO_ERROR);
  small.end(Buffer.alloc(100_000));
  small.resume();
  await once(small, "close");
  const last = ask();
  last.end();
  const [again] = await once(last, "response");
  expect(again[":status"]).toBe(200);
  session.destroy();
});

test("over HTTP/2 too, two authorization headers are two credentials", async () => {
  // By hand: Node's client sends no two of them.
  const literal = (name: string, value: string) => [
    0,
    name.length,
    ...Buffer.from(name),
    value.length,
    ...Buffer.from(value),
  ];
  const frame = (type: number, flags: number, stream: number, payload: number[]) =>
    Buffer.from([0, payload.length >>> 8, payload.length & 0xff, type, flags, 0, 0, 0, stream, ...payload]);
  const block = Object.entries({ ":method": "GET", ":scheme": "http", ":path": "/v1/authorize", ":authority": "a" })
    .concat([
      ["authorization", "Basic dTpw"],
      ["authorization", `Bearer ${key}`],
    ])
    .flatMap(([name, value]) => literal(name, value));
  const socket = openSocket();
  socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  socket.write(Buffer.concat([frame(4, 0, 0, []), frame(1, 5, 1, block)]));
  expect(await until(socket, /"reason":"\w+"/)).toContain('"reason":"KEY_AMBIGUOUS"');
});
