import assert from "node:assert";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { FastMethod } from "../../../src/fastpath/fast-method.ts";
import {
  createFrameReader,
  Flag,
  type Frame,
  frame,
  goawayFrame,
  headersFrames,
  number32,
  PREFACE,
  settingsFrame,
  Type,
} from "../../../src/fastpath/http2/frames.ts";
import { encodeFields } from "../../../src/fastpath/http2/hpack.ts";
import { type Listener, listen } from "../../../src/fastpath/listen.ts";
import { EMPTY } from "../../../src/fastpath/wire-format.ts";
import type { FuzzTarget } from "../fuzz.ts";

// Real sockets to real listeners. What is asked echoes its message, at once or a little later.

const ECHO = "/fuzz.v1.Echo/Now";
const LATE = "/fuzz.v1.Echo/Late";
const methods: FastMethod[] = [
  { path: ECHO, answer: ({ message }) => ({ message: Buffer.from(message) }) },
  {
    path: LATE,
    answer({ message }) {
      const copy = Buffer.from(message);
      return new Promise((resolve) => setImmediate(resolve, { message: copy }));
    },
  },
];

const limits = { requestTimeoutMs: 5_000, idleTimeoutMs: 5_000, headersTimeoutMs: 5_000 };

/** The same by node:http and node:http2 alone. */
const handler: Parameters<typeof listen>[0]["handler"] = (request, response) => {
  const chunks: Buffer[] = [];
  request.on("error", () => {});
  request.on("data", (chunk: Buffer) => chunks.push(chunk));
  request.on("end", () => {
    const known = request.method === "POST" && (request.url === ECHO || request.url === LATE);
    const type = request.headers["content-type"];
    const body = Buffer.concat(chunks);
    response.statusCode = known ? 200 : 404;
    response.setHeader("content-type", type ?? "text/plain");
    response.setHeader("content-length", known ? body.length : 0);
    response.end(known ? body : EMPTY);
  });
};

function open({ address }: Listener): Socket {
  const [host, port] = address.split(":");
  return connect({ host: host!, port: Number(port) }).on("error", () => {});
}

const CLOSE_MS = 10_000;

/** All that is answered to `bytes` until nothing has come for `quietMs`. The connection must then come to its end. */
async function exchange(
  listener: Listener,
  bytes: Buffer,
  quietMs: number,
  isDone: (so: Buffer) => boolean,
): Promise<Buffer> {
  const socket = open(listener);
  let answer: Buffer = Buffer.alloc(0);
  const closed = once(socket, "close");
  await once(socket, "connect");
  socket.write(bytes);
  await new Promise<void>((resolve) => {
    let timer = setTimeout(resolve, quietMs);
    socket.on("data", (chunk: Buffer) => {
      answer = Buffer.concat([answer, chunk]);
      clearTimeout(timer);
      if (isDone(answer)) resolve();
      else timer = setTimeout(resolve, quietMs);
    });
    socket.once("close", () => {
      clearTimeout(timer);
      resolve();
    });
  });
  socket.end();
  const cut = setTimeout(() => socket.destroy(new Error("it does not end")), CLOSE_MS);
  await closed;
  clearTimeout(cut);
  assert(socket.errored?.message !== "it does not end", "the connection does not end with its client's half");
  return answer;
}

/** Starts on first use, so that a run of other targets listens nowhere. */
function lazily<T>(make: () => Promise<T>): { get(): Promise<T>; made(): Promise<T> | undefined } {
  let made: Promise<T> | undefined;
  return {
    get() {
      made ??= make();
      return made;
    },
    made: () => made,
  };
}

const start = (fast: FastMethod[]) => listen({ host: "127.0.0.1", port: 0, handler, fast, limits });

// ---- HTTP/1.1

const post = (path: string, body: string, ...more: string[]) =>
  [
    ...[
      `POST ${path} HTTP/1.1`,
      "Host: x",
      "Content-Type: application/json",
      `Content-Length: ${body.length}`,
      ...more,
    ],
    `\r\n${body}`,
  ].join("\r\n");
const chunked = (path: string, body: string) =>
  `POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`;

const http1Listeners = lazily(() => Promise.all([start(methods), start([])]));
const never = () => false;

