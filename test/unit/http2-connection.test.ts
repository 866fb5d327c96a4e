import { afterEach, describe, expect, test } from "@jest/globals";
import {
  Fault,
  Flag,
  frame,
  headersFrames,
  MAX_FRAME_BYTES,
  number32,
  Setting,
  settingsFrame,
  Type,
} from "../../src/fastpath/http2/frames.ts";
import { encodeFields } from "../../src/fastpath/http2/hpack.ts";
import { PORTION_BYTES } from "../../src/fastpath/http2/windows.ts";
import {
  answersOf,
  call,
  cleanUp,
  field,
  isOver,
  nodeCall,
  openInMemory,
  pattern,
  reset,
  startInMemory,
  untilTrue,
} from "../support/every-kind.ts";
import { data, type FrameClient, inEnvelope, requestHeaders } from "../support/frame-client.ts";

afterEach(cleanUp);

/** A sequence that is the same each time. */
function dice(seed: number) {
  let state = seed;
  return (sides: number): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * sides);
  };
}

describe("fast and other calls on one connection", () => {
  test("by the hundred, mixed, each get their own answer", async () => {
    const { listener, node } = startInMemory();
    const client = openInMemory(listener);
    const ids = Array.from({ length: 600 }, (_, index) => 2 * index + 1);
    const paths = ["/fast/echo", "/fast/soon", "/fast/roomy", "/fast/none", "/node/echo"];
    const pathOf = (id: number) => paths[((id - 1) / 2) % paths.length]!;
    for (let at = 0; at < ids.length; at += 100) {
      const some = ids.slice(at, at + 100);
      client.write(...some.map((id) => call(id, pathOf(id), `message ${id}`)));
      await answersOf(client, ...some);
    }
    for (const id of ids) {
      const isOfNode = /none|node/.test(pathOf(id));
      const body = client.stream(id).body.toString("latin1");
      expect(body).toBe(`${isOfNode ? "other:" : ""}${inEnvelope(`message ${id}`).toString("latin1")}`);
      expect(field(client, id, "grpc-status")).toBe(isOfNode ? undefined : "0");
    }
    expect(node.calls).toBe(240);
  });

  test("uploads of all sizes beside fast calls never stall, whichever of the two has the bytes", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    const random = dice(1);
    // A call that turns out to be too large is handed over after calls that came later.
    const all = Array.from({ length: 120 }, (_, index) => {
      const size = random(3) === 0 ? random(60_000) : random(3_000);
      return {
        id: 2 * index + 1,
        path: ["/fast/echo", "/node/echo", "/fast/none", "/fast/soon"][random(4)]!,
        body: pattern(size),
      };
    });
    const running = all.map(async ({ id, path, body }) => {
      client.write(requestHeaders(id, { path }));
      await client.upload(id, inEnvelope(body));
    });
    await Promise.all(running);
    await answersOf(client, ...all.map(({ id }) => id));
    for (const { id, path, body } of all) {
      const text = client.stream(id).body;
      const isOfNode = text.subarray(0, 6).toString() === "other:";
      expect(isOfNode || path === "/fast/echo" || path === "/fast/soon").toBe(true);
      expect(text.subarray(isOfNode ? 6 : 0).equals(inEnvelope(body))).toBe(true);
    }
  });

  test("frames that come byte by byte are those that were sent", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener, { grants: false });
    await client.until(() => client.frames.filter(({ type }) => type === Type.SETTINGS).length === 2);
    for (const byte of Buffer.concat([call(1, "/fast/echo", "one"), nodeCall(3, "/node/echo", "two")])) {
      client.write(Buffer.of(byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect((await answersOf(client, 1, 3)).map(String)).toEqual([String(inEnvelope("one")), "other:two"]);
  });
});

describe("headers on a stream that is closed", () => {
  const again = (id: number) => requestHeaders(id, { path: "/fast/echo", end: true });

  test.each([
    ["the fast path", "/fast/echo"],
    ["Node's own server", "/node/echo"],
  ])("by both ends, at %s: the connection ends with STREAM_CLOSED (RFC 9113, 5.1)", async (_where, path) => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(call(1, path));
    await answersOf(client, 1);
    client.write(again(1));
    await client.until(() => client.closed);
    expect(client.goaway).toEqual({ lastId: 1, fault: Fault.STREAM_CLOSED });
  });

  test("that was passed over: the connection ends with PROTOCOL_ERROR (RFC 9113, 5.1.1)", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(call(5, "/fast/echo"), call(7, "/fast/echo"));
    await answersOf(client, 5, 7);
    client.write(again(3));
    await client.until(() => client.closed);
    expect(client.goaway).toEqual({ lastId: 7, fault: Fault.PROTOCOL_ERROR });
  });

  test("by the client's reset: it is reset, and the connection goes on", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(requestHeaders(1, { path: "/fast/echo" }), reset(1), again(1), call(3, "/fast/echo"));
    await answersOf(client, 3);
    expect(client.stream(1).resetBy).toBe(Fault.STREAM_CLOSED);
  });

  test("by a reset from here, which they crossed: they are passed over, and data too", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(call(1, "/fast/echo", "hello", ["content-length", "3"]), data(1, Buffer.from("x"), 0), again(1));
    client.write(call(3, "/fast/echo"));
    await answersOf(client, 3);
    expect(client.stream(1).resetBy).toBe(Fault.PROTOCOL_ERROR);
    expect(client.frames.filter(({ type, id }) => type === Type.RST_STREAM && id === 1)).toHaveLength(1);
  });
});

