import { once } from "node:events";
import http2 from "node:http2";
import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { startService, type TestService } from "../support/service.ts";

// What RFC 9110 and 9112 let clients and proxies send, at every door.

const VERIFY = "/latchkey.v1.ApiKeyService/Verify";
const GET = "/latchkey.v1.ApiKeyService/Get";

let service: TestService;
const sockets: Socket[] = [];
beforeAll(async () => {
  service = await startService();
});
afterAll(async () => {
  for (const socket of sockets) socket.destroy();
  await service.stop();
});

/** Writes `bytes` to `address`, and gives what was answered once it matches `wanted` or the connection has ended. */
async function ask(bytes: string, wanted: RegExp, address = service.server.address): Promise<string> {
  const socket = connect({ host: "127.0.0.1", port: Number(address.split(":")[1]) });
  sockets.push(socket);
  let text = "";
  socket.on("data", (chunk: Buffer) => {
    text += chunk.toString("latin1");
  });
  const ended = once(socket, "close");
  socket.write(bytes, "latin1");
  for (;;) {
    if (wanted.test(text)) return text;
    if (await Promise.race([ended.then(() => true), sleep(5, false)])) return text;
  }
}

const post = (target: string, { head = "Host: a\r\n", version = "1.1", type = "application/json" } = {}) =>
  `POST ${target} HTTP/${version}\r\n${head}content-type: ${type}\r\ncontent-length: 2\r\n\r\n{}`;
/** For an answer that is read to the connection's end. */
const NEVER = /(?!)/;
const statusOf = (answer: string) => Number(/^HTTP\/1\.1 (\d+)/.exec(answer)?.[1]);

describe("an authority that is missing, or that no URL can have", () => {
  test.each<[string, string, string]>([
    ["HTTP/1.0 without Host", "", "1.0"],
    ["a Host with a blank in it", "Host: a b\r\n", "1.1"],
    ["a Host that is half an address", "Host: [\r\n", "1.1"],
    ["an empty Host", "Host:\r\n", "1.1"],
  ])("%s harms nobody: the call is answered", async (_name, head, version) => {
    expect(statusOf(await ask(post(VERIFY, { head, version }), /OUTCOME_MALFORMED/))).toBe(200);
    expect(statusOf(await ask(post(GET, { head, version }), /unauthenticated/))).toBe(401);
  });

  test.each(["a:b", "["])("HTTP/2 with the authority %p harms nobody", async (authority) => {
    const session = http2.connect(service.baseUrl);
    const stream = session.request({
      ...{ ":method": "POST", ":path": GET, ":authority": authority, "content-type": "application/json" },
    });
    stream.end("{}");
    const [headers] = await once(stream, "response");
    expect(headers[":status"]).toBe(401);
    session.destroy();
  });
});

describe("request targets", () => {
  test("a target that is a whole URL is served as its path is, at every door", async () => {
    expect(statusOf(await ask(post(`http://other.example:8080${VERIFY}`), /OUTCOME_MALFORMED/))).toBe(200);
    expect(statusOf(await ask(post(`HTTP://[::1]${GET}`), /unauthenticated/))).toBe(401);
    const authorize = "GET https://a/v1/authorize/x?b=c HTTP/1.1\r\nHost: a\r\n\r\n";
    expect(await ask(authorize, /reason.*\}$/)).toContain('"reason":"KEY_MISSING"');
    const ready = "GET http://a/readyz?verbose HTTP/1.1\r\nHost: a\r\n\r\n";
    expect(statusOf(await ask(ready, /0\r\n\r\n$/, service.server.opsAddress))).toBe(200);
  });

  test("OPTIONS * is answered, and CONNECT refused in words", async () => {
    for (const target of ["*", "http://a"]) {
      const answer = await ask(`OPTIONS ${target} HTTP/1.1\r\nHost: a\r\n\r\n`, /\r\n\r\n$/);
      expect([statusOf(answer), /^allow: (.*)\r$/im.exec(answer)?.[1]]).toEqual([204, "GET, HEAD, POST, OPTIONS"]);
    }
    const refused = await ask("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", /served/);
    expect([statusOf(refused), refused]).toEqual([405, expect.stringContaining("CONNECT is not served")]);
  });

  test.each(["/livez?verbose", "/readyz?verbose=1&exclude=x", "/metrics?name=a"])(
    "%s on the ops port is what stands before its query",
    async (target) => {
      const answer = await ask(`GET ${target} HTTP/1.1\r\nHost: a\r\n\r\n`, /0\r\n\r\n$/, service.server.opsAddress);
      expect(statusOf(answer)).toBe(200);
    },
  );
});

