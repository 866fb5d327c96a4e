import { type EventEmitter, once } from "node:events";
import { type IncomingMessage, request as requestHttp1 } from "node:http";
import { type ClientHttp2Session, connect, constants } from "node:http2";
import { setTimeout as wait } from "node:timers/promises";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { create, fromBinary, fromJsonString, toBinary, toJsonString } from "@bufbuild/protobuf";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { afterEach, beforeAll, beforeEach, describe, expect, test } from "@jest/globals";
import { ErrorInfoSchema } from "#gen/google/rpc/error_details_pb";
import {
  Health,
  HealthCheckRequestSchema,
  HealthCheckResponse_ServingStatus,
  HealthCheckResponseSchema,
} from "#gen/health/v1/health_pb";
import { createRequestHandler } from "../../src/edge/connect/adapter.ts";
import type { FastAnswer, FastCall } from "../../src/fastpath/fast-method.ts";
import type { ListenerLimits } from "../../src/fastpath/limits.ts";
import { type Listener, listen } from "../../src/fastpath/listen.ts";

const PATH = "/grpc.health.v1.Health/Check";
const INFO = { reason: "TESTED", domain: "latchkey.v1", metadata: { a: "b" } };
const REFUSED = "no: 100 % ünfit";
const SERVING = HealthCheckResponse_ServingStatus.SERVING;

const noStore: Interceptor = (next) => async (request) => {
  try {
    const response = await next(request);
    response.header.set("cache-control", "no-store");
    return response;
  } catch (error) {
    const refusal = ConnectError.from(error);
    refusal.metadata.set("cache-control", "no-store");
    throw refusal;
  }
};
const nodeHandler = createRequestHandler({
  interceptors: [noStore],
  maxMessageBytes: 65_536,
  routes: (router) =>
    router.service(Health, {
      check({ service }, context) {
        if (service === "headers") context.responseTrailer.set("x-trailer", "t");
        if (service === "refused")
          throw new ConnectError(REFUSED, Code.FailedPrecondition, { "x-why": "because" }, [
            { desc: ErrorInfoSchema, value: INFO },
          ]);
        return { status: SERVING };
      },
    }),
});

/** The same method as a fast one. */
function answerFast({ message, json }: FastCall): FastAnswer {
  const { service } = json
    ? fromJsonString(HealthCheckRequestSchema, message.toString())
    : fromBinary(HealthCheckRequestSchema, message);
  if (service === "refused") {
    const value = toBinary(ErrorInfoSchema, create(ErrorInfoSchema, INFO));
    return {
      error: {
        ...{ code: Code.FailedPrecondition, message: REFUSED },
        details: [{ type: ErrorInfoSchema.typeName, value, debug: INFO }],
      },
      trailers: { "x-why": "because" },
    };
  }
  const response = create(HealthCheckResponseSchema, { status: SERVING });
  const encoded = json
    ? Buffer.from(toJsonString(HealthCheckResponseSchema, response))
    : toBinary(HealthCheckResponseSchema, response);
  return { message: encoded, ...(service === "headers" && { trailers: { "x-trailer": "t" } }) };
}

let answer: (call: FastCall) => FastAnswer | Promise<FastAnswer> | undefined;
let fastCalls = 0;
let fast: Listener;
let node: Listener;
const cleanUps: (() => unknown)[] = [];

async function start(fastToo: boolean, limits: Partial<ListenerLimits> = {}): Promise<Listener> {
  const method = {
    path: PATH,
    answer: (call: FastCall) => {
      fastCalls++;
      return answer(call);
    },
  };
  const listener = await listen({
    ...{ host: "127.0.0.1", port: 0, handler: nodeHandler, limits, fast: fastToo ? [method] : [] },
  });
  cleanUps.push(() => listener.close(0));
  return listener;
}

beforeAll(() => {
  answer = answerFast;
});
beforeEach(async () => {
  answer = answerFast;
  fastCalls = 0;
  [fast, node] = await Promise.all([start(true), start(false)]);
});
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

function messageOf(service: string, contentType: string): Buffer {
  const request = create(HealthCheckRequestSchema, { service });
  const message = contentType.endsWith("json")
    ? Buffer.from(toJsonString(HealthCheckRequestSchema, request))
    : Buffer.from(toBinary(HealthCheckRequestSchema, request));
  return contentType.includes("grpc") ? envelope(message) : message;
}