describe("an answer without a body ends with its headers, and no empty DATA frame follows", () => {
  const framesOf = (client: FrameClient, id: number) =>
    client.frames.filter((seen) => seen.id === id && (seen.type === Type.DATA || seen.type === Type.HEADERS));

  test.each([
    ["a gRPC refusal by Node's own server", "/node/refused"],
    ["one that it ends later than it begins", "/node/refused-late"],
  ])("%s", async (_what, path) => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(call(1, path), call(3, "/fast/echo", "x"), nodeCall(5, "/node/echo", "y"));
    const [first, , third] = await answersOf(client, 1, 3, 5);
    expect([first!.length, String(third)]).toEqual([0, "other:y"]);
    expect(framesOf(client, 1).map(({ type, flags }) => [type, flags & Flag.END_STREAM])).toEqual([[Type.HEADERS, 1]]);
    expect(field(client, 1, "grpc-status")).toBe("12");
  });

  test("a refusal while the client still sends: it may stop, and is not waited for", async () => {
    const { listener, node } = startInMemory();
    const client = openInMemory(listener);
    client.write(requestHeaders(1, { path: "/node/refused" }));
    await client.until(() => client.stream(1).ended);
    client.write(data(1, inEnvelope("late")));
    await untilTrue(() => node.closed === 1);
    client.write(call(3, "/fast/echo", "x"));
    await answersOf(client, 3);
    expect(framesOf(client, 1)).toHaveLength(1);
  });

  test("an empty message in Connect's protocol", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(requestHeaders(1, { path: "/fast/echo", type: "application/proto", end: true }));
    await answersOf(client, 1);
    expect(framesOf(client, 1).map(({ type }) => type)).toEqual([Type.HEADERS]);
  });

  test("headers that something follows later are sent at once", async () => {
    const { listener, letterbox } = startInMemory();
    const client = openInMemory(listener);
    client.write(nodeCall(1, "/node/held"));
    await untilTrue(() => letterbox.length === 1);
    letterbox[0]!.writeHead(200);
    letterbox[0]!.flushHeaders();
    await client.until(() => client.stream(1).fields.length > 0);
    letterbox[0]!.end("late");
    expect((await answersOf(client, 1)).map(String)).toEqual(["late"]);
  });
});

describe("what is not the plain case of a fast call goes to Node's own server from its beginning", () => {
  test("a message in many frames is a plain case all the same", async () => {
    const { listener, node } = startInMemory();
    const client = openInMemory(listener);
    const bytes = inEnvelope(pattern(3_000));
    const pieces = [...bytes].map((_, at) =>
      data(1, bytes.subarray(at, at + 1), at + 1 === bytes.length ? Flag.END_STREAM : 0),
    );
    const empty = data(1, Buffer.alloc(0), 0);
    client.write(requestHeaders(1, { path: "/fast/echo" }), empty, ...pieces.slice(0, 9), empty, ...pieces.slice(9));
    expect((await answersOf(client, 1))[0]!.equals(bytes)).toBe(true);
    expect(node.calls).toBe(0);
  });

  test("padding", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    const bytes = inEnvelope("padded");
    client.write(
      requestHeaders(1, { path: "/fast/echo" }),
      data(1, bytes.subarray(0, 3), 0),
      frame(
        Type.DATA,
        Flag.PADDED | Flag.END_STREAM,
        1,
        Buffer.concat([Buffer.of(200), bytes.subarray(3), Buffer.alloc(200)]),
      ),
    );
    expect(String((await answersOf(client, 1))[0])).toBe(`other:${bytes}`);
    // What the padding took of the window is given back.
    for (let id = 3; id < 703; id += 2) {
      await client.until(() => client.sendWindow >= 12 + 201);
      client.write(
        requestHeaders(id, { path: "/fast/echo" }),
        frame(Type.DATA, Flag.PADDED | Flag.END_STREAM, id, Buffer.concat([Buffer.of(200), bytes, Buffer.alloc(200)])),
      );
      await client.until(() => isOver(client, id));
    }
    expect(client.stream(701).resetBy).toBeUndefined();
  });

  test("trailers", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(
      requestHeaders(1, { path: "/fast/echo" }),
      data(1, inEnvelope("x"), 0),
      headersFrames(Flag.END_STREAM, 1, encodeFields(["x-checksum", "1"])),
    );
    expect(String((await answersOf(client, 1))[0])).toBe(`other:${inEnvelope("x")}`);
  });

  test.each([
    ["more", 99],
    ["less", 2],
  ])(
    "a content-length of %s than there is: the stream is reset, as it is by node:http2 alone",
    async (_what, length) => {
      const { listener } = startInMemory();
      const client = openInMemory(listener);
      client.write(call(1, "/fast/echo", "hello", ["content-length", String(length)]), call(3, "/fast/echo", "next"));
      expect(String((await answersOf(client, 3))[0])).toBe(String(inEnvelope("next")));
      await client.until(() => isOver(client, 1));
      expect(client.stream(1).resetBy).toBe(Fault.PROTOCOL_ERROR);
    },
  );

  test.each([
    ["more than", "3", Flag.END_STREAM],
    ["more than, and goes on,", "3", 0],
    ["less than", "99", Flag.END_STREAM],
  ])(
    "a body of %s its content-length at Node's own server: the stream is reset, and nothing else",
    async (_what, length, flags) => {
      const { listener, node } = startInMemory();
      const client = openInMemory(listener);
      const headers = requestHeaders(1, { path: "/node/echo", type: "text/plain", more: ["content-length", length] });
      client.write(headers, nodeCall(3, "/node/echo", "before"));
      await answersOf(client, 3);
      client.write(data(1, Buffer.from("hello"), flags), nodeCall(5, "/node/echo", "after"));
      expect((await answersOf(client, 5)).map(String)).toEqual(["other:after"]);
      expect(client.stream(1).resetBy).toBe(Fault.PROTOCOL_ERROR);
      await untilTrue(() => node.closed === 3);
      expect(client.goaway).toBeUndefined();
    },
  );

  test("a call that is handed over after one that came later", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(requestHeaders(1, { path: "/fast/none" }), requestHeaders(3, { path: "/fast/echo" }));
    client.write(nodeCall(5, "/node/echo", "five"), data(3, pattern(24_001).subarray(0, 16_000), 0));
    await answersOf(client, 5);
    client.write(data(3, pattern(16_000)), data(1, inEnvelope("one")));
    const [first, third] = await answersOf(client, 1, 3);
    expect([String(first), third!.length]).toEqual([`other:${inEnvelope("one")}`, 32_006]);
  });

  test("a header of two readings", async () => {
    const { listener, node } = startInMemory();
    const client = openInMemory(listener);
    client.write(
      call(1, "/fast/who", "", ["authorization", "a", "authorization", "b"]),
      call(3, "/fast/who", "", ["connection", "close"]),
      call(5, "/fast/who", "", ["a:b", "c"]),
      call(7, "/fast/who", "", ["Upper", "c"]),
      call(9, "/fast/who", "", ["x", "line\nbreak"]),
      call(11, "/fast/who", "", [":path", "/fast/who"]),
      call(13, "/fast/who", "", ["authorization", "one"]),
    );
    expect(String((await answersOf(client, 13))[0])).toBe(String(inEnvelope("one")));
    await client.until(() => isOver(client, 1, 3, 5, 7, 9, 11));
    // node:http2 passes over a name or value that can't be.
    expect([3, 5, 7, 9, 11].filter((id) => client.stream(id).resetBy === Fault.PROTOCOL_ERROR)).toEqual([3, 7, 11]);
    expect([5, 9].map((id) => client.stream(id).body.toString().slice(0, 6))).toEqual(["other:", "other:"]);
    expect(node.calls).toBe(3);
  });

  test("a credit that the client gave before is not lost", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 4]], grants: false });
    client.write(requestHeaders(1, { path: "/fast/none" }));
    client.grant(1, 100);
    client.write(data(1, inEnvelope("hello")));
    expect(String((await answersOf(client, 1))[0])).toBe(`other:${inEnvelope("hello")}`);
  });
});

