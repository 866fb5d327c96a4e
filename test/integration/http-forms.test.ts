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