describe("content types", () => {
  test.each([
    'application/json; charset="utf-8"',
    "application/json; charset=utf-8",
    "application/json;charset=UTF-8",
    "application/json ;  charset = utf8 ;",
    "Application/JSON",
  ])("%s is JSON", async (type) => {
    expect(statusOf(await ask(post(VERIFY, { type }), /OUTCOME_MALFORMED/))).toBe(200);
    expect(statusOf(await ask(post(GET, { type }), /unauthenticated/))).toBe(401);
  });

  test("another charset, and another type, are refused with the types that are served", async () => {
    for (const type of ["application/json; charset=latin1", "text/plain", "application/jsonx"]) {
      const answer = await ask(post(VERIFY, { type }), /\}\r\n0\r\n\r\n$/);
      expect([statusOf(answer), answer]).toEqual([415, expect.stringContaining("accept-post: application/json, ")]);
      expect(answer).toContain("The content type is none of");
    }
  });

  test("another method is refused with the one that is served", async () => {
    const answer = await ask(`GET ${VERIFY} HTTP/1.1\r\nHost: a\r\n\r\n`, /\}\r\n0\r\n\r\n$/);
    expect([statusOf(answer), answer]).toEqual([405, expect.stringContaining("allow: POST\r\n")]);
  });
});

test.each([
  ["an unknown path", "GET /x"],
  ["a gateway's question", "GET /v1/authorize"],
  ["a gateway's question by HEAD", "HEAD /v1/authorize"],
])("%s with a body that never comes is answered, and its connection is not used again", async (_name, line) => {
  const next = `POST ${VERIFY} HTTP/1.1\r\nHost: a\r\n`;
  const answer = await ask(`${line} HTTP/1.1\r\nHost: a\r\ncontent-length: 300\r\n\r\n${next}`, NEVER);
  expect(answer).toMatch(/^connection: close\r$/im);
});

test("a probe of the ops port with a body that never comes is answered, and its connection is not used again", async () => {
  const probe = "GET /livez HTTP/1.1\r\nHost: a\r\ncontent-length: 300\r\n\r\n";
  expect(await ask(probe, NEVER, service.server.opsAddress)).toMatch(/^connection: close\r$/im);
});

test.each<[string, string[]]>([
  ["fast", Array(40).fill(VERIFY)],
  ["Node's own", Array(40).fill(GET)],
  ["fast before Node's own", [VERIFY, VERIFY, ...Array(30).fill(GET)]],
  ["Node's own before fast", [GET, ...Array(30).fill(VERIFY)]],
])(
  "a client that sends requests without waiting, and nothing more, has all of its answers: %s",
  async (_name, targets) => {
    const socket = connect({
      host: "127.0.0.1",
      port: Number(service.server.address.split(":")[1]),
      allowHalfOpen: true,
    });
    sockets.push(socket);
    let text = "";
    socket.on("data", (chunk: Buffer) => {
      text += chunk.toString("latin1");
    });
    socket.end(targets.map((target) => post(target)).join(""));
    await once(socket, "close");
    const answers = text.match(/HTTP\/1\.1 \d+/g) ?? [];
    expect(answers).toEqual(targets.map((target) => `HTTP/1.1 ${target === VERIFY ? 200 : 401}`));
  },
);
