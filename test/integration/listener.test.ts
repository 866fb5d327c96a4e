import { once } from "node:events";
import { Agent, get, type IncomingMessage, type ServerResponse } from "node:http";
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect as connectHttp2,
  constants,
  type Http2ServerRequest,
  type Http2ServerResponse,
} from "node:http2";
import { connect as connectTcp, type Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { afterEach, describe, expect, test } from "@jest/globals";
import type { ListenerLimits } from "../../src/fastpath/limits.ts";
import { type Listener, listen } from "../../src/fastpath/listen.ts";
import { StartupError } from "../../src/observe/startup-error.ts";
import { namingAddress } from "../../src/service/free-address.ts";
import { loadTls } from "../../src/service/tls-files.ts";

type Request = IncomingMessage | Http2ServerRequest;
/** What both versions have in common. */
type Response = Pick<ServerResponse, "end" | "once"> & { write(text: string): boolean };
type Handler = (request: Request, response: ServerResponse | Http2ServerResponse) => void;

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const answerAtOnce: Handler = (request, response) => {
  request.resume();
  response.end(`served over ${request.httpVersion}`);
};

async function start(handler: Handler = answerAtOnce, limits: Partial<ListenerLimits> = {}): Promise<Listener> {
  const listener = await listen({ host: "127.0.0.1", port: 0, handler, limits });
  cleanUps.push(() => listener.close(0));
  return listener;
}

/** A handler that leaves every call open, and the responses of the calls that came, in order. */
function holding() {
  const held: Response[] = [];
  const waiting: ((response: Response) => void)[] = [];
  return {
    handler: ((request, answer) => {
      request.resume();
      const response = answer as Response;
      const taker = waiting.shift();
      taker === undefined ? held.push(response) : taker(response);
    }) satisfies Handler,
    next: async (): Promise<Response> => held.shift() ?? new Promise((resolve) => waiting.push(resolve)),
  };
}

function openSocket({ address }: Listener): Socket {
  const socket = connectTcp({ host: "127.0.0.1", port: Number(address.split(":")[1]), noDelay: true });
  socket.on("error", () => {});
  cleanUps.push(() => socket.destroy());
  return socket;
}

/** All that comes until the server ends or breaks the connection. */
async function allFrom(socket: Socket): Promise<string> {
  let text = "";
  socket.on("data", (chunk) => {
    text += chunk.toString("latin1");
  });
  await once(socket, "close");
  return text;
}

async function writeByteByByte(socket: Socket, bytes: Buffer): Promise<void> {
  for (const byte of bytes) {
    socket.write(Buffer.of(byte));
    await new Promise((resolve) => setImmediate(resolve));
  }
}

function openSession({ address }: Listener, options = {}): ClientHttp2Session {
  const session = connectHttp2(`http://${address}`, options);
  session.on("error", () => {});
  cleanUps.push(() => session.destroy());
  return session;
}

/** The text of the answer; rejects when it was broken off. */
async function textOf(stream: ClientHttp2Stream): Promise<string> {
  let text = "";
  for await (const chunk of stream.setEncoding("utf8")) text += chunk;
  return text;
}

async function resetCodeOf(stream: ClientHttp2Stream): Promise<number> {
  await new Promise((resolve) =>
    stream
      .on("error", () => {})
      .on("close", resolve)
      .resume(),
  );
  return stream.rstCode;
}

interface Http1Answer {
  status: number | undefined;
  headers: IncomingMessage["headers"];
  text: string;
  socket: Socket;
}

async function http1Get(
  { address }: Listener,
  options: { agent?: Agent; headers?: object } = {},
): Promise<Http1Answer> {
  const [response] = (await once(get(`http://${address}/`, options as object), "response")) as [IncomingMessage];
  const { socket } = response;
  let text = "";
  for await (const chunk of response.setEncoding("utf8")) text += chunk;
  return { status: response.statusCode, headers: response.headers, text, socket };
}

const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");
const FRAME = { data: 0, headers: 1, rstStream: 3, settings: 4, ping: 6, goAway: 7 };

function frame(type: number, flags: number, streamId: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(streamId, 5);
  return Buffer.concat([head, payload]);
}

/** HPACK without its dynamic table: `:method`, `:scheme http`, `:path /`, `:authority x`. */
const headersOf = (method: "GET" | "POST") =>
  Buffer.of(method === "GET" ? 0x82 : 0x83, 0x86, 0x84, 0x01, 0x01, "x".charCodeAt(0));
const wholeGet = (streamId: number) => frame(FRAME.headers, 0x5, streamId, headersOf("GET"));

interface Frame {
  type: number;
  streamId: number;
  payload: Buffer;
}

/** The server's frames, one by one; nothing is answered by itself, so that what a client may do late can be done late. */
async function* framesOf(socket: Socket): AsyncGenerator<Frame> {
  let seen = Buffer.alloc(0);
  for await (const chunk of socket) {
    seen = Buffer.concat([seen, chunk]);
    while (seen.length >= 9 && seen.length >= 9 + seen.readUIntBE(0, 3)) {
      const length = seen.readUIntBE(0, 3);
      yield { type: seen[3]!, streamId: seen.readUInt32BE(5), payload: seen.subarray(9, 9 + length) };
      seen = seen.subarray(9 + length);
    }
  }
}

async function nextFrame(frames: AsyncGenerator<Frame>, type: number): Promise<Frame> {
  for (;;) {
    const { value, done } = await frames.next();
    if (done) throw new Error(`the connection ended without a frame of type ${type}`);
    if (value.type === type) return value;
  }
}

describe("one port", () => {
  test("serves HTTP/1.1 and HTTP/2", async () => {
    const listener = await start();
    expect(await http1Get(listener)).toMatchObject({ status: 200, text: "served over 1.1" });
    expect(await textOf(openSession(listener).request())).toBe("served over 2.0");
  });

  test("serves a body that arrives together with the first bytes, on both versions", async () => {
    const listener = await start((request, response) => void request.pipe(response as never));
    const socket = openSocket(listener);
    socket.write("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello");
    expect(await allFrom(socket)).toMatch(/^HTTP\/1\.1 200 OK\r\n[\s\S]*hello/);

    const http2 = openSocket(listener);
    const post = frame(FRAME.headers, 0x4, 1, headersOf("POST"));
    http2.write(
      Buffer.concat([PREFACE, frame(FRAME.settings, 0, 0), post, frame(FRAME.data, 1, 1, Buffer.from("hello"))]),
    );
    expect((await nextFrame(framesOf(http2), FRAME.data)).payload.toString()).toBe("hello");
  });

  test("recognises an HTTP/2 preface that comes in single bytes", async () => {
    const socket = openSocket(await start());
    await writeByteByByte(socket, Buffer.concat([PREFACE, frame(FRAME.settings, 0, 0), wholeGet(1)]));
    expect((await nextFrame(framesOf(socket), FRAME.data)).payload.toString()).toBe("served over 2.0");
  });

  test("recognises an HTTP/1.1 request that comes in single bytes, even one that begins like the preface", async () => {
    const socket = openSocket(await start());
    await writeByteByByte(socket, Buffer.from("PROPFIND / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
    expect(await allFrom(socket)).toMatch(/^HTTP\/1\.1 200 OK\r\n[\s\S]*served over 1\.1/);
  });
});

describe("a client that misbehaves loses its own connection, and nobody else's", () => {
  test("garbage as first bytes", async () => {
    const listener = await start();
    const socket = openSocket(listener);
    socket.write(Buffer.of(0xff, 0xfe, 0x00, 0x01, 0x0d, 0x0a, 0x0d, 0x0a));
    expect(await allFrom(socket)).toMatch(/^HTTP\/1\.1 400 /);
    expect(await http1Get(listener)).toMatchObject({ status: 200 });
  });

  test("garbage after the preface", async () => {
    const listener = await start();
    const socket = openSocket(listener);
    socket.write(Buffer.concat([PREFACE, Buffer.alloc(64, 0xff)]));
    await allFrom(socket);
    expect(await http1Get(listener)).toMatchObject({ status: 200 });
  });

  test("half a preface, and the end", async () => {
    const listener = await start();
    const socket = openSocket(listener);
    socket.end(PREFACE.subarray(0, 10));
    expect(await allFrom(socket)).toBe("");
    expect(await http1Get(listener)).toMatchObject({ status: 200 });
  });

  test.each([
    ["nothing", ""],
    ["a part of the preface", "PRI * HT"],
  ])("%s within the time for the first bytes", async (_what, bytes) => {
    const socket = openSocket(await start(answerAtOnce, { firstBytesTimeoutMs: 50 }));
    socket.write(bytes);
    expect(await allFrom(socket)).toBe("");
  });

  test("an HTTP/1.1 request whose headers never end: 408", async () => {
    const socket = openSocket(await start(answerAtOnce, { headersTimeoutMs: 50, requestTimeoutMs: 1_000 }));
    socket.write("GET / HTTP/1.1\r\nhost: x\r\n");
    expect(await allFrom(socket)).toMatch(/^HTTP\/1\.1 408 /);
  });

  test("an HTTP/1.1 request whose body never ends: 408", async () => {
    const { handler } = holding();
    const socket = openSocket(await start(handler, { headersTimeoutMs: 50, requestTimeoutMs: 50 }));
    socket.write("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf");
    expect(await allFrom(socket)).toMatch(/^HTTP\/1\.1 408 /);
  });

  test("an HTTP/2 request whose body never ends is reset; its session goes on", async () => {
    const { handler, next } = holding();
    const session = openSession(await start(handler, { requestTimeoutMs: 50 }));
    const stream = session.request({ ":method": "POST" }, { endStream: false });
    stream.write("half");
    await next();
    expect(await resetCodeOf(stream)).toBe(constants.NGHTTP2_CANCEL);
    const whole = textOf(session.request());
    (await next()).end("still here");
    expect(await whole).toBe("still here");
  });

  test("headers too large: 431 over HTTP/1.1", async () => {
    const listener = await start(answerAtOnce, { maxHeaderBytes: 2_048 });
    expect(await http1Get(listener, { headers: { large: "x".repeat(3_000) } })).toMatchObject({ status: 431 });
    expect(await http1Get(listener, { headers: { large: "x".repeat(1_000) } })).toMatchObject({ status: 200 });
  });

  test.each([
    ["too large", { large: "x".repeat(3_000) }],
    ["too many", Object.fromEntries(Array.from({ length: 40 }, (_, index) => [`h${index}`, "x"]))],
  ])("headers %s: the stream is reset over HTTP/2, and the session goes on", async (_what, headers) => {
    const session = openSession(await start(answerAtOnce, { maxHeaderBytes: 2_048, maxHeaderPairs: 32 }));
    await once(session, "remoteSettings");
    expect(await resetCodeOf(session.request(headers))).toBe(constants.NGHTTP2_ENHANCE_YOUR_CALM);
    expect(await textOf(session.request())).toBe("served over 2.0");
  });

  test("more streams than allowed, opened before the client knows the limit: the rest waits for room", async () => {
    const { handler, next } = holding();
    const session = openSession(await start(handler, { maxConcurrentStreams: 2 }));
    const answers = [session.request(), session.request(), session.request()].map(textOf);
    for (const answer of ["one", "two", "three"]) (await next()).end(answer);
    expect(await Promise.all(answers)).toEqual(["one", "two", "three"]);
  });

  test("streams opened and reset by the thousand end the session", async () => {
    const listener = await start();
    const session = openSession(listener);
    await once(session, "remoteSettings");
    const ended = new Promise((resolve) => session.once("close", resolve));
    for (let round = 0; round < 100 && !session.destroyed; round++) {
      for (let index = 0; index < 50 && !session.closed; index++)
        session
          .request()
          .on("error", () => {})
          .close(constants.NGHTTP2_CANCEL);
      await new Promise((resolve) => setImmediate(resolve));
    }
    await ended;
    expect(session.destroyed).toBe(true);
    expect(await textOf(openSession(listener).request())).toBe("served over 2.0");
  });

  test("connections beyond the cap are closed unanswered, and there is room again when one ends", async () => {
    const listener = await start(answerAtOnce, { maxConnections: 1 });
    const session = openSession(listener);
    await once(session, "remoteSettings");
    const beyond = openSocket(listener);
    beyond.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    expect(await allFrom(beyond)).toBe("");
    session.close();
    await once(session, "close");
    await expectEventually(async () => (await http1Get(listener)).status === 200);
  });

  test("a client that breaks off in the middle of an answer", async () => {
    const { handler, next } = holding();
    const listener = await start(handler);
    const http1 = openSocket(listener);
    http1.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    const session = openSession(listener);
    const first = await next();
    session.request().on("error", () => {});
    const second = await next();
    for (const response of [first, second]) {
      const ended = new Promise<void>((resolve) => response.once("close", resolve));
      response.write("half");
      response === first ? http1.resetAndDestroy() : session.destroy();
      await ended;
      response.end("the other half");
    }
    const whole = http1Get(listener);
    (await next()).end("whole");
    expect(await whole).toMatchObject({ text: "whole" });
  });
});

describe("idle connections", () => {
  test("an HTTP/2 session without a stream is closed, and told so", async () => {
    const session = openSession(await start(answerAtOnce, { idleTimeoutMs: 50 }));
    const goAway = once(session, "goaway");
    await once(session, "close");
    expect((await goAway)[0]).toBe(constants.NGHTTP2_NO_ERROR);
  });

  test("an HTTP/1.1 connection without a request is closed", async () => {
    const agent = new Agent({ keepAlive: true });
    cleanUps.push(() => agent.destroy());
    const { socket } = await http1Get(await start(answerAtOnce, { idleTimeoutMs: 50 }), { agent });
    if (!socket.destroyed) await once(socket, "close");
  });

  test("a stream that is answered and silent outlives every time limit, and its session with it", async () => {
    const { handler, next } = holding();
    const listener = await start(handler, { idleTimeoutMs: 20, requestTimeoutMs: 20, headersTimeoutMs: 20 });
    const session = openSession(listener);
    const stream = session.request({ ":method": "POST" }, { endStream: false });
    const text = textOf(stream);
    const response = await next();
    response.write("first, ");
    // Another session that is opened now and closed for idleness shows that the limits have passed.
    for (let round = 0; round < 3; round++) await once(openSession(listener), "close");
    response.end("last");
    expect(await text).toBe("first, last");
  });
});

describe("close", () => {
  test.each(["HTTP/1.1", "HTTP/2"])(
    "lets a call in flight finish over %s, and refuses new connections",
    async (version) => {
      const { handler, next } = holding();
      const listener = await start(handler);
      const answer =
        version === "HTTP/2" ? textOf(openSession(listener).request()) : http1Get(listener).then(({ text }) => text);
      const response = await next();
      const closed = listener.close(20_000);
      await expect(http1Get(listener)).rejects.toMatchObject({ code: "ECONNREFUSED" });
      response.end("finished");
      expect(await answer).toBe("finished");
      await closed;
    },
  );

  test("ends an idle keep-alive connection, and tells a busy one by its answer not to come back", async () => {
    const { handler, next } = holding();
    const listener = await start(handler);
    const agent = new Agent({ keepAlive: true });
    cleanUps.push(() => agent.destroy());
    const [first, second] = [http1Get(listener, { agent }), http1Get(listener, { agent })];
    (await next()).end("one");
    const idle = await Promise.race([first, second]);
    const response = await next();
    const closed = listener.close(20_000);
    if (!idle.socket.destroyed) await once(idle.socket, "close");
    response.end("two");
    const answers = await Promise.all([first, second]);
    expect(answers.map(({ text }) => text).sort()).toEqual(["one", "two"]);
    expect(answers.find(({ text }) => text === "two")?.headers.connection).toBe("close");
    await closed;
  });

  test("ends a keep-alive connection after an answer that had begun before", async () => {
    const { handler, next } = holding();
    const listener = await start(handler);
    const agent = new Agent({ keepAlive: true });
    cleanUps.push(() => agent.destroy());
    const answer = http1Get(listener, { agent });
    const response = await next();
    response.write("begun, ");
    const closed = listener.close(20_000);
    response.end("x".repeat(1_000_000));
    expect((await answer).text).toHaveLength(1_000_007);
    await closed;
  });

  test("tells an HTTP/2 client which request was the last to be served, once it knows that it is to go", async () => {
    const { handler, next } = holding();
    const listener = await start(handler);
    const socket = openSocket(listener);
    const frames = framesOf(socket);
    socket.write(Buffer.concat([PREFACE, frame(FRAME.settings, 0, 0), wholeGet(1)]));
    const response = await next();
    const closed = listener.close(20_000);
    const goAway = async () => {
      const { payload } = await nextFrame(frames, FRAME.goAway);
      return [payload.readUInt32BE(0), payload.readUInt32BE(4)];
    };
    const answerPing = async () => socket.write(frame(FRAME.ping, 1, 0, (await nextFrame(frames, FRAME.ping)).payload));
    await answerPing();
    await answerPing();
    expect(await goAway()).toEqual([2 ** 31 - 1, constants.NGHTTP2_NO_ERROR]);
    await answerPing();
    await answerPing();
    expect(await goAway()).toEqual([1, constants.NGHTTP2_NO_ERROR]);
    socket.write(wholeGet(3));
    response.end("the last");
    expect(await nextFrame(frames, FRAME.data)).toMatchObject({ streamId: 1, payload: Buffer.from("the last") });
    for await (const { streamId } of frames) expect(streamId).not.toBe(3);
    await closed;
  });

  test("answers a request that was on its way on an idle keep-alive connection, and says that it was the last", async () => {
    const listener = await start();
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    cleanUps.push(() => agent.destroy());
    const first = await http1Get(listener, { agent });
    const second = http1Get(listener, { agent });
    const closed = listener.close(20_000);
    const answer = await second;
    expect(answer.socket).toBe(first.socket);
    expect([answer.text, answer.headers.connection]).toEqual(["served over 1.1", "close"]);
    await closed;
  });

  test("ends connections that have not yet said anything", async () => {
    const listener = await start();
    const [silent, half] = [openSocket(listener), openSocket(listener)];
    half.write("PRI");
    await Promise.all([once(silent, "connect"), once(half, "connect")]);
    await http1Get(listener);
    const ended = [allFrom(silent), allFrom(half)];
    await listener.close(20_000);
    expect(await Promise.all(ended)).toEqual(["", ""]);
  });

  test("cuts what outlasts the grace, on both versions", async () => {
    const { handler, next } = holding();
    const listener = await start(handler);
    const http1 = expect(http1Get(listener)).rejects.toMatchObject({ code: "ECONNRESET" });
    const http2 = resetCodeOf(openSession(listener).request());
    await Promise.all([next(), next()]);
    await listener.close(50);
    await http1;
    expect(await http2).toBe(constants.NGHTTP2_CANCEL);
  });

  test("can be called again, and while under way: both end together", async () => {
    const { handler, next } = holding();
    const listener = await start(handler);
    const answer = http1Get(listener);
    const response = await next();
    const both = [listener.close(20_000), listener.close(0)];
    response.end("finished");
    expect((await answer).text).toBe("finished");
    await Promise.all(both);
    await listener.close(0);
  });
});

describe("TLS", () => {
  const certFile = "test/support/tls/server-cert.pem";
  const keyFile = "test/support/tls/server-key.pem";
  const startTls = async (limits: Partial<ListenerLimits> = {}) => {
    const tls = loadTls({ certFile, keyFile });
    const listener = await listen({ host: "127.0.0.1", port: 0, handler: answerAtOnce, tls, limits });
    cleanUps.push(() => listener.close(0));
    return listener;
  };
  const openTls = ({ address }: Listener, options: object): TLSSocket => {
    const port = Number(address.split(":")[1]);
    const socket = connectTls({ host: "127.0.0.1", port, ca: loadTls({ certFile, keyFile }).cert, ...options });
    cleanUps.push(() => socket.destroy());
    return socket;
  };

  test("serves HTTP/2 and HTTP/1.1, as the client's ALPN asks, and HTTP/1.1 to one that does not ask", async () => {
    const listener = await startTls();
    const http2 = openTls(listener, { ALPNProtocols: ["h2", "http/1.1"] });
    await once(http2, "secureConnect");
    const session = connectHttp2("https://localhost", { createConnection: () => http2 });
    cleanUps.push(() => session.destroy());
    expect(await textOf(session.request())).toBe("served over 2.0");
    for (const options of [{ ALPNProtocols: ["http/1.1"] }, {}]) {
      const http1 = openTls(listener, options);
      http1.write("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
      expect(await allFrom(http1)).toMatch(/^HTTP\/1\.1 200 OK\r\n[\s\S]*served over 1\.1/);
    }
  });

  test("older than 1.2, and cleartext, are refused; nobody else is harmed", async () => {
    const listener = await startTls();
    const old = openTls(listener, { maxVersion: "TLSv1.1", minVersion: "TLSv1", ciphers: "DEFAULT@SECLEVEL=0" });
    await expect(once(old, "secureConnect")).rejects.toThrow();
    const cleartext = openSocket(listener);
    cleartext.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    expect(await allFrom(cleartext)).not.toMatch(/^HTTP/);
    await once(openTls(listener, {}), "secureConnect");
  });

  test("a handshake that does not come to an end is cut off", async () => {
    const silent = openSocket(await startTls({ firstBytesTimeoutMs: 50 }));
    expect(await allFrom(silent)).toBe("");
  });

  test("a drain ends what is in its handshake, and lets a call in flight finish", async () => {
    const { handler, next } = holding();
    const tls = loadTls({ certFile, keyFile });
    const listener = await listen({ host: "127.0.0.1", port: 0, handler, tls });
    cleanUps.push(() => listener.close(0));
    const silent = openSocket(listener);
    await once(silent, "connect");
    const busy = openTls(listener, {});
    busy.write("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    const response = await next();
    const answer = allFrom(busy);
    const closed = listener.close(20_000);
    expect(await allFrom(silent)).toBe("");
    response.end("finished");
    expect(await answer).toMatch(/finished/);
    await closed;
  });

  test("files that can't be read, or don't belong together, are a StartupError that names them", () => {
    const failing = (files: Parameters<typeof loadTls>[0]) => {
      try {
        loadTls(files);
      } catch (error) {
        expect(error).toBeInstanceOf(StartupError);
        return (error as Error).message;
      }
      return "";
    };
    expect(failing({ certFile: "nowhere", keyFile })).toBe("LATCHKEY_TLS_CERT_FILE=nowhere can't be read (ENOENT).");
    expect(failing({ certFile, keyFile: "nowhere" })).toBe("LATCHKEY_TLS_KEY_FILE=nowhere can't be read (ENOENT).");
    expect(failing({ certFile, keyFile: "test/support/tls/other-key.pem" })).toMatch(
      /not the one that the certificate/,
    );
    expect(failing({ certFile: "package.json", keyFile })).toMatch(/no certificate and key in PEM/);
  });
});

describe("start", () => {
  test("says which address it bound", async () => {
    expect((await start()).address).toMatch(/^127\.0\.0\.1:[1-9]\d*$/);
  });

  const hasIpv6 = Object.values(networkInterfaces()).some((all) => all?.some(({ address }) => address === "::1"));
  const without = hasIpv6 ? "" : " (skipped: this machine has no ::1)";
  (hasIpv6 ? test : test.skip)(`says an IPv6 address in brackets${without}`, async () => {
    const six = await listen({ host: "::1", port: 0, handler: answerAtOnce });
    cleanUps.push(() => six.close(0));
    expect(six.address).toMatch(/^\[::1\]:[1-9]\d*$/);
  });

  const listenAsService = (host: string, port: number) =>
    namingAddress({ setting: "LATCHKEY_LISTEN", host, port }, () => listen({ host, port, handler: answerAtOnce }));

  test("a taken port is a StartupError that names the address and says what to do", async () => {
    const { address } = await start();
    const port = Number(address.split(":")[1]);
    const failure = await listenAsService("127.0.0.1", port).catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(StartupError);
    expect((failure as Error).message).toBe(
      `${address} is in use by another program. Stop it, or set LATCHKEY_LISTEN to a free address.`,
    );
  });

  test("an address of another machine is a StartupError that names it", async () => {
    await expect(listenAsService("192.0.2.1", 8080)).rejects.toThrow(
      /^192\.0\.2\.1:8080 can't be listened on \(EADDRNOTAVAIL\)\. Set LATCHKEY_LISTEN /,
    );
    await expect(listenAsService("2001:db8::1", 8080)).rejects.toThrow(/^\[2001:db8::1\]:8080 can't be listened on/);
  });
});

/** For what the server learns from the kernel in its own time. */
async function expectEventually(holds: () => Promise<boolean>): Promise<void> {
  while (!(await holds().catch(() => false))) await new Promise((resolve) => setTimeout(resolve, 10));
}
