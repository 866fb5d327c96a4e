import { type EventEmitter, once } from "node:events";
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  constants,
  createServer as createHttp2Server,
} from "node:http2";
import { type AddressInfo, connect as connectTcp, createServer } from "node:net";
import { brotliCompressSync, gunzipSync, gzipSync } from "node:zlib";
import { create, fromBinary, fromJsonString, toBinary, toJsonString } from "@bufbuild/protobuf";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, jest, test } from "@jest/globals";
import { ErrorInfoSchema } from "#gen/google/rpc/error_details_pb";
import {
  Outcome,
  VerifyStreamRequestSchema,
  type VerifyStreamResponse,
  VerifyStreamResponseSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import {
  BidirectionalStream,
  type BidirectionalStreams,
  serveBidirectionalStreams,
} from "../../src/fastpath/bidirectional.ts";
import { BrokenStream, type FastStreamMethod } from "../../src/fastpath/fast-method.ts";
import { createHttp2Connections } from "../../src/fastpath/http2/connections.ts";
import { Flag, headersFrames, Setting } from "../../src/fastpath/http2/frames.ts";
import { encodeFields } from "../../src/fastpath/http2/hpack.ts";
import { defaultListenerLimits } from "../../src/fastpath/limits.ts";
import { listen } from "../../src/fastpath/listen.ts";
import { createFastMethods } from "../../src/fastpath/unary.ts";
import { PLAIN_REFUSALS } from "../../src/fastpath/wire-format.ts";
import { data, type FrameClient, inEnvelope, openFrameClient, requestHeaders } from "../support/frame-client.ts";
import { deferred } from "../support/records.ts";
import { SERVICE_TOKEN, sha256, startService, type TestService } from "../support/service.ts";

const PATH = "/test.Service/Echo";
const MAX_BYTES = 100;

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

function envelope(message: Uint8Array | string, flags = 0): Buffer {
  const content = Buffer.from(message);
  const head = Buffer.alloc(5);
  head[0] = flags;
  head.writeUInt32BE(content.length, 1);
  return Buffer.concat([head, content]);
}

function messagesIn(bytes: Buffer): { flags: number; message: Buffer }[] {
  const found = [];
  for (let at = 0; at < bytes.length; ) {
    const end = at + 5 + bytes.readUInt32BE(at + 1);
    found.push({ flags: bytes[at]!, message: bytes.subarray(at + 5, end) });
    at = end;
  }
  return found;
}

const textsIn = (bytes: Buffer) => messagesIn(bytes).map(({ message }) => message.toString());

function openSession(address: string): ClientHttp2Session {
  const session = connect(`http://${address}`);
  session.on("error", () => {});
  cleanUps.push(() => session.destroy());
  return session;
}

function openStream(
  session: ClientHttp2Session,
  path: string,
  headers: Record<string, string> = {},
  endStream = false,
) {
  return session.request(
    { ":method": "POST", ":path": path, "content-type": "application/grpc", te: "trailers", ...headers },
    { endStream },
  );
}

interface Ended {
  body: Buffer;
  status: number;
  message: string;
  /** Of google.rpc.ErrorInfo. */
  reason: string | undefined;
  /** The whole `google.rpc.Status`. */
  details: string;
  reset: number;
}

/** All that comes until the stream is closed by both sides. */
async function endOf(stream: ClientHttp2Stream): Promise<Ended> {
  const chunks: Buffer[] = [];
  let trailers: Record<string, unknown> = {};
  stream.on("error", () => {});
  stream.on("response", (headers) => {
    if (headers["grpc-status"] !== undefined) trailers = headers;
  });
  stream.on("trailers", (all) => {
    trailers = all;
  });
  stream.on("data", (chunk: Buffer) => chunks.push(chunk));
  await eventOf(stream, "close");
  const details = Buffer.from(String(trailers["grpc-status-details-bin"] ?? ""), "base64");
  return {
    ...{ body: Buffer.concat(chunks), status: Number(trailers["grpc-status"]), reset: stream.rstCode ?? 0 },
    ...{ message: decodeURIComponent(String(trailers["grpc-message"] ?? "")), reason: reasonIn(details) },
    details: details.toString("latin1"),
  };
}

/** The ErrorInfo that a google.rpc.Status carries as its first detail. */
function reasonIn(status: Buffer): string | undefined {
  const name = Buffer.from(ErrorInfoSchema.typeName);
  const at = status.indexOf(name);
  if (at < 0) return undefined;
  const start = at + name.length + 1;
  // A length below 16 KiB.
  const long = status[start]! >= 0x80;
  const length = (status[start]! & 0x7f) + (long ? status[start + 1]! * 128 : 0);
  const from = start + (long ? 2 : 1);
  return fromBinary(ErrorInfoSchema, status.subarray(from, from + length)).reason;
}

/** Unlike `once`, whatever error comes before. */
const eventOf = (emitter: EventEmitter, name: string) => new Promise((resolve) => emitter.once(name, resolve));

/** Returns when the server has received all that was sent on the session. */
const arrival = (session: ClientHttp2Session) =>
  new Promise<void>((resolve, reject) => {
    session.ping((error) => (error ? reject(error) : setImmediate(resolve)));
  });

async function bytesFrom(stream: ClientHttp2Stream, length: number): Promise<Buffer> {
  let bytes = Buffer.alloc(0);
  while (bytes.length < length) {
    const chunk = stream.read() as Buffer | null;
    if (chunk === null) await once(stream, "readable");
    else bytes = Buffer.concat([bytes, chunk]);
  }
  return bytes;
}

describe("the transport", () => {
  /** What a session was told, in order. */
  let told: string[];
  let batches: number[];
  let admit: () => Promise<void>;
  let answer: (messages: readonly string[]) => Uint8Array | Promise<Uint8Array>;
  const echo = (messages: readonly string[]) => Buffer.concat(messages.map((message) => envelope(message)));
  const method: FastStreamMethod<string> = {
    path: PATH,
    open: () => ({
      admit: () => admit(),
      read(message) {
        const text = message.toString();
        if (text === "bad") throw new BrokenStream("bad");
        return text;
      },
      answer(messages) {
        batches.push(messages.length);
        return answer(messages);
      },
      ended: () => told.push("ended"),
      left: (code) => told.push(`left ${code}`),
      failed: (error) => {
        told.push("failed");
        const known = error instanceof BrokenStream;
        return { code: known && error.fault === "too large" ? 8 : 3, message: (error as Error).message, details: [] };
      },
    }),
  };

  let bidi: BidirectionalStreams;
  let address: string;
  let served: BidirectionalStream[];
  let session: ClientHttp2Session;
  beforeEach(async () => {
    told = [];
    batches = [];
    admit = async () => {};
    answer = echo;
    bidi = serveBidirectionalStreams({ methods: [method], maxMessageBytes: MAX_BYTES, refusals: PLAIN_REFUSALS });
    served = [];
    const node = createHttp2Server().on("stream", (stream) => stream.respond({ ":status": 404 }, { endStream: true }));
    const connections = createHttp2Connections({
      ...defaultListenerLimits,
      methods: createFastMethods([], MAX_BYTES, PLAIN_REFUSALS.timedOut),
      refusals: PLAIN_REFUSALS,
      streams: {
        recognise(headers, peer) {
          const serve = bidi.recognise(headers, peer);
          if (serve === undefined) return undefined;
          return (stream) => {
            served.push(stream);
            serve(stream);
          };
        },
      },
      openNodeSession(connection) {
        node.emit("connection", connection);
      },
    });
    const server = createServer(connections.serve);
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    cleanUps.push(connections.stop, () => new Promise((resolve) => server.close(resolve)));
    address = `127.0.0.1:${(server.address() as AddressInfo).port}`;
    session = openSession(address);
    await once(session, "remoteSettings");
  });

  /** Nothing waits for anything, and a drain finds no stream to end. */
  function expectNothingLeft() {
    const abort = jest.spyOn(AbortController.prototype, "abort");
    try {
      bidi.drain();
      expect(abort).not.toHaveBeenCalled();
    } finally {
      abort.mockRestore();
    }
    for (const stream of served) {
      expect(["readable", "drain"].map((name) => stream.listenerCount(name))).toEqual([0, 0]);
    }
  }

  const untilGone = async () => {
    while (told.length === 0) {
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  };

  test("answers the same wherever a sequence of messages is cut in two", async () => {
    const texts = ["first", "", "x", "last"];
    const bytes = Buffer.concat(texts.map((text) => envelope(text)));
    for (let cut = 0; cut <= bytes.length; cut += 1) {
      const stream = openStream(session, PATH);
      const ended = endOf(stream);
      stream.write(bytes.subarray(0, cut));
      await arrival(session);
      stream.end(bytes.subarray(cut));
      const { body, status } = await ended;
      expect({ cut, status, texts: textsIn(body) }).toEqual({ cut, status: 0, texts });
    }
  });

  test("answers the same when each byte comes by itself", async () => {
    const texts = ["first", "", "last"];
    const stream = openStream(session, PATH);
    const ended = endOf(stream);
    for (const byte of Buffer.concat(texts.map((text) => envelope(text)))) {
      stream.write(Buffer.of(byte));
      await arrival(session);
    }
    stream.end();
    expect(textsIn((await ended).body)).toEqual(texts);
  });

  test("messages that come in one frame are answered together, and in order", async () => {
    const texts = Array.from({ length: 200 }, (_, index) => String(index));
    const stream = openStream(session, PATH);
    const ended = endOf(stream);
    stream.end(Buffer.concat(texts.map((text) => envelope(text))));
    expect(textsIn((await ended).body)).toEqual(texts);
    expect(Math.max(...batches)).toBeGreaterThan(1);
  });

  test.each([false, true])("a stream without a message ends well (its headers end it: %s)", async (endStream) => {
    const stream = openStream(session, PATH, {}, endStream);
    const ended = endOf(stream);
    if (!endStream) stream.end();
    expect(await ended).toMatchObject({ status: 0, body: Buffer.alloc(0), reset: 0 });
    await untilGone();
    expect(told).toEqual(["ended"]);
    expectNothingLeft();
  });

  test("a message of the greatest size is answered, and a larger one refused before it has come", async () => {
    const largest = "x".repeat(MAX_BYTES);
    const stream = openStream(session, PATH);
    const ended = endOf(stream);
    stream.write(Buffer.concat([envelope(largest), envelope(`${largest}x`).subarray(0, 5)]));
    const { body, status, message } = await ended;
    expect({ texts: textsIn(body), status, message }).toEqual({
      ...{ texts: [largest], status: 8, message: `A message has more than ${MAX_BYTES} bytes.` },
    });
  });

  test.each([
    ["a compressed message", envelope("x", 1), "A message is compressed, or is none."],
    ["a message that can't be read", envelope("bad"), "bad"],
    ["an end within an envelope", Buffer.of(0, 0, 0), "The stream ended within a message."],
    ["an end within a message", envelope("cut off").subarray(0, -1), "The stream ended within a message."],
  ])("%s fails the stream, after what came before it in the same frame is answered", async (_, broken, why) => {
    const stream = openStream(session, PATH);
    const ended = endOf(stream);
    stream.end(Buffer.concat([envelope("good"), envelope("too"), broken]));
    const { body, status, message } = await ended;
    expect({ texts: textsIn(body), status, message }).toEqual({ texts: ["good", "too"], status: 3, message: why });
    await untilGone();
    expect(told).toEqual(["failed"]);
    expectNothingLeft();
  });

  test("a client that goes on sending after the status is told that nobody listens", async () => {
    const stream = openStream(session, PATH);
    const ended = endOf(stream);
    stream.write(envelope("bad"));
    expect(await ended).toMatchObject({ status: 3, reset: constants.NGHTTP2_NO_ERROR });
    await untilGone();
    expectNothingLeft();
  });

  const { NGHTTP2_CANCEL, NGHTTP2_NO_ERROR } = constants;
  describe.each([NGHTTP2_CANCEL, NGHTTP2_NO_ERROR])(
    "a client that resets the stream with code %i leaves nothing behind",
    (code) => {
      const resetFrame = frame(3, 0, 1, Buffer.of(0, 0, 0, code));

      /** A client of frames, since node:http2's ends what it sends before it resets. */
      function open(also: Buffer = Buffer.alloc(0)) {
        const [host, port] = address.split(":") as [string, string];
        const socket = connectTcp(Number(port), host);
        socket.resume();
        cleanUps.push(() => socket.destroy());
        const literal = (text: string) => Buffer.concat([Buffer.of(text.length), Buffer.from(text)]);
        const headers = Object.entries({
          ...{ ":method": "POST", ":scheme": "http", ":path": PATH, ":authority": "x" },
          "content-type": "application/grpc",
        }).map(([name, value]) => Buffer.concat([Buffer.of(0), literal(name), literal(value)]));
        socket.write(
          Buffer.concat([
            Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1"),
            ...[frame(4, 0, 0), frame(1, 0x4, 1, Buffer.concat(headers)), also],
          ]),
        );
        return {
          send: (data: Buffer) => socket.write(frame(0, 0, 1, data)),
          reset: () => socket.write(resetFrame),
        };
      }

      const until = async (holds: () => boolean) => {
        while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
      };

      async function expectGone() {
        await untilGone();
        expect(told).toEqual(["left 1"]);
        expectNothingLeft();
      }

      test("before its first message", async () => {
        const { reset } = open();
        await until(() => served.length === 1);
        reset();
        await expectGone();
      });

      test("within a message", async () => {
        const { send, reset } = open();
        send(Buffer.concat([envelope("x"), Buffer.of(0, 0)]));
        await until(() => batches.length === 1);
        reset();
        await expectGone();
      });

      test("while its messages are answered", async () => {
        answer = () => new Promise(() => {});
        const { send, reset } = open();
        send(envelope("x"));
        await until(() => batches.length === 1);
        send(envelope("y"));
        reset();
        await expectGone();
      });

      test("while it does not take its answers", async () => {
        answer = () => Buffer.alloc(1_000_000);
        const { send, reset } = open();
        send(envelope("x"));
        await until(() => batches.length === 1);
        send(envelope("y"));
        reset();
        await expectGone();
      });

      test("in the same packet that opens it", async () => {
        open(resetFrame);
        await until(() => served.length === 1);
        await arrival(session);
        expectNothingLeft();
      });
    },
  );

  describe("grpc-timeout ends the stream with DEADLINE_EXCEEDED", () => {
    test("between messages", async () => {
      const stream = openStream(session, PATH, { "grpc-timeout": "20m" });
      expect(await endOf(stream)).toMatchObject({ status: 4, reset: constants.NGHTTP2_NO_ERROR });
      await untilGone();
      expect(told).toEqual(["left 4"]);
      expectNothingLeft();
    });

    test("while messages are answered", async () => {
      answer = () => new Promise(() => {});
      const stream = openStream(session, PATH, { "grpc-timeout": "20m" });
      const ended = endOf(stream);
      stream.write(envelope("x"));
      expect(await ended).toMatchObject({ status: 4 });
    });

    test("while the caller is admitted", async () => {
      admit = () => new Promise(() => {});
      expect(await endOf(openStream(session, PATH, { "grpc-timeout": "20m" }))).toMatchObject({ status: 4 });
    });
  });

  test.each(["1", "S", "S1", "-1S", "1s", "0S"])("a grpc-timeout of %j is the next one's to judge", async (text) => {
    const stream = openStream(session, PATH, { "grpc-timeout": text });
    const [headers] = await once(stream, "response");
    expect(headers[":status"]).toBe(404);
  });

  test("a client that never reads is not read from, others go on, and it gets all its answers when it does", async () => {
    const message = envelope("x".repeat(MAX_BYTES));
    const chunk = Buffer.concat(Array.from({ length: 100 }, () => message));
    const total = 1_000;
    const stream = openStream(session, PATH);
    let sent = 0;
    let taken = 0;
    const send = () => {
      if (sent === total) return void stream.end();
      sent += 1;
      stream.write(chunk, () => {
        taken += 1;
        send();
      });
    };
    send();
    // The server's reading has stopped when another stream was answered many times and nothing more was taken.
    const other = openStream(session, PATH);
    for (let since = 0, before = -1; since < 30 && taken < total; since += 1) {
      if (taken !== before) since = 0;
      before = taken;
      other.write(envelope("other"));
      await bytesFrom(other, 10);
      await arrival(session);
    }
    expect(taken).toBeLessThan(total / 4);
    other.end();
    expect(messagesIn((await endOf(stream)).body).length).toBe(total * 100);
  });

  test("a drain ends each stream with UNAVAILABLE once what was read is answered, and new ones are the next one's", async () => {
    const late = deferred<Uint8Array>();
    const asked = deferred<void>();
    const idle = openStream(session, PATH);
    await once(idle, "response");
    answer = () => {
      asked.resolve();
      return late.promise;
    };
    const busy = openStream(session, PATH);
    busy.write(envelope("x"));
    await asked.promise;
    bidi.drain();
    expect(await endOf(idle)).toMatchObject({ status: 14, reset: constants.NGHTTP2_NO_ERROR });
    late.resolve(envelope("answered"));
    const { body, status } = await endOf(busy);
    expect({ texts: textsIn(body), status }).toEqual({ texts: ["answered"], status: 14 });
    const [headers] = await once(openStream(session, PATH), "response");
    expect(headers[":status"]).toBe(404);
  });

  describe("in the listener", () => {
    const start = async (limits = {}) => {
      const listener = await listen({
        ...{ host: "127.0.0.1", port: 0, handler: (_, response) => void response.end(), fastStreams: [method], limits },
      });
      cleanUps.push(() => listener.close(0));
      return listener;
    };

    test("closing ends open streams, and does not wait for its grace or for clients that end nothing", async () => {
      const listener = await start();
      const stream = openStream(openSession(listener.address), PATH);
      await once(stream, "response");
      const closed = listener.close(2 ** 31 - 1);
      expect(await endOf(stream)).toMatchObject({ status: 14 });
      await closed;
    });

    test("what waits to be read keeps nothing alive of what it came with", () => {
      const stream = new BidirectionalStream({ send: () => true, credit: () => {}, finish: () => {} });
      const chunk = Buffer.alloc(64_000, "x");
      for (let at = 0; at < 3; at += 1) stream.received(chunk.subarray(at, at + 1));
      const unread = stream.read()!;
      expect([unread.toString(), unread.buffer.byteLength < 100, stream.read()]).toEqual(["xxx", true, undefined]);
    });

    const opened = async (address: string) => {
      const client = await openFrameClient(
        { address },
        { grants: false, settings: [[Setting.INITIAL_WINDOW_SIZE, 3]] },
      );
      cleanUps.push(() => client.socket.destroy());
      client.write(requestHeaders(1, { path: PATH }), data(1, inEnvelope("hello"), 0));
      return client;
    };
    const statusOf = (client: FrameClient) => client.stream(1).fields.find(([name]) => name === "grpc-status")?.[1];

    test.each(["data", "its end", "trailers"])(
      "answers that wait for the client's window outlast %s of a client that has not heard of the end yet",
      async (what) => {
        const listener = await start();
        const client = await opened(listener.address);
        await client.until(() => client.stream(1).body.length === 3);
        const closed = listener.close(60_000);
        await client.until(() => client.goaway !== undefined);
        if (what === "data") client.write(data(1, inEnvelope("more"), 0));
        else if (what === "its end") client.write(data(1, Buffer.alloc(0), 1));
        else client.write(headersFrames(Flag.END_STREAM, 1, encodeFields(["x", "y"])));
        client.write(frame(6, 0, 0, Buffer.alloc(8)));
        await client.until(() => client.frames.some(({ type, flags }) => type === 6 && (flags & 1) === 1));
        client.grant(1, 1_000);
        await client.until(() => client.stream(1).ended || client.stream(1).resetBy !== undefined);
        expect([textsIn(client.stream(1).body), statusOf(client)]).toEqual([["hello"], "14"]);
        await closed;
      },
    );

    test("a drain ends a stream whose answer comes only then, though its client takes nothing", async () => {
      const late = deferred<Uint8Array>();
      const asked = deferred<void>();
      answer = () => {
        asked.resolve();
        return late.promise;
      };
      const listener = await start({ requestTimeoutMs: 50 });
      const client = await opened(listener.address);
      await asked.promise;
      const closed = listener.close(60_000);
      late.resolve(envelope("hello"));
      await closed;
      expect(client.stream(1).body.length).toBe(3);
    });

    test("a stream that is idle for longer than requests may take goes on", async () => {
      const listener = await start({ requestTimeoutMs: 20, idleTimeoutMs: 20 });
      const stream = openStream(openSession(listener.address), PATH);
      await once(stream, "response");
      // Another session that is opened now and closed for idleness shows that the limits have passed.
      for (let round = 0; round < 3; round += 1) await once(openSession(listener.address), "close");
      const ended = endOf(stream);
      stream.end(envelope("still here"));
      const { body, status } = await ended;
      expect({ texts: textsIn(body), status }).toEqual({ texts: ["still here"], status: 0 });
    });
  });
});

function frame(type: number, flags: number, streamId: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(streamId, 5);
  return Buffer.concat([head, payload]);
}

describe("VerifyStream", () => {
  const VERIFY_STREAM = "/latchkey.v1.ApiKeyService/VerifyStream";
  let service: TestService;
  let session: ClientHttp2Session;
  let key: string;
  beforeAll(async () => {
    service = await startService({
      env: { LATCHKEY_VERIFY_AUTH: "token", LATCHKEY_SERVICE_TOKENS: `gateway:sha256:${sha256(SERVICE_TOKEN)}` },
    });
    ({ key } = await service.client().create({ scopes: ["read"] }));
  });
  beforeEach(() => {
    session = openSession(service.server.address);
  });
  afterAll(() => service.stop());

  const authorization = `Bearer ${SERVICE_TOKEN}`;
  const requests = () =>
    [{ key }, { key: "nonsense" }, { key, requiredScopes: ["write"] }, {}].map((request) =>
      create(VerifyStreamRequestSchema, { request }),
    );
  const binary = () => requests().map((request) => toBinary(VerifyStreamRequestSchema, request));
  const fromBytes = (bytes: Uint8Array) => fromBinary(VerifyStreamResponseSchema, bytes);

  async function call(messages: Uint8Array[], headers: Record<string, string> = {}) {
    const stream = openStream(session, VERIFY_STREAM, { authorization, ...headers });
    const ended = endOf(stream);
    // Node's own server leaves what it did not read to the client.
    stream.once("end", () => stream.close(constants.NGHTTP2_CANCEL));
    stream.end(Buffer.concat(messages));
    return ended;
  }

  function withoutTime(response: VerifyStreamResponse): string {
    const verdict = response.result?.result;
    if (verdict?.case === "response") delete verdict.value.asOf;
    return toJsonString(VerifyStreamResponseSchema, response);
  }

  const outcomesOf = (responses: VerifyStreamResponse[]) =>
    responses.map(({ result }) =>
      result?.result.case === "response" ? Outcome[result.result.value.outcome] : "error",
    );
  const OUTCOMES = ["VALID", "MALFORMED", "INSUFFICIENT_SCOPE", "MALFORMED"];

  const plain = (bytes: Uint8Array) => envelope(bytes);
  const inJson = () => requests().map((request) => Buffer.from(toJsonString(VerifyStreamRequestSchema, request)));
  const fromJson = (bytes: Uint8Array) => fromJsonString(VerifyStreamResponseSchema, Buffer.from(bytes).toString());
  test.each<[string, Record<string, string>, () => Uint8Array[], (bytes: Buffer) => VerifyStreamResponse]>([
    ["gRPC, spelled as nobody does", { "content-type": "application/gRPC" }, () => binary().map(plain), fromBytes],
    ["gRPC in JSON", { "content-type": "application/grpc+json" }, () => inJson().map(plain), fromJson],
    [
      "gRPC in gzip",
      { "grpc-encoding": "gzip", "grpc-accept-encoding": "gzip" },
      () => binary().map((bytes) => envelope(gzipSync(bytes), 1)),
      fromBytes,
    ],
    [
      "gRPC in gzip of several members, and some messages in none",
      { "grpc-encoding": "gzip" },
      () =>
        binary().map((bytes, index) =>
          index === 1 ? envelope(bytes) : envelope(Buffer.concat([gzipSync(""), gzipSync(bytes)]), 1),
        ),
      fromBytes,
    ],
    [
      "gRPC in brotli",
      { "grpc-encoding": "br", "grpc-accept-encoding": "identity" },
      () => binary().map((bytes) => envelope(brotliCompressSync(bytes), 1)),
      fromBytes,
    ],
    ["gRPC-Web", { "content-type": "application/grpc-web+proto" }, () => binary().map(plain), fromBytes],
    ["Connect", { "content-type": "application/connect+proto" }, () => binary().map(plain), fromBytes],
  ])("%s is answered as the fast path answers", async (_, headers, messages, decode) => {
    const fast = await call(binary().map(plain));
    expect(fast.status).toBe(0);
    const expected = messagesIn(fast.body).map(({ message }) => fromBytes(message));
    expect(outcomesOf(expected)).toEqual(OUTCOMES);
    const { body } = await call(messages(), headers);
    const answers = messagesIn(body).filter(({ flags }) => (flags & 0x82) === 0);
    const decoded = answers.map(({ flags, message }) => decode(flags === 1 ? gunzipSync(message) : message));
    expect(decoded.map(withoutTime)).toEqual(expected.map(withoutTime));
  });

  /** The first takes the fast path, the others Node's own server. */
  const FORMATS: [string, Buffer][] = [
    ["application/grpc", Buffer.of(0xff, 0xff)],
    ["application/gRPC", Buffer.of(0xff, 0xff)],
    ["application/grpc+json", Buffer.from('{"key":"its-secret"}')],
  ];

  test.each(FORMATS)(
    "an undecodable message over %s is INVALID_ARGUMENT with a reason, after the answers before it",
    async (type, broken) => {
      const good = type.endsWith("json") ? inJson() : binary();
      const ended = await call([...good.map(plain), envelope(broken)], { "content-type": type });
      expect(ended).toMatchObject({ status: 3, reason: "INVALID_ARGUMENT" });
      expect(ended.message).not.toContain("secret");
      expect(messagesIn(ended.body)).toHaveLength(good.length);
    },
  );

  test.each(FORMATS)("a message over the limit over %s is RESOURCE_EXHAUSTED, and not to be repeated", async (type) => {
    const ended = await call([envelope(Buffer.alloc(64 * 1024 + 1))], { "content-type": type });
    expect(ended).toMatchObject({ status: 8, reason: "MESSAGE_TOO_LARGE" });
  });

  test("over application/grpc a message that is inflated over the limit is RESOURCE_EXHAUSTED", async () => {
    const bomb = envelope(gzipSync(Buffer.alloc(10_000_000)), 1);
    const ended = await call([bomb], { "grpc-encoding": "gzip" });
    expect(ended).toMatchObject({ status: 8 });
  });

  test("over application/grpc what is not compressed as its stream says is refused with a reason", async () => {
    const ended = await call([plain(binary()[0]!), envelope("no gzip", 1)], { "grpc-encoding": "gzip" });
    expect(ended).toMatchObject({ status: 3, reason: "INVALID_ARGUMENT" });
    expect(messagesIn(ended.body)).toHaveLength(1);
  });

  test.each(FORMATS)("over %s a compressed message of no known compression is refused with a reason", async (type) => {
    const ended = await call([envelope("x", 1)], { "content-type": type });
    expect(ended).toMatchObject({ status: 3, reason: "INVALID_ARGUMENT" });
  });

  test.each(FORMATS)("over %s a stream that ends within a message is refused with a reason", async (type) => {
    const ended = await call([envelope("xyz").subarray(0, -1)], { "content-type": type });
    expect(ended).toMatchObject({ status: 3, reason: "INVALID_ARGUMENT" });
  });

  test.each(FORMATS)("over %s nobody without a service token is answered", async (type) => {
    for (const token of ["", "Bearer wrong"]) {
      const ended = await call(binary().map(plain), { "content-type": type, authorization: token });
      expect(ended).toMatchObject({ status: 16, reason: "UNAUTHENTICATED", body: Buffer.alloc(0) });
    }
  });

  test.each(["application/grpc", "application/grpc+json"])(
    "stopping the service ends an open stream of %s with UNAVAILABLE",
    async (type) => {
      const stopped = await startService();
      const stream = openStream(openSession(stopped.server.address), VERIFY_STREAM, { "content-type": type });
      const ended = endOf(stream);
      stream.write(envelope(type === "application/grpc" ? binary()[0]! : "{}"));
      await once(stream, "data");
      const stopping = stopped.stop();
      expect(await ended).toMatchObject({ status: 14, reason: "STOPPING" });
      expect((await ended).details.includes("google.rpc.RetryInfo")).toBe(true);
      await stopping;
    },
  );

  test.each(["application/grpc", "application/grpc+json"])(
    "a stream of %s that outlasts its deadline ends with DEADLINE_EXCEEDED and its reason",
    async (type) => {
      const stream = openStream(session, VERIFY_STREAM, { authorization, "content-type": type, "grpc-timeout": "50m" });
      stream.once("end", () => stream.close(constants.NGHTTP2_CANCEL));
      expect(await endOf(stream)).toMatchObject({ status: 4, reason: "DEADLINE_EXCEEDED" });
    },
  );
});
