import { type EventEmitter, once } from "node:events";
import type { ClientHttp2Session } from "node:http2";
import type { Socket } from "node:net";
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { gzipSync } from "node:zlib";
import { Flag, frame, headersFrames, number32, PREFACE, settingsFrame, Type } from "../../src/fastpath/http2/frames.ts";
import { encodeFields } from "../../src/fastpath/http2/hpack.ts";
import { EMPTY } from "../../src/fastpath/wire-format.ts";
import { VERIFY_PATH } from "../bench/messages.ts";
import { badChecksum, unknownKey, wrongSecret } from "../bench/records.ts";
import { userToken } from "../support/service.ts";
import { ask, type World } from "./world.ts";

export interface Attack {
  name: string;
  /** Goes on until the signal is aborted. Returns what it did, in a few words; throws when it was let do what it must not. */
  run(world: World, size: Size, signal: AbortSignal): Promise<string>;
}

export interface Size {
  connections: number;
  idle: number;
}

/** Calls over one session, 32 at a time, each refused as it must be. */
function flood(
  name: string,
  call: (session: ClientHttp2Session, world: World) => Promise<string | undefined>,
  expected: RegExp,
): Attack {
  return {
    name,
    async run(world, _size, signal) {
      const session = world.openSession();
      let answered = 0;
      const lane = async () => {
        while (!signal.aborted) {
          const answer = await call(session, world);
          if (session.destroyed) return;
          if (answer === undefined || !expected.test(answer)) throw new Error(`${name} was answered: ${answer}`);
          answered += 1;
        }
      };
      await Promise.all(Array.from({ length: 32 }, lane));
      return `${answered} calls, each refused`;
    },
  };
}

const verifyFlood = (name: string, keyOf: (world: World) => string, expected: RegExp) =>
  flood(name, (session, world) => ask(session, keyOf(world)), expected);

const GET_PATH = "/latchkey.v1.ApiKeyService/Get";
const tokenFlood = (name: string, tokenOf: () => Promise<string>) =>
  flood(
    name,
    async (session) => ask(session, "", GET_PATH, { authorization: `Bearer ${await tokenOf()}` }),
    /UNAUTHENTICATED/,
  );

const part = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
const claims = { sub: "good", aud: "users", exp: 4e9, role: "admin" };

/** Resolves at the first of these, errors or not. */
function happens(...events: [EventEmitter, string][]): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      for (const [emitter, name] of events) emitter.off(name, done);
      resolve();
    };
    for (const [emitter, name] of events) emitter.on(name, done);
  });
}

/** Connections that are opened again whenever they are ended; each is given to `use`, which returns when it is done with it. */
function raw(
  name: string,
  use: (socket: Socket, world: World, signal: AbortSignal) => Promise<number>,
  many = 4,
): Attack {
  return {
    name,
    async run(world, { connections }, signal) {
      let sent = 0;
      let opened = 0;
      const lane = async () => {
        while (!signal.aborted) {
          const socket = world.openSocket();
          opened += 1;
          await happens([socket, "connect"], [socket, "close"]);
          sent += await use(socket, world, signal);
          socket.destroy();
          await turn();
        }
      };
      await Promise.all(Array.from({ length: Math.min(many, connections) }, lane));
      return `${sent} sent, ${opened} connections`;
    },
  };
}

const hello = Buffer.concat([PREFACE, settingsFrame([])]);
const listOf = (path: string) => [
  ...[":method", "POST", ":scheme", "http", ":path", path, "content-type", "application/grpc", "te", "trailers"],
];
const VERIFY_FIELDS = listOf(VERIFY_PATH);
const fieldsOf = (path: string) => encodeFields(listOf(path));

/** Sends `portion` again and again for as long as the connection takes it; answers are read, or not. */
function frames(name: string, portion: (round: number) => Buffer, perPortion: number, reads = true): Attack {
  return raw(name, async (socket, _world, signal) => {
    if (reads) socket.resume();
    else socket.pause();
    socket.write(hello);
    let sent = 0;
    for (let round = 0; !signal.aborted && !socket.destroyed; round += 1) {
      const taken = socket.write(portion(round));
      sent += perPortion;
      if (!taken) await Promise.race([happens([socket, "drain"], [socket, "close"]), sleep(250)]);
      else await turn();
    }
    return sent;
  });
}

const BURST = 100;

function resets(path: string): (round: number) => Buffer {
  const block = fieldsOf(path);
  return (round) =>
    Buffer.concat(
      Array.from({ length: BURST }, (_, index) => {
        const id = (round * BURST + index) * 2 + 1;
        return Buffer.concat([headersFrames(0, id, block), frame(Type.RST_STREAM, 0, id, number32(8))]);
      }),
    );
}

const settings = settingsFrame([[4, 65_535]]);
const ping = frame(Type.PING, 0, 0, Buffer.alloc(8));
const many = (bytes: Buffer) => Buffer.concat(Array.from({ length: BURST }, () => bytes));

