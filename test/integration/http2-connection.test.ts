import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { connect as connectTcp, type Socket } from "node:net";
import { afterEach, describe, expect, test } from "@jest/globals";
import {
  createFrameReader,
  Flag,
  frame,
  MAX_FRAME_BYTES,
  number32,
  PREFACE,
  Setting,
  settingsFrame,
  Type,
} from "../../src/fastpath/http2/frames.ts";
import {
  answersOf,
  call,
  cleanUp,
  cleanUps,
  nodeCall,
  openAtPort,
  pattern,
  startAtPort,
  untilTrue,
} from "../support/every-kind.ts";
import { type FrameClient, inEnvelope, requestHeaders } from "../support/frame-client.ts";

afterEach(cleanUp);

describe("fast and other calls on one connection", () => {
  test("node:http2's client gets large and small answers of both", async () => {
    const { listener } = await startAtPort();
    const session = connectHttp2(`http://${listener.address}`, {
      settings: { headerTableSize: 0, initialWindowSize: 1_000 },
    });
    cleanUps.push(() => session.destroy());
    const ask = async (path: string, body: Buffer) => {
      const stream = session.request({ ":method": "POST", ":path": path, "content-type": "application/grpc" });
      stream.end(body);
      const chunks: Buffer[] = [];
      for await (const chunk of stream) chunks.push(chunk);
      return Buffer.concat(chunks);
    };
    const answers = await Promise.all(
      Array.from({ length: 60 }, (_, index) =>
        index % 2 === 0
          ? ask("/fast/size", inEnvelope(String(index * 1_000)))
          : ask(`/node/size/${index * 1_000}`, Buffer.alloc(0)),
      ),
    );
    answers.forEach((answer, index) => {
      const expected = index % 2 === 0 ? inEnvelope(pattern(index * 1_000)) : pattern(index * 1_000);
      expect(answer.equals(expected)).toBe(true);
    });
  });

  test("over TLS", async () => {
    const { listener, ca } = await startAtPort({}, true);
    const client = await openAtPort(listener, { ca: ca! });
    client.write(call(1, "/fast/echo", "a"), nodeCall(3, "/node/echo", "b"), call(5, "/fast/soon", "c"));
    const [first, second, third] = await answersOf(client, 1, 3, 5);
    expect([first, second, third].map(String)).toEqual([inEnvelope("a"), "other:b", inEnvelope("c")].map(String));
  });
});

describe("a client that takes its answers slowly", () => {
  test("that does not read at all is not read from, though another stream would have more", async () => {
    const { listener } = await startAtPort();
    const client = await openAtPort(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 10_000_000]], grants: false });
    client.grant(0, 1_000_000_000);
    client.write(requestHeaders(1, { path: "/node/echo", type: "text/plain" }));
    await client.until(() => client.stream(1).fields.length > 0);
    client.socket.pause();
    const ids = Array.from({ length: 20 }, (_, index) => 2 * index + 3);
    client.write(...ids.map((id) => call(id, "/fast/size", "1000000")));
    const ignored = frame(0xee, 0, 0, Buffer.alloc(16_000));
    await expectBackpressure(client, Buffer.concat([frame(Type.WINDOW_UPDATE, 0, 1, number32(1)), ignored, ignored]));
    client.socket.resume();
    for (const body of await answersOf(client, ...ids)) expect(body).toHaveLength(1_000_005);
  });
});