/** Each answer's status, and the body of one that is good. What is told of a request that can't be read ends the list. */
function answersOf(bytes: Buffer): string[] {
  const answers: string[] = [];
  let rest = bytes;
  while (rest.length > 0) {
    const length = rest.indexOf("\r\n\r\n") + 4;
    const [status = ""] =
      /^HTTP\/1\.1 (\d{3}) [^\r\n]*\r\n/.exec(rest.toString("latin1", 0, Math.max(0, length))) ?? [];
    assert(status !== "", `an answer is none: ${rest.toString("latin1", 0, 200)}`);
    const code = status.slice(9, 12);
    const size = Number(/\r\ncontent-length: *(\d+)/i.exec(rest.toString("latin1", 0, length))?.[1] ?? 0);
    answers.push(code === "200" ? `200 ${rest.toString("latin1", length, length + size)}` : code);
    rest = rest.subarray(length + size);
    if (code !== "200" && code !== "404" && code !== "100") break;
  }
  return answers;
}

/** What can't be read ends a connection at once: answers before it that were not ready are lost with it. */
function agree(ours: string[], nodes: string[]): boolean {
  const isCutPartOf = (part: string[], whole: string[]) =>
    CUT.test(part.at(-1) ?? "") && part.slice(0, -1).every((answer, index) => answer === whole[index]);
  return ours.join("\0") === nodes.join("\0") || isCutPartOf(ours, nodes) || isCutPartOf(nodes, ours);
}

const CUT = /^(?:400|408|413|417|431)$/;

const http1: FuzzTarget = {
  name: "http1",
  seeds: [
    post(ECHO, '{"nonce":"aaaaaaaa"}'),
    post(ECHO, "1") + post(ECHO, "22") + post(LATE, "333") + post(ECHO, "4444"),
    post(ECHO, "{}", "Connection: keep-alive", "X-A: 1", "x-a: 2") + chunked(ECHO, "55555") + post(ECHO, "6"),
    `${chunked(LATE, "7")}GET / HTTP/1.1\r\nHost: x\r\n\r\n${post(ECHO, "8")}`,
    post(ECHO, "9", "Connection: close"),
  ].map((one) => Buffer.from(one, "latin1")),
  async run(input) {
    // That preface is for the other target.
    if (PREFACE.subarray(0, Math.min(3, input.length)).equals(input.subarray(0, 3))) return;
    const [ours, plain] = await http1Listeners.get();
    const compare = async (quietMs: number) => {
      const both = await Promise.all([ours, plain].map((one) => exchange(one, input, quietMs, never)));
      return both.map(answersOf);
    };
    for (const quietMs of [15, 400]) {
      const [ours, nodes] = await compare(quietMs);
      // It may have been cut short by the quiet.
      if (quietMs === 400)
        assert(agree(ours!, nodes!), `${JSON.stringify(ours)} and by node:http ${JSON.stringify(nodes)}`);
      else if (agree(ours!, nodes!)) return;
    }
  },
  check: () => answersAGoodCall(http1Listeners.get().then(([ours]) => ours)),
  stop: async () => {
    for (const one of (await http1Listeners.made()) ?? []) await one.close(0);
  },
};

async function answersAGoodCall(listening: Promise<Listener>): Promise<void> {
  const answer = await exchange(await listening, Buffer.from(post(ECHO, "good")), 2_000, (so) => so.includes("good"));
  assert.deepEqual(answersOf(answer), ["200 good"]);
}

// ---- HTTP/2

const http2Listener = lazily(() => start(methods));
const PING = Buffer.from("theend!!");
const ACK = frame(Type.PING, Flag.ACK, 0, PING);
const FIRST_NONCE = "nonce-of-the-first";
const LAST_NONCE = "nonce-of-the-last";

const call = (id: number, path: string, type: string, body: Buffer, flags = 0) => [
  headersFrames(
    flags,
    id,
    encodeFields([
      ":method",
      "POST",
      ":scheme",
      "http",
      ":path",
      path,
      ":authority",
      "x",
      "content-type",
      type,
      "te",
      "trailers",
    ]),
  ),
  ...(body.length > 0 ? [frame(Type.DATA, Flag.END_STREAM, id, body)] : []),
];
const grpcMessage = (text: string) => Buffer.concat([Buffer.of(0, 0, 0, 0, text.length), Buffer.from(text)]);
const bytesOf = (...frames: (Buffer | Buffer[])[]) => Buffer.concat(frames.flat());
/** With fields that are kept in the table, and Huffman-coded. */
const indexed = Buffer.concat([
  Buffer.from([0x83, 0x86, 0x44, ECHO.length]),
  Buffer.from(ECHO),
  Buffer.from([0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff, 0x5f, 0x10]),
  Buffer.from("application/grpc"),
]);