/** Each opens, says a little each 100 ms, and never comes to an end. */
function slow(name: string, first: string | Buffer, more: string): Attack {
  return {
    name,
    async run(world, { connections }, signal) {
      const sockets = Array.from({ length: connections }, () => world.openSocket());
      for (const socket of sockets) socket.pause().write(first);
      while (!signal.aborted) {
        for (const socket of sockets) if (socket.writable && more !== "") socket.write(more);
        await sleep(100);
      }
      return `${sockets.length} connections`;
    },
  };
}

/** What is sent again and again; where its frames have their stream's number, if they are frames. */
interface Repeated {
  hello: Buffer;
  call: Buffer;
  ids: number[];
}

function http1(method: string, path: string, body = ""): Repeated {
  const headers = `host: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n`;
  const call = Buffer.from(`${method} ${path} HTTP/1.1\r\n${body === "" ? "host: x\r\n" : headers}\r\n${body}`);
  return { hello: EMPTY, call, ids: [] };
}

const MAX_WINDOW = 2 ** 31 - 1;
const wide = Buffer.concat([
  PREFACE,
  settingsFrame([[4, MAX_WINDOW]]),
  frame(Type.WINDOW_UPDATE, 0, 0, number32(MAX_WINDOW - 65_535)),
]);

function http2(path: string, body: string): Repeated {
  const json = [":method", "POST", ":scheme", "http", ":path", path, "content-type", "application/json"];
  const head = headersFrames(0, 1, encodeFields(json));
  return {
    hello: wide,
    call: Buffer.concat([head, frame(Type.DATA, Flag.END_STREAM, 1, Buffer.from(body))]),
    ids: [5, head.length + 5],
  };
}

const GREEDY = 20;

/** Calls without end, on twenty connections. */
function greedy(name: string, what: (world: World) => Repeated, reads = true): Attack {
  return {
    name,
    async run(world, { connections }, signal) {
      const [host, port] = world.address.split(":");
      const workerData = {
        ...{ host, port: Number(port), connections: Math.min(GREEDY, connections), calls: 50, reads },
        ...what(world),
      };
      const worker = new Worker("./test/attacks/greedy.js", { workerData });
      if (!signal.aborted) await once(signal, "abort");
      worker.postMessage("end");
      const [sent] = (await once(worker, "message")) as [number];
      await worker.terminate();
      return `${sent} calls`;
    },
  };
}

const verifyOf = ({ good }: World) => JSON.stringify({ key: good });

/** Of headers that a server may wish to remember: all of them different, and as long as allowed. */
const longHeaders: Attack = {
  name: "headers of 15 KB, sixteen kinds on each connection",
  async run(world, { connections }, signal) {
    const body = Buffer.concat([Buffer.of(0, 0, 0, 0, 0)]);
    const sockets = Array.from({ length: connections }, () => world.openSocket().resume());
    for (const [index, socket] of sockets.entries()) {
      const calls = Array.from({ length: 16 }, (_, kind) => {
        const filler = `${index} ${kind} `.padEnd(15_000, "x");
        const block = encodeFields([...VERIFY_FIELDS, "x-filler", filler]);
        const id = kind * 2 + 1;
        return Buffer.concat([headersFrames(0, id, block), frame(Type.DATA, Flag.END_STREAM, id, body)]);
      });
      socket.write(Buffer.concat([hello, ...calls]));
      await turn();
    }
    if (!signal.aborted) await once(signal, "abort");
    return `${connections} connections`;
  },
};

const idle: Attack = {
  name: "idle connections",
  async run(world, size, signal) {
    let open = 0;
    for (let left = size.idle; left > 0 && !signal.aborted; left -= 100) {
      const sockets = Array.from({ length: Math.min(100, left) }, () => world.openSocket());
      const connected = await Promise.all(sockets.map((socket) => happens([socket, "connect"], [socket, "close"])));
      for (const socket of sockets) socket.write(hello);
      open += connected.length;
    }
    if (!signal.aborted) await once(signal, "abort");
    return `${open} HTTP/2 connections`;
  },
};

const bomb = gzipSync(Buffer.alloc(50 * 1024 * 1024, " "), { level: 9 });
const envelopedBomb = Buffer.concat([Buffer.of(1), number32(bomb.length), bomb]);

function oversized(name: string, path: string, headers: object, body: Buffer, expected: RegExp): Attack {
  return {
    name,
    async run(world, _size, signal) {
      let sent = 0;
      while (!signal.aborted) {
        const session = world.openSession();
        await Promise.all(
          Array.from({ length: 4 }, async () => {
            const stream = session.request({ ":method": "POST", ":path": path, ...headers });
            let told = "";
            stream.on("response", (all) => {
              told += JSON.stringify(all);
            });
            stream.on("trailers", (all) => {
              told += JSON.stringify(all);
            });
            stream.on("data", (chunk: Buffer) => {
              told += chunk.toString("latin1");
            });
            stream.on("error", () => {});
            stream.end(body);
            await happens([stream, "close"]);
            if (told !== "" && !expected.test(told)) throw new Error(`${name} was answered: ${told.slice(0, 300)}`);
            sent += 1;
          }),
        );
        session.destroy();
      }
      return `${sent} sent`;
    },
  };
}