/** Writes until the server has stopped reading: the client's own socket would take it all otherwise. */
async function expectBackpressure({ socket }: FrameClient, bytes: Buffer): Promise<void> {
  let stuck = 0;
  for (let round = 0; stuck < 20; round++) {
    expect(round).toBeLessThan(5_000);
    if (socket.writableLength < 1_000_000) {
      socket.write(bytes);
      stuck = 0;
    } else stuck += 1;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

describe("a drain", () => {
  test("serves the calls of a connection that had not said anything yet", async () => {
    const { listener } = await startAtPort();
    const socket = connectTcp(Number(listener.address.split(":")[1]), "127.0.0.1");
    await once(socket, "connect");
    // The server has it too.
    const later = await openAtPort(listener);
    later.write(call(1, "/fast/echo"));
    await answersOf(later, 1);
    const closed = listener.close(60_000);
    socket.write(Buffer.concat([PREFACE, settingsFrame([]), call(1, "/fast/echo", "hello")]));
    let received = "";
    socket.on("data", (chunk: Buffer) => {
      received += chunk.toString("latin1");
      if (received.includes("hello")) socket.end();
    });
    await closed;
    expect(received).toContain("hello");
  });

  test("reads what a client still sends behind our end: a reset would take back answers that it has not read", async () => {
    const { listener } = await startAtPort();
    const socket = connectTcp({ host: "127.0.0.1", port: Number(listener.address.split(":")[1]), allowHalfOpen: true });
    cleanUps.push(() => socket.destroy());
    let broken: Error | undefined;
    socket.on("error", (error) => {
      broken = error;
    });
    const pings: Buffer[] = [];
    const read = createFrameReader(MAX_FRAME_BYTES, ({ type, flags, payload }) => {
      if (type === Type.PING && (flags & Flag.ACK) === 0) socket.write(frame(Type.PING, Flag.ACK, 0, payload));
      else if (type === Type.PING) pings.push(payload);
    });
    socket.on("data", read);
    socket.write(Buffer.concat([PREFACE, settingsFrame([]), frame(Type.PING, 0, 0, Buffer.alloc(8))]));
    await untilTrue(() => pings.length === 1);
    const closed = listener.close(60_000);
    await once(socket, "end");
    for (let round = 0; round < 3; round += 1) {
      socket.write(frame(Type.WINDOW_UPDATE, 0, 0, number32(1)));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    socket.end();
    await closed;
    expect(broken).toBeUndefined();
  });
});

describe("limits", () => {
  test("one that is over, and does not read, is cut", async () => {
    const { listener, node, letterbox, counts } = await startAtPort({ requestTimeoutMs: 100 });
    const client = await openAtPort(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 50_000_000]] });
    client.grant(0, 100_000_000);
    client.write(nodeCall(1, "/node/held"));
    await untilTrue(() => node.calls === 1);
    client.socket.pause();
    client.write(call(3, "/fast/size", "40000000"));
    await untilTrue(() => counts.size === 1);
    const closing = listener.close(60_000);
    letterbox[0]!.end();
    await closing;
  });

  test.each([
    ["in cleartext", false],
    ["over TLS", true],
  ])("one that does not read what is streamed to it is cut, %s", async (_, secure) => {
    const { listener, node, letterbox, ca } = await startAtPort({ requestTimeoutMs: 100 }, secure);
    const client = await openAtPort(listener, { ca, settings: [[Setting.INITIAL_WINDOW_SIZE, 1_000_000_000]] });
    client.grant(0, 1_000_000_000);
    client.write(nodeCall(1, "/node/held"));
    await untilTrue(() => letterbox.length === 1);
    client.socket.pause();
    const response = letterbox[0]!;
    const fill = () => {
      while (!response.destroyed && response.write(pattern(100_000)));
    };
    response.on("drain", fill);
    fill();
    // As heartbeats would: what it is sent grows though it takes nothing.
    const beat = setInterval(() => response.write("x"), 10);
    cleanUps.push(() => clearInterval(beat));
    await untilTrue(() => node.closed === 1);
  });
});

test("a connection that breaks aborts what goes on, of both", async () => {
  const { listener, held, node, letterbox } = await startAtPort();
  const client = await openAtPort(listener);
  client.write(call(1, "/fast/held"), nodeCall(3, "/node/held"));
  await untilTrue(() => held.length === 1 && letterbox.length === 1);
  (client.socket as Socket).resetAndDestroy();
  await untilTrue(() => held[0]!.signal.aborted && node.closed === 1);
});

test("a listener that closed leaves nothing behind", async () => {
  const { listener } = await startAtPort();
  const client = await openAtPort(listener);
  client.write(call(1, "/fast/echo", "x"));
  await answersOf(client, 1);
  const ended = once(client.socket, "close");
  await listener.close(1_000);
  await ended;
});