describe("a fast method that fails", () => {
  test.each(["/fast/throws", "/fast/rejects"])("%s: INTERNAL, and not why", async (path) => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(call(1, path));
    await answersOf(client, 1);
    expect([field(client, 1, "grpc-status"), field(client, 1, "grpc-message")]).toEqual(["13", "internal error"]);
  });

  test("one that does not answer in the caller's time: DEADLINE_EXCEEDED, and its signal is aborted", async () => {
    const { listener, held } = startInMemory();
    const client = openInMemory(listener);
    client.write(call(1, "/fast/held", "", ["grpc-timeout", "20m"]));
    await answersOf(client, 1);
    expect(field(client, 1, "grpc-status")).toBe("4");
    expect(held[0]!.signal.aborted).toBe(true);
  });
});

describe("a client that takes its answers slowly", () => {
  test("with windows of a few bytes gets all of fast and other answers, drop by drop", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 3]], grants: false });
    const ids = [1, 3, 5, 7];
    client.write(
      call(1, "/fast/size", "2000"),
      nodeCall(3, "/node/size/2000"),
      call(5, "/fast/echo", pattern(99)),
      nodeCall(7, "/node/size/70"),
    );
    const random = dice(2);
    while (!isOver(client, ...ids)) {
      for (const id of ids) if (!isOver(client, id)) client.grant(id, 1 + random(40));
      client.grant(0, 1 + random(60));
      await new Promise((resolve) => setImmediate(resolve));
    }
    const [first, second, third, fourth] = await answersOf(client, ...ids);
    expect(first!.equals(inEnvelope(pattern(2_000)))).toBe(true);
    expect(second!.equals(pattern(2_000))).toBe(true);
    expect(third!.equals(inEnvelope(pattern(99)))).toBe(true);
    expect(fourth!.equals(pattern(70))).toBe(true);
  });

  test("whose connection window is used up by fast answers gets other answers as soon as there is any room", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 1_000_000]], grants: false });
    client.write(nodeCall(1, "/node/echo"), call(3, "/fast/size", "65000"));
    await answersOf(client, 1, 3);
    client.write(nodeCall(5, "/node/size/300000"), call(7, "/fast/size", "100000"), nodeCall(9, "/node/size/50000"));
    // Never as much as a frame of the session's, and not before all of it was used.
    while (!isOver(client, 5, 7, 9)) {
      if (client.receiveWindow === 0) client.grant(0, 5_000);
      await new Promise((resolve) => setImmediate(resolve));
    }
    const [fifth, seventh, ninth] = await answersOf(client, 5, 7, 9);
    expect(fifth!.equals(pattern(300_000))).toBe(true);
    expect(seventh!.equals(inEnvelope(pattern(100_000)))).toBe(true);
    expect(ninth!.equals(pattern(50_000))).toBe(true);
  });

  test("that makes its windows larger and smaller in the middle of answers is never sent too much", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 100]], grants: false });
    const ids = [1, 3, 5];
    client.write(call(1, "/fast/size", "30000"), nodeCall(3, "/node/size/20000"), call(5, "/fast/size", "3000"));
    const random = dice(3);
    client.grant(0, 200_000);
    while (!isOver(client, ...ids)) {
      client.setFirstWindow(random(1_000));
      for (const id of ids) if (!isOver(client, id)) client.grant(id, 1 + random(500));
      await new Promise((resolve) => setImmediate(resolve));
    }
    const [first, third, fifth] = await answersOf(client, ...ids);
    expect([first!.length, third!.length, fifth!.length]).toEqual([30_005, 20_000, 3_005]);
  });

  test("its stream is reset when it has not taken an answer in time; the connection goes on", async () => {
    const { listener } = startInMemory({ requestTimeoutMs: 40 });
    const client = openInMemory(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 10]], grants: false });
    client.write(call(1, "/fast/size", "100"), nodeCall(3, "/node/size/100"));
    await client.until(() => isOver(client, 1, 3));
    expect([client.stream(1).resetBy, client.stream(3).resetBy]).toEqual([Fault.CANCEL, Fault.CANCEL]);
    client.write(call(5, "/fast/echo", "still"));
    expect(String((await answersOf(client, 5))[0])).toBe(String(inEnvelope("still")));
  });
});