const beginning = bytesOf(
  PREFACE,
  settingsFrame([[4, 65_535]]),
  call(1, ECHO, "application/grpc", grpcMessage(FIRST_NONCE)),
  // Its message comes after all else.
  call(3, ECHO, "application/grpc", Buffer.alloc(0)),
);
const end = bytesOf(frame(Type.DATA, Flag.END_STREAM, 3, grpcMessage(LAST_NONCE)), frame(Type.PING, 0, 0, PING));

function endsWithAFrame(bytes: Buffer): boolean {
  let at = 0;
  while (at + 9 <= bytes.length) at += 9 + bytes.readUIntBE(at, 3);
  return at === bytes.length;
}

const http2: FuzzTarget = {
  name: "http2",
  seeds: [
    bytesOf(
      call(5, ECHO, "application/grpc", grpcMessage("five")),
      call(7, LATE, "application/grpc", grpcMessage("seven")),
    ),
    bytesOf(call(5, ECHO, "application/json", Buffer.from("{}")), call(7, ECHO, "text/odd", Buffer.from("node"))),
    bytesOf(
      frame(Type.HEADERS, Flag.END_HEADERS, 5, indexed),
      frame(Type.DATA, Flag.END_STREAM, 5, grpcMessage("indexed")),
      frame(Type.HEADERS, Flag.END_HEADERS, 7, Buffer.from([0x83, 0x86, 0xc0, 0xbf, 0xbe])),
      frame(
        Type.DATA,
        Flag.END_STREAM | Flag.PADDED,
        7,
        Buffer.concat([Buffer.of(3), grpcMessage("padded"), Buffer.alloc(3)]),
      ),
    ),
    bytesOf(
      frame(Type.HEADERS, 0, 5, indexed.subarray(0, 20)),
      frame(Type.CONTINUATION, Flag.END_HEADERS, 5, indexed.subarray(20)),
      frame(Type.RST_STREAM, 0, 5, number32(8)),
      frame(Type.WINDOW_UPDATE, 0, 0, number32(1_000)),
      settingsFrame([
        [1, 0],
        [3, 0],
        [4, 10],
        [5, 20_000],
        [6, 100],
      ]),
      call(7, ECHO, "application/grpc", grpcMessage("through a small window")),
      frame(Type.WINDOW_UPDATE, 0, 7, number32(100)),
      frame(Type.PRIORITY, 0, 7, Buffer.alloc(5)),
      settingsFrame([[4, 65_535]]),
    ),
    bytesOf(
      call(5, "/elsewhere", "application/grpc", Buffer.from("x")),
      goawayFrame(0, 0),
      frame(99, 7, 5, Buffer.alloc(3)),
    ),
    bytesOf(
      call(5, ECHO, "application/grpc", Buffer.alloc(0), Flag.END_STREAM),
      call(9, LATE, "application/proto", Buffer.alloc(12_000)),
    ),
  ],
  async run(input) {
    const listener = await http2Listener.get();
    const answer = await exchange(listener, bytesOf(beginning, input, end), 25, (so) => so.includes(ACK));
    const data = new Map<number, string>();
    let rest = answer.length;
    const read = createFrameReader(0xffffff, ({ type, id, payload }: Frame) => {
      rest -= 9 + payload.length;
      assert(type <= Type.CONTINUATION, `a frame of type ${type} was sent`);
      if (type === Type.DATA) data.set(id, (data.get(id) ?? "") + payload.toString("latin1"));
    });
    assert.equal(read(answer), "ok");
    assert.equal(rest, 0, "what was sent ends within a frame");
    // Answered before anything odd was read.
    assert.equal(data.get(1), grpcMessage(FIRST_NONCE).toString("latin1"));
    // What ends within a frame takes the beginning of the last call's for the rest of it.
    const isWhole = endsWithAFrame(input);
    for (const [id, body] of data) {
      if (id !== 1) assert(!body.includes(FIRST_NONCE), `the first call's answer was sent on ${id}`);
      if (id !== 3 && isWhole) assert(!body.includes(LAST_NONCE), `the last call's answer was sent on ${id}`);
    }
  },
  check: () => answersAGoodCall(http2Listener.get()),
  stop: async () => {
    await (await http2Listener.made())?.close(0);
  },
};

export const connections: readonly FuzzTarget[] = [http1, http2];