const grpc = { "content-type": "application/grpc", te: "trailers" };
const CREATE_PATH = "/latchkey.v1.ApiKeyService/Create";

export const ATTACKS: readonly Attack[] = [
  verifyFlood("beside an equal client that asks about good keys", ({ other }) => other, /OUTCOME_VALID/),
  verifyFlood("garbage: bad checksums", ({ other }) => badChecksum(other), /OUTCOME_MALFORMED/),
  verifyFlood("garbage: ids that nobody has", unknownKey, /OUTCOME_NOT_FOUND|OVERLOADED/),
  verifyFlood("wrong secrets of a known id", ({ other }) => wrongSecret(other), /OUTCOME_NOT_FOUND/),
  tokenFlood("JWT with alg none", async () => `${part({ alg: "none" })}.${part(claims)}.`),
  tokenFlood("JWT signed with another key", () => userToken("good", { secret: "x".repeat(40), claims })),
  tokenFlood("JWT for another audience", () =>
    userToken("good", { secret: "a-secret-of-the-attacks-that-is-long-enough", claims: { aud: "others" } }),
  ),
  tokenFlood("JWT of 12,000 characters", async () => `${part({ alg: "HS256" })}.${"A".repeat(12_000)}.AA`),
  frames("rapid reset of Verify", resets(VERIFY_PATH), BURST),
  frames("rapid reset of other methods", resets(GET_PATH), BURST),
  frames(
    "CONTINUATION without end",
    (round) =>
      round === 0
        ? frame(Type.HEADERS, 0, 1, fieldsOf(VERIFY_PATH))
        : many(frame(Type.CONTINUATION, 0, 1, Buffer.of(0))),
    BURST,
  ),
  frames("SETTINGS", () => many(settings), BURST),
  frames("SETTINGS, acknowledgements unread", () => many(settings), BURST, false),
  frames("PING, acknowledgements unread", () => many(ping), BURST, false),
  frames(
    "HEADERS of 200 KB",
    () => headersFrames(0, 1, encodeFields([":method", "POST", "x", "y".repeat(200_000)])),
    1,
  ),
  slow("slow headers over HTTP/1.1", "POST / HTTP/1.1\r\nhost: x\r\n", "x-a: b\r\n"),
  slow(
    "slow bodies over HTTP/1.1",
    `POST ${VERIFY_PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n`,
    " ",
  ),
  slow("slow headers over HTTP/2", Buffer.concat([hello, frame(Type.HEADERS, 0, 1, fieldsOf(VERIFY_PATH))]), ""),
  slow(
    "slow bodies over HTTP/2",
    Buffer.concat([
      hello,
      ...Array.from({ length: BURST }, (_, index) => headersFrames(0, index * 2 + 1, fieldsOf(VERIFY_PATH))),
    ]),
    "",
  ),
  greedy("greedy: Verify over HTTP/1.1 without end, on 20 connections", (world) =>
    http1("POST", VERIFY_PATH, verifyOf(world)),
  ),
  greedy("greedy: Verify over HTTP/2 without end, on 20 connections", (world) => http2(VERIFY_PATH, verifyOf(world))),
  greedy("greedy: Get over HTTP/1.1 without end, on 20 connections", () => http1("POST", GET_PATH, "{}")),
  greedy("greedy: Get over HTTP/2 without end, on 20 connections", () => http2(GET_PATH, "{}")),
  greedy("greedy: GET / over HTTP/1.1 without end, on 20 connections", () => http1("GET", "/")),
  greedy(
    "slow readers: Verify over HTTP/1.1 without end, and not a byte of the answers read",
    (world) => http1("POST", VERIFY_PATH, verifyOf(world)),
    false,
  ),
  greedy(
    "slow readers: Verify over HTTP/2 without end, and not a byte of the answers read",
    (world) => http2(VERIFY_PATH, verifyOf(world)),
    false,
  ),
  greedy(
    "slow readers: Get over HTTP/1.1 without end, and not a byte of the answers read",
    () => http1("POST", GET_PATH, "{}"),
    false,
  ),
  longHeaders,
  oversized(
    "messages of 8 MB",
    VERIFY_PATH,
    grpc,
    Buffer.concat([Buffer.of(0), number32(8_000_000), Buffer.alloc(8_000_000)]),
    /"grpc-status":"8"/,
  ),
  oversized(
    "decompression bombs over Connect (50 MB of gzip)",
    CREATE_PATH,
    { "content-type": "application/json", "content-encoding": "gzip" },
    bomb,
    /resource_exhausted|unauthenticated/,
  ),
  oversized(
    "decompression bombs over gRPC (50 MB of gzip)",
    VERIFY_PATH,
    { ...grpc, "grpc-encoding": "gzip" },
    envelopedBomb,
    /"grpc-status":"8"/,
  ),
  idle,
];