describe("a client with a header table of its own size", () => {
  test("smaller than usual, from the beginning or later, is told that it is so", async () => {
    const { listener } = startInMemory();
    for (const before of [true, false]) {
      const small: [number, number] = [Setting.HEADER_TABLE_SIZE, 64];
      const client = openInMemory(listener, { settings: before ? [small] : [] });
      if (!before) {
        client.write(nodeCall(1, "/node/echo"), call(3, "/fast/echo"), settingsFrame([small]));
        await answersOf(client, 1, 3);
      }
      client.write(call(5, "/fast/echo"), nodeCall(7, "/node/echo"));
      await answersOf(client, 5, 7);
      for (const id of [5, 7]) {
        const head = client.frames.find((seen) => seen.type === Type.HEADERS && seen.id === id);
        expect(head?.payload[0]).toBe(0x20);
      }
    }
  });

  test("its blocks of headers keep their meaning only as long as its table does", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    const fixed = encodeFields([
      ":method",
      "POST",
      ":scheme",
      "http",
      ":path",
      "/fast/who",
      "content-type",
      "application/grpc",
    ]);
    const text = (value: string) => Buffer.concat([Buffer.of(value.length), Buffer.from(value)]);
    /** Puts `authorization: value` in the table, where its index is 62. */
    const learn = (value: string) => Buffer.concat([Buffer.of(0x40 | 23), text(value)]);
    const ask = (id: number, block: Buffer) => Buffer.concat([headersFrames(0, id, block), data(id, inEnvelope(""))]);
    const refer = Buffer.concat([fixed, Buffer.of(0x80 | 62)]);
    client.write(ask(1, Buffer.concat([fixed, learn("alice")])), ask(3, refer), ask(5, refer));
    client.write(ask(7, Buffer.concat([fixed, learn("bob")])), ask(9, refer), ask(11, refer));
    // A table that is emptied and filled again, by calls that are not served here.
    client.write(
      headersFrames(
        Flag.END_STREAM,
        13,
        Buffer.concat([
          Buffer.of(0x20, 0x3f, 0xe1, 0x1f),
          encodeFields([":method", "GET", ":scheme", "http", ":path", "/node/size/1"]),
          learn("carol"),
        ]),
      ),
    );
    client.write(ask(15, refer), ask(17, refer));
    const bodies = await answersOf(client, 1, 3, 5, 7, 9, 11, 15, 17);
    expect(bodies.map((body) => body.subarray(5).toString())).toEqual([
      "alice",
      "alice",
      "alice",
      "bob",
      "bob",
      "bob",
      "carol",
      "carol",
    ]);
  });

  test("headers longer than a frame come with nothing between their parts", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(
      nodeCall(1, "/node/headers"),
      ...Array.from({ length: 50 }, (_, index) => call(2 * index + 3, "/fast/soon", "x")),
    );
    await answersOf(client, 1, ...Array.from({ length: 50 }, (_, index) => 2 * index + 3));
    expect(field(client, 1, "long")).toHaveLength(40_000);
  });
});

describe("streams that end before their time", () => {
  test("a reset aborts the call that is being answered, and nothing is sent on its stream", async () => {
    const { listener, held } = startInMemory();
    const client = openInMemory(listener);
    client.write(call(1, "/fast/held"));
    await untilTrue(() => held.length === 1);
    client.write(reset(1), call(3, "/fast/echo", "x"));
    await answersOf(client, 3);
    expect(held[0]!.signal.aborted).toBe(true);
    held[0]!.resolve({ message: Buffer.from("too late") });
    client.write(call(5, "/fast/echo", "x"));
    await answersOf(client, 5);
    expect(client.frames.filter(({ id }) => id === 1)).toEqual([]);
  });

  test.each([
    ["data", data(1, Buffer.from("more"))],
    ["headers", headersFrames(Flag.END_STREAM, 1, encodeFields(["x", "y"]))],
  ])(
    "%s after the end resets the stream, aborts its call, and nothing is sent after the reset",
    async (_what, bytes) => {
      const { listener, held } = startInMemory();
      const client = openInMemory(listener);
      client.write(call(1, "/fast/held"), bytes);
      await client.until(() => isOver(client, 1));
      expect(client.stream(1).resetBy).toBe(Fault.STREAM_CLOSED);
      expect(held[0]!.signal.aborted).toBe(true);
      held[0]!.resolve({ message: Buffer.from("too late") });
      client.write(call(3, "/fast/echo", "x"));
      await answersOf(client, 3);
      expect(client.frames.filter(({ id }) => id === 1)).toHaveLength(1);
    },
  );

  test("headers after the end reset a stream whose answer waits for the client's window", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 10]], grants: false });
    client.write(call(1, "/fast/size", "100"), headersFrames(Flag.END_STREAM, 1, encodeFields(["a", "b"])));
    client.write(call(3, "/fast/echo"));
    await answersOf(client, 3);
    expect(client.stream(1).resetBy).toBe(Fault.STREAM_CLOSED);
  });

  test("data after the end resets a stream whose answer waits for the client's window", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 1]], grants: false });
    client.write(call(1, "/fast/echo", "hello"), data(1, Buffer.from("more")));
    await client.until(() => isOver(client, 1));
    client.grant(1, 100);
    client.grant(0, 100);
    client.write(requestHeaders(3, { path: "/fast/echo" }));
    client.grant(3, 100);
    client.write(data(3, inEnvelope("x")));
    await answersOf(client, 3);
    expect(client.stream(1).body.length).toBeLessThanOrEqual(1);
  });

  test("resets of calls that go on do not let a client have more than its share of them", async () => {
    const { listener, held } = startInMemory({ maxConcurrentStreams: 4 });
    const client = openInMemory(listener);
    const ids = Array.from({ length: 40 }, (_, index) => 2 * index + 1);
    client.write(...ids.flatMap((id) => [call(id, "/fast/held"), reset(id)]));
    client.write(call(101, "/fast/echo", "waits"), frame(Type.PING, 0, 0, Buffer.alloc(8)));
    await client.until(() => client.frames.some(({ type }) => type === Type.PING));
    expect([held.length, isOver(client, 101)]).toEqual([4, false]);
    for (const { resolve } of held) resolve({ message: Buffer.alloc(0) });
    expect(String((await answersOf(client, 101))[0])).toContain("waits");
  });

  test("a GOAWAY of the client's ends no call", async () => {
    const { listener, held, letterbox } = startInMemory();
    const client = openInMemory(listener);
    client.write(call(1, "/fast/held"), nodeCall(3, "/node/held"));
    await untilTrue(() => held.length === 1 && letterbox.length === 1);
    client.write(frame(Type.GOAWAY, 0, 0, Buffer.alloc(8)));
    letterbox[0]!.end("node");
    await answersOf(client, 3);
    held[0]!.resolve({ message: Buffer.from("fast") });
    await answersOf(client, 1);
  });
});