function envelope(message: Uint8Array, flags = 0): Buffer {
  const head = Buffer.alloc(5);
  head[0] = flags;
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

interface Request {
  path?: string;
  headers?: Record<string, string>;
  /** Each is written by itself, after the one before has gone. */
  parts: Buffer[];
  method?: string;
}

interface Answer {
  headers: Record<string, unknown>;
  body: string;
  trailers: Record<string, unknown>;
  reset: number;
}

/** Unlike `once`, whatever error comes before. */
const eventOf = (emitter: EventEmitter, name: string) => new Promise((resolve) => emitter.once(name, resolve));

const plain = (headers: object) => {
  const {
    date: _date,
    "keep-alive": _keepAlive,
    connection: _connection,
    ...rest
  } = headers as Record<string, unknown>;
  return rest;
};

function openSession({ address }: Listener, options = {}): ClientHttp2Session {
  const session = connect(`http://${address}`, options);
  session.on("error", () => {});
  cleanUps.push(() => session.destroy());
  return session;
}

async function over2(
  listener: Listener,
  { path = PATH, headers = {}, parts, method = "POST" }: Request,
): Promise<Answer> {
  const session = openSession(listener);
  const stream = session.request({ ":path": path, ":method": method, ...headers }, { endStream: method === "GET" });
  const answered: Answer = { headers: {}, body: "", trailers: {}, reset: 0 };
  stream.on("response", (received) => {
    answered.headers = plain(received);
  });
  stream.on("trailers", (received) => {
    answered.trailers = plain(received);
  });
  stream.on("error", () => {});
  stream.on("data", (chunk: Buffer) => {
    answered.body += chunk.toString("latin1");
  });
  // A refusal may come before all is sent, and then nobody takes the rest.
  const done = Promise.race([eventOf(stream, "end"), eventOf(stream, "close")]);
  if (method !== "GET") {
    for (const part of parts) await Promise.race([done, new Promise((resolve) => stream.write(part, resolve))]);
    stream.end();
  }
  await done;
  session.close();
  return { ...answered, reset: stream.rstCode };
}

async function over1({ address }: Listener, { path = PATH, headers = {}, parts, method = "POST" }: Request) {
  const [host, port] = address.split(":");
  const length = parts.reduce((sum, { length }) => sum + length, 0);
  const request = requestHttp1({ host, port, path, method, headers: { ...headers, "content-length": length } });
  for (const part of parts) await new Promise((resolve) => request.write(part, resolve));
  request.end();
  const [response] = (await once(request, "response")) as [IncomingMessage];
  let body = "";
  for await (const chunk of response.setEncoding("latin1")) body += chunk;
  const { "transfer-encoding": _chunked, ...received } = plain(response.headers);
  return { status: response.statusCode, headers: received, body, trailers: response.trailers };
}

const GRPC = ["application/grpc", "application/grpc+proto", "application/grpc+json"];
const OTHERS = [
  ...["application/grpc-web", "application/grpc-web+proto", "application/grpc-web+json"],
  ...["application/proto", "application/json"],
];

/** Gzip as hardly anybody sends it, and what is none. */
function oddlyZipped(message: Buffer): [string, Buffer][] {
  const zipped = gzipSync(message);
  const wrongSum = Buffer.from(zipped);
  wrongSum[zipped.length - 8]! ^= 1;
  const named = Buffer.concat([
    zipped.subarray(0, 3),
    Buffer.of(8),
    zipped.subarray(4, 10),
    Buffer.from("a\0"),
    zipped.subarray(10),
  ]);
  const lying = gzipSync(Buffer.alloc(1_000_000));
  lying.writeUInt32LE(100, lying.length - 4);
  return [
    ["gzip with a file's name", named],
    ["two gzip members", Buffer.concat([gzipSync(message.subarray(0, 3)), gzipSync(message.subarray(3))])],
    ["two gzip members, the first empty", Buffer.concat([gzipSync(""), zipped])],
    ["gzip with a wrong checksum", wrongSum],
    ["gzip that is cut short", zipped.subarray(0, -1)],
    ["gzip and something after it", Buffer.concat([zipped, Buffer.from("more")])],
    ["gzip of a megabyte", gzipSync(Buffer.alloc(1_000_000))],
    ["gzip of a megabyte that says it is small", lying],
    ["gzip that is none", Buffer.from("no gzip at all, by no means")],
  ];
}

describe("a client can't tell which path answered", () => {
  test.each([...GRPC, ...OTHERS])("over HTTP/2 in %s", async (contentType) => {
    for (const service of ["", "headers", "refused"]) {
      const request = { headers: { "content-type": contentType }, parts: [messageOf(service, contentType)] };
      const [ours, theirs] = await Promise.all([over2(fast, request), over2(node, request)]);
      expect(ours).toEqual(theirs);
      expect(Object.keys(ours.headers).length).toBeGreaterThan(0);
    }
    expect(fastCalls).toBe(3);
  });

  test.each(OTHERS)("over HTTP/1.1 in %s", async (contentType) => {
    for (const service of ["", "headers", "refused"]) {
      const request = { headers: { "content-type": contentType }, parts: [messageOf(service, contentType)] };
      const [ours, theirs] = await Promise.all([over1(fast, request), over1(node, request)]);
      // Node's own server sends gRPC-Web in chunks, of unknown length.
      if (theirs.headers["content-length"] === undefined) delete ours.headers["content-length"];
      expect(ours).toEqual(theirs);
    }
    expect(fastCalls).toBe(3);
  });

  const large = Buffer.alloc(65_537, "x");
  const proto = { "content-type": "application/proto" };
  const grpc = { "content-type": "application/grpc" };
  const message = messageOf("headers", "application/grpc");
  const odd: [string, Request][] = [
    ["two messages", { headers: grpc, parts: [message, message] }],
    ["no message", { headers: grpc, parts: [] }],
    ["half a message", { headers: grpc, parts: [message.subarray(0, 7)] }],
    ["half an envelope", { headers: grpc, parts: [message.subarray(0, 3)] }],
    ["a message and more", { headers: grpc, parts: [Buffer.concat([message, Buffer.of(1, 2, 3)])] }],
    ["a message over the limit", { headers: grpc, parts: [envelope(large)] }],
    ["one over the limit, in pieces", { headers: grpc, parts: [envelope(large).subarray(0, 9), large, large] }],
    ["a Connect message over the limit", { headers: proto, parts: [large] }],
    ...oddlyZipped(message.subarray(5)).flatMap(([what, zipped]): [string, Request][] => [
      [`a gRPC message in ${what}`, { headers: { ...grpc, "grpc-encoding": "gzip" }, parts: [envelope(zipped, 1)] }],
      [`a Connect message in ${what}`, { headers: { ...proto, "content-encoding": "gzip" }, parts: [zipped] }],
    ]),
    [
      "a message in brotli",
      { headers: { ...grpc, "grpc-encoding": "br" }, parts: [envelope(brotliCompressSync(message.subarray(5)), 1)] },
    ],
    ["a message said to be compressed, with nothing said of how", { headers: grpc, parts: [envelope(message, 1)] }],
    ["an unknown compression", { headers: { ...grpc, "grpc-encoding": "zap" }, parts: [message] }],
    ["a timeout that is none", { headers: { ...grpc, "grpc-timeout": "soon" }, parts: [message] }],
    ["a Connect timeout that is none", { headers: { ...proto, "connect-timeout-ms": "1s" }, parts: [message] }],
    ["another method", { path: "/grpc.health.v1.Health/Chock", headers: grpc, parts: [message] }],
    ["a path with a query", { path: `${PATH}?a=b`, headers: grpc, parts: [message] }],
    ["GET", { method: "GET", headers: {}, parts: [] }],
    ["an unknown content type", { headers: { "content-type": "text/plain" }, parts: [message] }],
    ["a streaming content type", { headers: { "content-type": "application/connect+proto" }, parts: [message] }],
    ["no content type", { headers: {}, parts: [message] }],
  ];
  test.each(odd)("by %s: it is Node's own server's", async (_what, request) => {
    const [ours, theirs] = await Promise.all([over2(fast, request), over2(node, request)]);
    expect(ours).toEqual(theirs);
    expect(fastCalls).toBe(0);
    if (request.headers?.["content-type"] !== "application/proto") return;
    const [first, second] = await Promise.all([over1(fast, request), over1(node, request)]);
    expect(first).toEqual(second);
    expect(fastCalls).toBe(0);
  });

  test.each([...GRPC, ...OTHERS])(
    "whether a message in gzip came, in %s: it is answered on the fast path",
    async (contentType) => {
      const isConnect = !contentType.includes("grpc");
      const plainly = messageOf("headers", contentType);
      const zipped = isConnect ? gzipSync(plainly) : envelope(gzipSync(plainly.subarray(5)), 1);
      const headers = { "content-type": contentType };
      const encoded = { ...headers, [isConnect ? "content-encoding" : "grpc-encoding"]: "gzip" };
      for (const over of GRPC.includes(contentType) ? [over2] : [over2, over1]) {
        fastCalls = 0;
        const expected = await over(fast, { headers, parts: [plainly] });
        expect(await over(fast, { headers: encoded, parts: [zipped] })).toEqual(expected);
        // gRPC says of each message whether it is compressed.
        if (!isConnect) expect(await over(fast, { headers: encoded, parts: [plainly] })).toEqual(expected);
        expect(fastCalls).toBe(isConnect ? 2 : 3);
      }
    },
  );

  test.each(["application/grpc", "application/proto"])(
    "when the method leaves a call in %s to it",
    async (contentType) => {
      answer = () => undefined;
      const parts = [...messageOf("refused", contentType)].map((byte) => Buffer.of(byte));
      const request = { headers: { "content-type": contentType }, parts };
      const [ours, theirs] = await Promise.all([over2(fast, request), over2(node, request)]);
      expect(ours).toEqual(theirs);
      if (contentType === "application/proto") expect(await over1(fast, request)).toEqual(await over1(node, request));
      expect(fastCalls).toBe(contentType === "application/proto" ? 2 : 1);
    },
  );
});

describe("a body", () => {
  test.each(["application/grpc", "application/grpc-web+json", "application/json"])(
    "may come in single bytes, in %s",
    async (contentType) => {
      const whole = messageOf("headers", contentType);
      const headers = { "content-type": contentType };
      const bytes = { headers, parts: [...whole].map((byte) => Buffer.of(byte)) };
      expect(await over2(fast, bytes)).toEqual(await over2(fast, { headers, parts: [whole] }));
      expect(await over1(fast, bytes)).toEqual(await over1(fast, { headers, parts: [whole] }));
      expect(fastCalls).toBe(contentType === "application/grpc" ? 2 : 4);
    },
  );

  test("that is as large as allowed is served, and an empty one too", async () => {
    answer = ({ message }) => ({ message: Buffer.from(String(message.length)) });
    const headers = { "content-type": "application/proto" };
    // Over HTTP/2, a message that takes too much of the window that a connection begins with is left to Node's own server.
    expect((await over2(fast, { headers, parts: [Buffer.alloc(24_000)] })).body).toBe("24000");
    expect((await over1(fast, { headers, parts: [Buffer.alloc(65_536)] })).body).toBe("65536");
    expect((await over2(fast, { headers, parts: [] })).body).toBe("0");
  });
});

describe("a late answer", () => {
  const grpc = { "content-type": "application/grpc" };
  const parts = [messageOf("", "application/grpc")];

  test("is waited for", async () => {
    answer = async (call) => {
      await wait(5);
      return answerFast(call);
    };
    expect(await over2(fast, { headers: grpc, parts })).toEqual(await over2(node, { headers: grpc, parts }));
    const proto = { headers: { "content-type": "application/proto" }, parts: [messageOf("", "application/proto")] };
    expect(await over1(fast, proto)).toEqual(await over1(node, proto));
  });

  test("later than the deadline is DEADLINE_EXCEEDED, and its work is told to stop", async () => {
    const signals: AbortSignal[] = [];
    const timeouts: unknown[] = [];
    answer = (call) => {
      signals.push(call.signal());
      timeouts.push(call.timeoutMs);
      return new Promise(() => {});
    };
    const late = await over2(fast, { headers: { ...grpc, "grpc-timeout": "20000u" }, parts });
    expect(late.trailers).toMatchObject({ "grpc-status": "4" });
    const headers = { "content-type": "application/proto", "connect-timeout-ms": "20" };
    const connectLate = await over1(fast, { headers, parts: [Buffer.alloc(0)] });
    expect(connectLate.status).toBe(504);
    expect(JSON.parse(connectLate.body)).toEqual({ code: "deadline_exceeded", message: "the operation timed out" });
    expect(timeouts).toEqual([20, 20]);
    expect(signals.map(({ aborted }) => aborted)).toEqual([true, true]);
  });

  test("to a client that is gone is dropped, and its work is told to stop", async () => {
    let finish = (_answer: FastAnswer) => {};
    const asked = new Promise<AbortSignal>((resolve) => {
      answer = (call) => {
        resolve(call.signal());
        return new Promise<FastAnswer>((settle) => {
          finish = settle;
        });
      };
    });
    const session = openSession(fast);
    const stream = session.request({ ":path": PATH, ":method": "POST", ...grpc });
    stream.on("error", () => {}).end(parts[0]);
    const signal = await asked;
    stream.close(constants.NGHTTP2_CANCEL);
    if (!signal.aborted) await once(signal, "abort");
    finish({ message: Buffer.from("nobody") });
    answer = answerFast;
    expect((await over2(fast, { headers: grpc, parts })).trailers).toMatchObject({ "grpc-status": "0" });
  });

  test.each([
    [
      "thrown",
      () => {
        throw new Error("secret");
      },
    ],
    ["rejected", () => Promise.reject(new Error("secret"))],
  ])("that is %s is INTERNAL, without its cause", async (_how, fail) => {
    answer = fail as typeof answer;
    const failed = await over2(fast, { headers: grpc, parts });
    expect(failed.trailers).toMatchObject({ "grpc-status": "13", "grpc-message": "internal error" });
  });
});

describe("a client that misbehaves harms nobody else", () => {
  const headers = { ":path": PATH, ":method": "POST", "content-type": "application/grpc" };
  const whole = messageOf("", "application/grpc");
  const served = async () => {
    const { trailers } = await over2(fast, { headers: { "content-type": "application/grpc" }, parts: [whole] });
    expect(trailers).toMatchObject({ "grpc-status": "0" });
  };

  test.each([constants.NGHTTP2_CANCEL, constants.NGHTTP2_PROTOCOL_ERROR])(
    "by resetting a call in the middle of its message, code %d",
    async (code) => {
      const session = openSession(fast);
      const stream = session.request(headers);
      stream.on("error", () => {}).write(whole.subarray(0, 3));
      await once(stream, "ready");
      await served();
      stream.close(code);
      await eventOf(stream, "close");
      await served();
      expect(fastCalls).toBe(2);
    },
  );

  test("by breaking its connection off with calls under way", async () => {
    const session = openSession(fast);
    for (const part of [whole, whole.subarray(0, 3)])
      session
        .request(headers)
        .on("error", () => {})
        .write(part);
    await once(session, "remoteSettings");
    await served();
    session.destroy();
    await served();
  });

  test("by never taking its answer: the stream is reset", async () => {
    const impatient = await start(true, { requestTimeoutMs: 20 });
    const session = openSession(impatient, { settings: { initialWindowSize: 0 } });
    await once(session, "remoteSettings");
    const stream = session.request(headers);
    stream.on("error", () => {}).end(whole);
    await eventOf(stream, "close");
    expect([fastCalls, stream.rstCode]).toEqual([1, constants.NGHTTP2_CANCEL]);
  });
});

test("calls that share a connection are all answered, each with its own answer", async () => {
  answer = ({ message, timeoutMs }) => {
    const own = { message: Buffer.from(message) };
    return timeoutMs === undefined ? own : wait(1).then(() => own);
  };
  const session = openSession(fast);
  const answers = await Promise.all(
    Array.from({ length: 200 }, async (_, index) => {
      const timeout = index % 3 === 0 ? { "connect-timeout-ms": "60000" } : {};
      const stream = session.request({
        ":path": PATH,
        ":method": "POST",
        "content-type": "application/proto",
        ...timeout,
      });
      stream.end(`call ${index}`);
      let text = "";
      for await (const chunk of stream.setEncoding("utf8")) text += chunk;
      return text;
    }),
  );
  expect(answers).toEqual(Array.from({ length: 200 }, (_, index) => `call ${index}`));
  expect(fastCalls).toBe(200);
});