describe("a client that sends without waiting for answers", () => {
  /** Calls that fit into one read of 64 KiB. */
  const MANY = 400;
  const ids = Array.from({ length: MANY }, (_, index) => 2 * index + 1);

  test("does not hold up another's call", async () => {
    const { listener, counts, hooks } = startInMemory();
    const [greedy, other] = [openInMemory(listener), openInMemory(listener)];
    other.write(call(1, "/fast/echo", "hello"));
    await answersOf(other, 1);
    hooks.first = () => other.write(call(3, "/fast/echo", "other"));
    greedy.write(...ids.map((id) => call(id, "/fast/size", "1")));
    await answersOf(other, 3);
    expect(counts.beforeEcho).toBeLessThan(MANY / 2);
    await answersOf(greedy, ...ids);
  });

  test("and does not read them has little of it served, and the rest when it does", async () => {
    const { listener, counts } = startInMemory();
    const client = openInMemory(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 10_000_000]] });
    client.grant(0, 1_000_000_000);
    client.socket.pause();
    const large = ids.slice(0, 40);
    client.write(...large.map((id) => call(id, "/fast/size", "1000000")));
    await untilTrue(() => counts.size > 0);
    let before = -1;
    while (before !== counts.size) {
      before = counts.size;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(counts.size).toBeLessThan(large.length / 2);
    client.socket.resume();
    for (const body of await answersOf(client, ...large)) expect(body).toHaveLength(1_000_005);
  });

  test("what it sent behind a whole turn's calls is kept to: a reset, an end, a fault", async () => {
    const { listener, held, counts } = startInMemory();
    const client = openInMemory(listener);
    client.write(
      ...ids.map((id) => call(id, "/fast/size", "1")),
      call(1_001, "/fast/held"),
      reset(1_001),
      call(1_003, "/fast/size", "1"),
      frame(Type.PUSH_PROMISE, 0, 1, Buffer.alloc(4)),
      call(1_005, "/fast/size", "1"),
    );
    await client.until(() => client.goaway !== undefined);
    await answersOf(client, ...ids, 1_003);
    expect(held[0]!.signal.aborted).toBe(true);
    expect(client.goaway).toEqual({ lastId: 1_003, fault: Fault.PROTOCOL_ERROR });
    expect(counts.size).toBe(MANY + 1);
  });

  test("has all of it served by a drain, when it was sent before its client knew", async () => {
    const { listener, counts, hooks } = startInMemory();
    const client = openInMemory(listener);
    const closing = new Promise<void>((resolve) => {
      // Between two turns.
      hooks.first = () => void setImmediate(() => resolve(listener.close()));
    });
    client.write(...ids.map((id) => call(id, "/fast/size", "1")));
    await closing;
    await answersOf(client, ...ids);
    expect(client.goaways.map(({ lastId }) => lastId)).toEqual([2 ** 31 - 1, ids.at(-1)]);
    expect(counts.size).toBe(MANY);
  });
});

describe("a drain", () => {
  test("lets calls of both finish, those that are half sent too, tells the client, and ends", async () => {
    const { listener, held, letterbox } = startInMemory();
    const client = openInMemory(listener);
    client.write(call(1, "/fast/held"), nodeCall(3, "/node/held"), requestHeaders(5, { path: "/fast/echo" }));
    client.write(requestHeaders(7, { path: "/fast/none" }), call(9, "/fast/echo", "x"));
    await untilTrue(() => held.length === 1 && letterbox.length === 1);
    await answersOf(client, 9);
    const closed = listener.close();
    await client.until(() => client.goaways.length === 2);
    expect(client.goaway).toEqual({ lastId: 9, fault: Fault.NO_ERROR });
    client.write(call(11, "/fast/echo", "beyond"));
    letterbox[0]!.end("node");
    held[0]!.resolve({ message: Buffer.from("fast") });
    client.write(data(7, inEnvelope("seven")), data(5, inEnvelope("five")));
    const bodies = await answersOf(client, 1, 3, 5, 7);
    expect(bodies.map(String)).toEqual(
      [inEnvelope("fast"), "node", inEnvelope("five"), `other:${inEnvelope("seven")}`].map(String),
    );
    await client.until(() => client.closed);
    expect(client.frames.some(({ id }) => id === 11)).toBe(false);
    await closed;
  });

  const pings = (client: FrameClient) =>
    client.frames.filter(({ type, flags }) => type === Type.PING && (flags & Flag.ACK) === 0);
  const pong = (client: FrameClient) => frame(Type.PING, Flag.ACK, 0, pings(client).at(-1)!.payload);

  test.each([
    ["on a connection of our own reader's alone", ""],
    ["on one that Node's own server has a stream of", "/node/held"],
    ["on one whose stream at Node's own server has ended", "/node/echo"],
  ])(
    "holds its answers until the client has answered three pings, of which the third is behind a GOAWAY 2³¹−1, serves what comes meanwhile, and names the last stream after a fourth, %s",
    async (_where, earlier) => {
      const { listener, letterbox } = startInMemory();
      const client = openInMemory(listener, { answersPings: false });
      if (earlier !== "") client.write(nodeCall(1, earlier));
      if (earlier === "/node/held") await untilTrue(() => letterbox.length === 1);
      if (earlier === "/node/echo") await answersOf(client, 1);
      const closed = listener.close();
      await client.until(() => pings(client).length === 1);
      // They were on their way: nothing is refused in between.
      client.write(call(3, "/fast/echo", "x"), nodeCall(5, "/node/echo", "y"), call(7, "/fast/soon", "z"));
      client.write(frame(Type.PING, Flag.ACK, 0, Buffer.from("no, mine")), pong(client));
      await client.until(() => pings(client).length === 2);
      expect(client.goaways).toEqual([]);
      client.write(pong(client));
      await client.until(() => pings(client).length === 3);
      // In nghttp2, and with it in Node, a call that an answer sets off would be refused by the client itself here.
      const answered = client.frames.filter(({ id, type }) => id > 1 && type === Type.HEADERS);
      expect({ goaways: client.goaways, answered }).toEqual({
        ...{ goaways: [{ lastId: 2 ** 31 - 1, fault: Fault.NO_ERROR }], answered: [] },
      });
      client.write(pong(client));
      const bodies = await answersOf(client, 3, 5, 7);
      expect(bodies.map(String)).toEqual([String(inEnvelope("x")), "other:y", String(inEnvelope("z"))]);
      await client.until(() => pings(client).length === 4);
      client.write(call(9, "/fast/echo"), call(11, "/fast/echo"));
      await answersOf(client, 9, 11);
      expect([client.goaways.length, client.closed]).toEqual([1, false]);
      client.write(pong(client));
      await client.until(() => client.goaways.length === 2);
      expect(client.goaway).toEqual({ lastId: 11, fault: Fault.NO_ERROR });
      letterbox[0]?.end();
      await client.until(() => client.closed);
      await closed;
    },
  );

  test("waits for no more than a bounded time for the pings' answers, and holds its own for no longer than gateways wait", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener, { answersPings: false });
    const closed = listener.close();
    client.write(call(1, "/fast/echo", "x"));
    expect((await answersOf(client, 1)).map(String)).toEqual([String(inEnvelope("x"))]);
    expect(client.goaways.map(({ lastId }) => lastId)).toEqual([2 ** 31 - 1]);
    await client.until(() => client.closed);
    expect(client.goaways.map(({ lastId }) => lastId)).toEqual([2 ** 31 - 1, 1]);
    await closed;
  });

  test("ends at once what has no call, with and without a session of node:http2, and last what waits for a window", async () => {
    const { listener } = startInMemory();
    const idle = openInMemory(listener);
    const used = openInMemory(listener);
    used.write(nodeCall(1, "/node/echo"));
    await answersOf(used, 1);
    const slow = openInMemory(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 1]], grants: false });
    slow.write(call(1, "/fast/echo", "hello"), nodeCall(3, "/node/echo", "x"));
    await slow.until(() => slow.stream(1).body.length === 1 && slow.stream(3).body.length === 1);
    const closed = listener.close();
    await Promise.all([idle.until(() => idle.closed), used.until(() => used.closed)]);
    slow.grant(3, 100);
    await answersOf(slow, 3);
    slow.grant(1, 100);
    await answersOf(slow, 1);
    await closed;
  });

  test("ends when the only call is left half sent, and times out", async () => {
    const { listener } = startInMemory({ requestTimeoutMs: 40 });
    const client = openInMemory(listener);
    client.write(requestHeaders(1, { path: "/fast/echo" }));
    await client.until(() => client.frames.length > 0);
    await new Promise((resolve) => setImmediate(resolve));
    await listener.close();
    await client.until(() => client.closed);
  });
});

describe("limits", () => {
  test("a body that does not come in time: the stream is reset, the connection goes on", async () => {
    const { listener } = startInMemory({ requestTimeoutMs: 40 });
    const client = openInMemory(listener);
    client.write(requestHeaders(1, { path: "/fast/echo" }), data(1, Buffer.from("half"), 0));
    await client.until(() => isOver(client, 1));
    expect(client.stream(1).resetBy).toBe(Fault.CANCEL);
    client.write(call(3, "/fast/echo", "x"));
    await answersOf(client, 3);
  });

  test("a connection without a call for the idle time is told to go, and ended", async () => {
    const { listener } = startInMemory({ idleTimeoutMs: 40 });
    const client = openInMemory(listener);
    client.write(call(1, "/fast/echo", "x"));
    await client.until(() => client.closed);
    expect(client.goaway?.fault).toBe(Fault.NO_ERROR);
    expect(client.stream(1).ended).toBe(true);
  });

  test("a download by node:http2 that takes all of the window leaves some to what is answered here", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener, { grants: false, settings: [[Setting.INITIAL_WINDOW_SIZE, 1_000_000]] });
    client.write(nodeCall(1, "/node/size/800000"));
    await client.until(() => client.stream(1).body.length === 65_535);
    client.write(call(3, "/fast/size", "100"));
    for (let round = 0; round < 10 && !client.stream(3).ended; round += 1) {
      const before = client.stream(1).body.length + client.stream(3).body.length;
      client.grant(0, 1_000);
      await client.until(() => client.stream(1).body.length + client.stream(3).body.length >= before + 1_000);
    }
    expect(client.stream(3).ended).toBe(true);
    expect(client.faults).toEqual([]);
  });

  test("what waits behind data of node:http2's goes on when the client resets the stream of that data", async () => {
    const { listener, letterbox } = startInMemory();
    const client = openInMemory(listener, { grants: false, settings: [[Setting.INITIAL_WINDOW_SIZE, 1_000_000]] });
    client.write(call(1, "/fast/size", "60000"), nodeCall(3, "/node/size/200000"));
    await client.until(() => client.stream(1).body.length + client.stream(3).body.length === 65_535);
    client.write(nodeCall(5, "/node/held"));
    await untilTrue(() => letterbox.length === 1);
    letterbox[0]!.writeHead(204).end();
    await new Promise((resolve) => setTimeout(resolve, 20));
    client.write(reset(3));
    await client.until(() => client.stream(5).ended);
    expect(client.faults).toEqual([]);
  });

  const settled = (client: FrameClient) =>
    client.until(() => client.frames.some(({ type, flags }) => type === Type.PING && (flags & Flag.ACK) !== 0));

  test("fast and other streams count together, and those that a client opens before it knows the limit wait for room", async () => {
    const { listener, held, letterbox } = startInMemory({ maxConcurrentStreams: 2 });
    const client = openInMemory(listener);
    client.write(
      call(1, "/fast/held"),
      nodeCall(3, "/node/held"),
      call(5, "/fast/echo", "a"),
      nodeCall(7, "/node/echo"),
    );
    client.write(
      requestHeaders(9, { path: "/fast/echo" }),
      call(11, "/fast/none", "b"),
      frame(Type.PING, 0, 0, Buffer.alloc(8)),
    );
    await settled(client);
    expect([5, 7, 9, 11].filter((id) => isOver(client, id))).toEqual([]);
    await untilTrue(() => held.length === 1 && letterbox.length === 1);
    held[0]!.resolve({ message: Buffer.alloc(0) });
    client.write(data(9, inEnvelope("late")));
    letterbox[0]!.end();
    const bodies = await answersOf(client, 1, 3, 5, 7, 9, 11);
    expect(bodies.slice(2).map(String)).toEqual(
      [inEnvelope("a"), "other:", inEnvelope("late"), `other:${inEnvelope("b")}`].map(String),
    );
  });

  test("a cold burst of 600 calls is answered, each one, though the client has not read our settings", async () => {
    const { listener, node } = startInMemory();
    const client = openInMemory(listener);
    const ids = Array.from({ length: 600 }, (_, index) => 2 * index + 1);
    client.write(...ids.map((id) => call(id, id % 3 === 0 ? "/node/echo" : "/fast/soon", `call ${id}`)));
    const bodies = await answersOf(client, ...ids);
    for (const [index, body] of bodies.entries()) expect(String(body)).toContain(`call ${ids[index]}`);
    expect(node.calls).toBe(200);
  });

  test("a stream that waits may be reset, and what it held is no longer held", async () => {
    const { listener, held, counts } = startInMemory({ maxConcurrentStreams: 1 });
    const client = openInMemory(listener);
    client.write(call(1, "/fast/held"), call(3, "/fast/echo"), reset(3), call(5, "/fast/echo"));
    await untilTrue(() => held.length === 1);
    held[0]!.resolve({ message: Buffer.alloc(0) });
    await answersOf(client, 1, 5);
    expect(counts.echo).toBe(1);
  });

  test("streams that wait hold half a megabyte of frames together: one that sends more is refused, and the room of one that is over is free", async () => {
    const { listener, held } = startInMemory({ maxConcurrentStreams: 1 });
    const client = openInMemory(listener);
    const half = Array.from({ length: 20 }, () => data(3, Buffer.alloc(MAX_FRAME_BYTES), 0));
    client.write(call(1, "/fast/held"), requestHeaders(3, { path: "/fast/echo" }), ...half, reset(3));
    client.write(requestHeaders(5, { path: "/node/echo", type: "text/plain" }));
    for (let count = 0; count < 30; count += 1) client.write(data(5, Buffer.alloc(MAX_FRAME_BYTES), 0));
    client.write(requestHeaders(7, { path: "/node/echo", type: "text/plain" }));
    client.write(data(7, Buffer.alloc(MAX_FRAME_BYTES), 0), data(7, Buffer.alloc(MAX_FRAME_BYTES), 0));
    await client.until(() => isOver(client, 7));
    expect([field(client, 7, ":status"), isOver(client, 5), held.length]).toEqual(["429", false, 1]);
  });

  test("what a stream sent while it waited is credited once", async () => {
    const { listener, held } = startInMemory({ maxConcurrentStreams: 1 });
    const client = openInMemory(listener);
    const before = client.sendWindow;
    client.write(call(1, "/fast/held"), call(3, "/fast/echo", Buffer.alloc(15_000)));
    await untilTrue(() => held.length === 1);
    held[0]!.resolve({ message: Buffer.alloc(0) });
    await answersOf(client, 1, 3);
    for (let id = 5; id < 15; id += 2) client.write(call(id, "/fast/echo", Buffer.alloc(8_000)));
    await answersOf(client, 5, 7, 9, 11, 13);
    expect(client.sendWindow).toBeLessThanOrEqual(before);
    expect(client.sendWindow).toBeGreaterThan(before - PORTION_BYTES);
  });

  test.each([
    ["gRPC", "application/grpc", ["200", "8"]],
    ["gRPC-Web", "application/grpc-web+proto", ["200", "8"]],
    ["Connect", "application/proto", ["429", undefined]],
    ["any other", "text/plain", ["429", undefined]],
  ])("more than may wait are refused by a status, in %s: RESOURCE_EXHAUSTED", async (_what, type, expected) => {
    const { listener } = startInMemory({ maxConcurrentStreams: 1 });
    const client = openInMemory(listener);
    const ids = Array.from({ length: 1_002 }, (_, index) => 2 * index + 1);
    client.write(
      call(1, "/fast/held"),
      ...ids.slice(1).map((id) => requestHeaders(id, { path: "/fast/echo", type, end: true })),
    );
    await client.until(() => client.stream(2_003).ended);
    expect([field(client, 2_003, ":status"), field(client, 2_003, "grpc-status")]).toEqual(expected);
    expect(client.stream(2_001).ended).toBe(false);
    expect(client.faults).toEqual([]);
  });

  test("a client that knows the limit, and passes it, is refused by a status, and its stream reset (RFC 9113, 5.1.2)", async () => {
    const { listener } = startInMemory({ maxConcurrentStreams: 1 });
    const client = openInMemory(listener);
    client.write(call(1, "/fast/held"));
    // Acknowledged with the first bytes that came: before this ping.
    await client.until(() => client.frames.length > 0);
    client.write(frame(Type.PING, 0, 0, Buffer.alloc(8)));
    await settled(client);
    client.write(call(3, "/fast/echo"));
    await client.until(() => client.stream(3).ended);
    expect(field(client, 3, "grpc-status")).toBe("8");
    const resets = () => client.frames.filter(({ type, id }) => type === Type.RST_STREAM && id === 3);
    await client.until(() => resets().length > 0);
    expect(resets()[0]!.payload.readUInt32BE(0)).toBe(Fault.REFUSED_STREAM);
  });

  test("work that goes on past its deadline counts as a stream, and calls beyond wait until it is over", async () => {
    const { listener, held } = startInMemory({ maxConcurrentStreams: 2 });
    const client = openInMemory(listener);
    client.write(call(1, "/fast/held", "", ["grpc-timeout", "5m"]), call(3, "/fast/held", "", ["grpc-timeout", "5m"]));
    await answersOf(client, 1, 3);
    expect(field(client, 1, "grpc-status")).toBe("4");
    client.write(call(5, "/fast/echo", "x"), frame(Type.PING, 0, 0, Buffer.alloc(8)));
    await settled(client);
    expect(client.stream(5).ended).toBe(false);
    held[0]!.resolve({ message: Buffer.alloc(0) });
    await answersOf(client, 5);
    held[1]!.resolve({ message: Buffer.alloc(0) });
  });

  test("the session's own limits end the connection, and the client is told", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(requestHeaders(1, { path: "/node/echo", type: "text/plain" }));
    client.write(...Array.from({ length: 500 }, () => data(1, Buffer.alloc(0), 0)));
    await client.until(() => client.closed);
    expect(client.goaway?.fault).toBeGreaterThan(0);
  });

  test("too many refused streams end the connection", async () => {
    const { listener } = startInMemory({ maxConcurrentStreams: 1, maxSessionRejectedStreams: 10 });
    const client = openInMemory(listener);
    const ids = Array.from({ length: 1_020 }, (_, index) => 2 * index + 3);
    client.write(call(1, "/fast/held"), ...ids.map((id) => requestHeaders(id, { path: "/fast/echo" })));
    await client.until(() => client.closed);
    expect(client.goaway?.fault).toBe(Fault.ENHANCE_YOUR_CALM);
  });

  test("headers that are too large once read reset their stream, and leave the table as it should be", async () => {
    const { listener } = startInMemory({ maxHeaderBytes: 2_048 });
    const client = openInMemory(listener);
    const learn = Buffer.concat([
      Buffer.of(0x40, 1),
      Buffer.from("x"),
      Buffer.of(0x7f, 0xe9, 0x06),
      Buffer.alloc(1_000, "y"),
    ]);
    const bomb = Buffer.concat([learn, Buffer.alloc(1_000, 0x80 | 62)]);
    client.write(headersFrames(Flag.END_STREAM, 1, bomb), call(3, "/fast/echo", "x"));
    await answersOf(client, 3);
    expect(client.stream(1).resetBy).toBe(Fault.ENHANCE_YOUR_CALM);
  });

  test.each([
    ["of endless parts", 100, Buffer.alloc(0)],
    ["of parts without end in bytes", 10, Buffer.alloc(16_000, 0x80 | 2)],
  ])("a block of headers %s ends the connection", async (_what, count, part) => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(
      frame(Type.HEADERS, 0, 1, Buffer.alloc(0)),
      ...Array.from({ length: count }, () => frame(Type.CONTINUATION, 0, 1, part)),
    );
    await client.until(() => client.closed);
    expect(client.goaway?.fault).toBe(Fault.ENHANCE_YOUR_CALM);
  });

  test("settings that are changed again and again, without room for an answer, end the connection", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener, { settings: [[Setting.INITIAL_WINDOW_SIZE, 1_000_000]], grants: false });
    client.write(nodeCall(1, "/node/echo"), call(3, "/fast/size", "65000"));
    await answersOf(client, 1, 3);
    client.write(nodeCall(5, "/node/size/65000"));
    await client.until(() => client.stream(5).fields.length > 0);
    for (let round = 0; round < 50 && !client.closed; round++) {
      client.write(...Array.from({ length: 50 }, () => settingsFrame([])));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await client.until(() => client.closed);
    expect(client.goaway?.fault).toBe(Fault.ENHANCE_YOUR_CALM);
  });

  test.each<[string, Buffer, number]>([
    ["a frame that is too large", frame(Type.DATA, 0, 1, Buffer.alloc(16_385)), Fault.FRAME_SIZE_ERROR],
    ["data on no stream", data(0, Buffer.from("x")), Fault.PROTOCOL_ERROR],
    ["data on a stream that is not open yet", data(5, Buffer.from("x")), Fault.PROTOCOL_ERROR],
    ["a stream of a server's number", requestHeaders(2, { path: "/fast/echo" }), Fault.PROTOCOL_ERROR],
    ["a window that is opened by nothing", frame(Type.WINDOW_UPDATE, 0, 0, number32(0)), Fault.PROTOCOL_ERROR],
    [
      "a window that is opened too far",
      frame(Type.WINDOW_UPDATE, 0, 0, number32(2 ** 31 - 1)),
      Fault.FLOW_CONTROL_ERROR,
    ],
    [
      "more padding than there is",
      frame(Type.HEADERS, Flag.PADDED | Flag.END_HEADERS, 1, Buffer.of(9, 0)),
      Fault.PROTOCOL_ERROR,
    ],
    ["a part of headers without a beginning", frame(Type.CONTINUATION, 0, 1, Buffer.alloc(0)), Fault.PROTOCOL_ERROR],
    [
      "another frame between the parts of headers",
      Buffer.concat([frame(Type.HEADERS, 0, 1, Buffer.alloc(0)), frame(Type.PING, 0, 0, Buffer.alloc(8))]),
      Fault.PROTOCOL_ERROR,
    ],
    [
      "headers that refer to nothing",
      headersFrames(Flag.END_STREAM, 1, Buffer.of(0xff, 0x00)),
      Fault.COMPRESSION_ERROR,
    ],
    ["a promise", frame(Type.PUSH_PROMISE, 0, 1, Buffer.alloc(4)), Fault.PROTOCOL_ERROR],
    ["half a setting", frame(Type.SETTINGS, 0, 0, Buffer.alloc(5)), Fault.FRAME_SIZE_ERROR],
    ["a setting that can't be", settingsFrame([[Setting.MAX_FRAME_SIZE, 1]]), Fault.PROTOCOL_ERROR],
    ["a ping of another length", frame(Type.PING, 0, 0, Buffer.alloc(7)), Fault.FRAME_SIZE_ERROR],
    ["a reset of a stream that was never open", reset(7), Fault.PROTOCOL_ERROR],
  ])("%s ends the connection, and says why", async (_what, bytes, fault) => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    client.write(bytes);
    await client.until(() => client.closed);
    expect(client.goaway).toEqual({ lastId: expect.any(Number), fault });
  });

  test("bytes that are received and thrown away are given back to the connection", async () => {
    const { listener } = startInMemory();
    const client = openInMemory(listener);
    const piece = pattern(1_000);
    // To a stream that is over, and to one that is reset.
    client.write(call(1, "/fast/echo", "x"));
    await answersOf(client, 1);
    for (let round = 0; round < 200; round++) {
      await client.until(() => client.sendWindow >= 2_000);
      const id = 2 * round + 3;
      client.write(data(1, piece, 0), requestHeaders(id, { path: "/fast/echo" }), data(id, piece, 0), reset(id));
    }
    client.write(call(1_001, "/fast/echo", "y"));
    await answersOf(client, 1_001);
  });
});
