import { once } from "node:events";
import type { ServerResponse } from "node:http";
import { connect, type Socket } from "node:net";
import { afterEach, describe, expect, test } from "@jest/globals";
import type { FastAnswer, FastMethod } from "../../src/fastpath/fast-method.ts";
import type { ListenerLimits } from "../../src/fastpath/limits.ts";
import { type Listener, listen } from "../../src/fastpath/listen.ts";

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

interface Held {
  signal: AbortSignal;
  resolve(answer: FastAnswer): void;
}

/**
 * A listener whose `/fast` gives its body back, as does everything else. With `isFast: false`, node:http alone serves it, to
 * the same effect: what a client gets is byte for byte the same.
 */
async function start({ isFast = true, limits = {} }: { isFast?: boolean; limits?: Partial<ListenerLimits> } = {}) {
  const seen: string[] = [];
  /** Called with the second request. */
  const hooks = { second: () => {} };
  const see = (request: string) => {
    if (seen.push(request) === 2) hooks.second();
  };
  const held: Held[] = [];
  const counts = { fast: 0, node: 0, large: 0 };
  const fast: FastMethod[] = [
    {
      path: "/fast",
      answer({ message, headers }) {
        counts.fast += 1;
        see(`/fast ${headers.authorization ?? ""} ${message}`);
        return { message: Buffer.from(message) };
      },
    },
    { path: "/none", answer: () => undefined },
    {
      path: "/large",
      answer({ message }) {
        counts.large += 1;
        return { message: Buffer.alloc(Number(message), "x") };
      },
    },
    {
      path: "/soon",
      async answer({ message }) {
        counts.fast += 1;
        const copy = Buffer.from(message);
        await new Promise((resolve) => setImmediate(resolve));
        return { message: copy };
      },
    },
    {
      path: "/held",
      answer: (call) => new Promise((resolve) => held.push({ signal: call.signal(), resolve })),
    },
  ];
  const listener = await listen({
    ...{ host: "127.0.0.1", port: 0, fast: isFast ? fast : [], limits },
    async handler(request, answer) {
      const response = answer as ServerResponse;
      counts.node += 1;
      const chunks: Buffer[] = [];
      request.on("error", () => {});
      try {
        for await (const chunk of request) chunks.push(chunk);
      } catch {
        return;
      }
      const body = Buffer.concat(chunks);
      see(`${request.url} ${request.headers.authorization ?? ""} ${body}`);
      response.writeHead(200, {
        "cache-control": "no-store",
        "content-length": body.length,
        "content-type": "application/json",
      });
      response.end(body);
    },
  });
  cleanUps.push(() => listener.close(0));
  return { ...{ listener, seen, held, counts, hooks } };
}

function open({ address }: Listener): Socket {
  const socket = connect({ host: "127.0.0.1", port: Number(address.split(":")[1]), noDelay: true });
  socket.on("error", () => {});
  cleanUps.push(() => socket.destroy());
  return socket;
}

/** All that comes until the connection ends, but for the date. */
async function allFrom(socket: Socket): Promise<string> {
  let text = "";
  socket.on("data", (chunk) => {
    text += chunk.toString("latin1");
  });
  await once(socket, "close");
  return text.replace(/Date: .*/g, "Date: …");
}

async function untilTrue(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}

const post = (path: string, body: string, headers = "") =>
  `POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n${headers}Content-Length: ${body.length}\r\n\r\n${body}`;
/** Calls that fit into one read of 64 KiB. */
const MANY = 500;

const FIRST = "GET /first HTTP/1.1\r\nHost: x\r\n\r\n";
const LAST = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

describe("requests on one connection", () => {
  test("of a fast method are served without node:http, and their connection is kept", async () => {
    const { listener, counts } = await start();
    const socket = open(listener);
    const answers = allFrom(socket);
    socket.write(post("/fast", "one"));
    await untilTrue(() => counts.fast === 1);
    socket.write(post("/fast", "two", "Connection: Keep-Alive\r\n") + post("/fast", "three") + post("/soon", "four"));
    await untilTrue(() => counts.fast === 4);
    expect(counts).toMatchObject({ fast: 4, node: 0 });
    socket.write(LAST);
    expect((await answers).match(/one|two|three|four/g)).toEqual(["one", "two", "three", "four"]);
    expect(counts).toMatchObject({ fast: 4, node: 1 });
  });

  test("are served alike wherever the packets end, fast and others together", async () => {
    const bytes = Buffer.from(
      post("/fast", "first") + post("/soon", "second") + post("/none", "3rd") + post("/fast", "4") + LAST,
    );
    const alone = await start({ isFast: false });
    const both = await start();
    const whole = open(alone.listener);
    whole.write(bytes);
    const expected = await allFrom(whole);
    expect(expected.match(/HTTP\/1.1 200/g)).toHaveLength(5);
    for (let from = 0; from < bytes.length; from += 40) {
      const splits = Array.from({ length: Math.min(40, bytes.length - from) }, (_, index) => from + index);
      const answers = await Promise.all(
        splits.map(async (at) => {
          const socket = open(both.listener);
          const answer = allFrom(socket);
          await once(socket, "connect");
          socket.write(bytes.subarray(0, at));
          await new Promise((resolve) => setImmediate(resolve));
          socket.write(bytes.subarray(at));
          return answer;
        }),
      );
      for (const answer of answers) expect(answer).toBe(expected);
    }
  });

  test("a request byte by byte", async () => {
    const { listener } = await start();
    const socket = open(listener);
    const answer = allFrom(socket);
    for (const byte of Buffer.from(post("/fast", "slowly") + LAST)) {
      socket.write(Buffer.of(byte));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await answer).toMatch(/slowly/);
  });

  test("what comes while a call is answered waits for its turn, however much it is", async () => {
    const { listener, held, counts } = await start();
    const socket = open(listener);
    const answers = allFrom(socket);
    socket.write(post("/held", "x"));
    await untilTrue(() => held.length === 1);
    const many = Array.from({ length: 3_000 }, (_, index) => post("/fast", `n${index}`));
    socket.write(many.join("") + LAST);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(counts.fast).toBe(0);
    held[0]!.resolve({ message: Buffer.from("first") });
    const text = await answers;
    expect(text.match(/(?<=\n)(first|n\d+)(?=HTTP)/g)).toEqual(["first", ...many.map((_, index) => `n${index}`)]);
    expect(counts.fast).toBe(3_000);
  });
});

describe("a client that sends without waiting for answers", () => {
  test.each(["/fast", "/node"])("does not hold up another's call, and gets its own in order (%s)", async (path) => {
    const { listener, seen, hooks } = await start();
    const [greedy, other] = [open(listener), open(listener)];
    const answers = allFrom(greedy);
    const otherAnswers = allFrom(other);
    other.write(post("/fast", "hello"));
    await untilTrue(() => seen.length === 1);
    hooks.second = () => void other.write(post("/fast", "other") + LAST);
    const calls = Array.from({ length: MANY }, (_, index) => `n${index}`);
    greedy.write(calls.map((body) => post(path, body)).join("") + LAST);
    await otherAnswers;
    expect(seen.findIndex((call) => call.endsWith("other"))).toBeLessThan(MANY / 2);
    expect((await answers).match(/(?<=\n)n\d+(?=HTTP)/g)).toEqual(calls);
  });

  test("has so many requests of node:http's under way, and gets all answers in order", async () => {
    let open = 0;
    let most = 0;
    const release: (() => void)[] = [];
    const listener = await listen({
      ...{ host: "127.0.0.1", port: 0 },
      handler(request, answer) {
        open += 1;
        most = Math.max(most, open);
        release.push(() => {
          open -= 1;
          (answer as ServerResponse).end(request.url);
        });
      },
    });
    cleanUps.push(() => listener.close(0));
    const socket = connect({ host: "127.0.0.1", port: Number(listener.address.split(":")[1]) });
    cleanUps.push(() => socket.destroy());
    const answers = allFrom(socket);
    const paths = Array.from({ length: 500 }, (_, index) => `/p${index}`);
    socket.write(paths.map((path) => `GET ${path} HTTP/1.1\r\nHost: x\r\n\r\n`).join("") + LAST);
    let released = 0;
    while (released <= paths.length) {
      await untilTrue(() => release.length > released);
      // Not in the order in which they came.
      for (const one of release.slice(released).reverse()) one();
      released = release.length;
    }
    expect((await answers).match(/\/p\d+/g)).toEqual(paths);
    expect(most).toBeLessThan(25);
  });

  test("and does not read them has little of it served, and the rest when it does", async () => {
    const { listener, counts } = await start();
    const socket = open(listener);
    socket.pause();
    const calls = 40;
    socket.write(post("/large", "1000000").repeat(calls) + post("/fast", "x") + LAST);
    await untilTrue(() => counts.large > 0);
    let before = -1;
    while (before !== counts.large) {
      before = counts.large;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(counts.large).toBeLessThan(calls / 2);
    expect(counts.fast).toBe(0);
    const answers = allFrom(socket);
    socket.resume();
    expect((await answers).match(/HTTP\/1.1 200/g)).toHaveLength(calls + 2);
  });
});

describe("what node:http alone would do with a request is done", () => {
  const head = (lines: string) => `POST /fast HTTP/1.1\r\n${lines}`;
  const type = "Content-Type: application/json\r\n";
  const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
  const filler = " ".repeat(3_000);
  const CASES: Record<string, string> = {
    "two lengths": head(`Host: x\r\n${type}Content-Length: 5\r\nContent-Length: 4\r\n\r\nhello`),
    "one length twice": head(`Host: x\r\n${type}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello`),
    "a list of lengths": head(`Host: x\r\n${type}Content-Length: 5, 5\r\n\r\nhello`),
    "a length with a sign": head(`Host: x\r\n${type}Content-Length: +5\r\n\r\nhello`),
    "a length in hexadecimal": head(`Host: x\r\n${type}Content-Length: 0x5\r\n\r\nhello`),
    "a length with zeros": head(`Host: x\r\n${type}Content-Length: 0005\r\n\r\nhello`),
    "an empty length": head(`Host: x\r\n${type}Content-Length:\r\n\r\n`),
    "a huge length": head(`Host: x\r\n${type}Content-Length: 99999999999999999999\r\n\r\nhello`),
    "no length": head(`Host: x\r\n${type}\r\n`),
    "no length, and a request for a body": head(`Host: x\r\n${type}\r\n${smuggled}`),
    "a blank before the colon": head(`Host: x\r\n${type}Content-Length : 5\r\n\r\nhello`),
    "a tab after the colon": head(`Host: x\r\n${type}Content-Length:\t5\t\r\n\r\nhello`),
    "blanks about a length": head(`Host: x\r\n${type}Content-Length:   5   \r\n\r\nhello`),
    "no blank before a length": head(`Host: x\r\n${type}Content-Length:5\r\n\r\nhello`),
    "a blank within a length": head(`Host: x\r\n${type}Content-Length: 1 0\r\n\r\nhello`),
    "a tab in a value": head(`Host: x\r\n${type}X: \ta\tb\t\r\nContent-Length: 5\r\n\r\nhello`),
    "length and chunks": head(
      `Host: x\r\n${type}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${smuggled}`,
    ),
    "chunks and length": head(
      `Host: x\r\n${type}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n${smuggled}`,
    ),
    chunks: head(`Host: x\r\n${type}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n`),
    "unknown encoding": head(`Host: x\r\n${type}Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\nhello`),
    "encoding by another name": head(`Host: x\r\n${type}Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello`),
    "a folded header": head(`Host: x\r\n${type}X: a\r\n b\r\nContent-Length: 5\r\n\r\nhello`),
    "a folded length": head(`Host: x\r\n${type}Content-Length:\r\n 5\r\n\r\nhello`),
    "line feeds alone": head(`Host: x\r\n${type}Content-Length: 5\r\n\r\nhello`).replaceAll("\r\n", "\n"),
    "a line feed alone within": head(`Host: x\r\n${type}X: y\nContent-Length: 40\r\nContent-Length: 5\r\n\r\nhello`),
    "a carriage return alone within": head(
      `Host: x\r\n${type}X: y\rContent-Length: 40\r\nContent-Length: 5\r\n\r\nhello`,
    ),
    "an end of headers by line feeds": head(`Host: x\r\n${type}Content-Length: 5\n\n${smuggled}\r\n\r\n`),
    "NUL in a value": head(`Host: x\r\n${type}X: a\0b\r\nContent-Length: 5\r\n\r\nhello`),
    "NUL in a name": head(`Host: x\r\n${type}X\0: a\r\nContent-Length: 5\r\n\r\nhello`),
    "DEL in a value": head(`Host: x\r\n${type}X: a\x7fb\r\nContent-Length: 5\r\n\r\nhello`),
    "a control character in a value": head(`Host: x\r\n${type}X: a\x01b\r\nContent-Length: 5\r\n\r\nhello`),
    "bytes above ASCII in a value": head(`Host: x\r\n${type}X: \xe4\xff\r\nContent-Length: 5\r\n\r\nhello`),
    "bytes above ASCII in a name": head(`Host: x\r\n${type}\xe4: x\r\nContent-Length: 5\r\n\r\nhello`),
    "an empty name": head(`Host: x\r\n${type}: x\r\nContent-Length: 5\r\n\r\nhello`),
    "an empty value": head(`Host: x\r\n${type}X:\r\nContent-Length: 5\r\n\r\nhello`),
    "a line without a colon": head(`Host: x\r\n${type}X\r\nContent-Length: 5\r\n\r\nhello`),
    "a bracket in a name": head(`Host: x\r\n${type}(X): y\r\nContent-Length: 5\r\n\r\nhello`),
    "no host": head(`${type}Content-Length: 5\r\n\r\nhello`),
    "two hosts": head(`Host: x\r\nHost: y\r\n${type}Content-Length: 5\r\n\r\nhello`),
    "an empty host": head(`Host:\r\n${type}Content-Length: 5\r\n\r\nhello`),
    "an absolute target": `POST http://x/fast HTTP/1.1\r\nHost: x\r\n${type}Content-Length: 5\r\n\r\nhello`,
    "a target with a fragment": `POST /fast#x HTTP/1.1\r\nHost: x\r\n${type}Content-Length: 5\r\n\r\nhello`,
    "a target with a query": `POST /fast?x HTTP/1.1\r\nHost: x\r\n${type}Content-Length: 5\r\n\r\nhello`,
    "a target with a blank": `POST /fast /x HTTP/1.1\r\nHost: x\r\n${type}Content-Length: 5\r\n\r\nhello`,
    "two blanks before the target": `POST  /fast HTTP/1.1\r\nHost: x\r\n${type}Content-Length: 5\r\n\r\nhello`,
    "another method": `PUT /fast HTTP/1.1\r\nHost: x\r\n${type}Content-Length: 5\r\n\r\nhello`,
    "a method in small letters": `post /fast HTTP/1.1\r\nHost: x\r\n${type}Content-Length: 5\r\n\r\nhello`,
    "HTTP/1.0": `POST /fast HTTP/1.0\r\nHost: x\r\n${type}Content-Length: 5\r\n\r\nhello`,
    "HTTP/1.2": `POST /fast HTTP/1.2\r\nHost: x\r\n${type}Content-Length: 5\r\n\r\nhello`,
    "HTTP/2.0": `POST /fast HTTP/2.0\r\nHost: x\r\n${type}Content-Length: 5\r\n\r\nhello`,
    "empty lines before": `\r\n\r\n${post("/fast", "hello")}`,
    "empty lines between": `${post("/fast", "hello")}\r\n\r\n${post("/fast", "again")}`,
    "connection: close": head(`Host: x\r\n${type}Connection: close\r\nContent-Length: 5\r\n\r\nhello${smuggled}`),
    "connection: keep-alive, close": head(
      `Host: x\r\n${type}Connection: keep-alive, close\r\nContent-Length: 5\r\n\r\nhello`,
    ),
    "an upgrade": head(
      `Host: x\r\n${type}Connection: upgrade, close\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello`,
    ),
    "expect: 100-continue": head(`Host: x\r\n${type}Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello`),
    "another expectation": head(`Host: x\r\n${type}Expect: more\r\nContent-Length: 5\r\n\r\nhello`),
    "two authorizations": head(
      `Host: x\r\n${type}Authorization: a\r\nAuthorization: b\r\nContent-Length: 5\r\n\r\nhello`,
    ),
    "headers that are too large": head(`Host: x\r\n${type}X: ${"x".repeat(17_000)}\r\nContent-Length: 5\r\n\r\nhello`),
    "many headers": head(`Host: x\r\n${type}${"X: y\r\n".repeat(200)}Content-Length: 5\r\n\r\nhello`),
    "blanks by the thousand": head(`Host: x\r\n${type}X: a${filler}b${filler}\r\nContent-Length: 5\r\n\r\nhello`),
    "a pseudo-header": head(`Host: x\r\n${type}:path: /smuggled\r\nContent-Length: 5\r\n\r\nhello`),
    "a prototype for a name": head(`Host: x\r\n${type}__proto__: y\r\nContent-Length: 5\r\n\r\nhello`),
    "garbage in a body": post("/fast", "\r\n\r\nPOST /fast HTTP/1.1\r\n\r\n"),
    "a large body": post("/fast", "x".repeat(70_000)),
    "an empty body": post("/fast", ""),
  };

  test.each(Object.keys(CASES))("%s", async (name) => {
    const outcomes: object[] = [];
    // A connection whose first request is not plain is node:http's for good.
    for (const first of [FIRST, post("/fast", "before")]) {
      const { listener, seen } = await start({ limits: { idleTimeoutMs: 3_000 } });
      const socket = open(listener);
      socket.write(first);
      await once(socket, "data");
      const text = allFrom(socket);
      socket.write(Buffer.from(CASES[name]! + LAST, "latin1"));
      // node:http begins with the next before it is done with one.
      outcomes.push({ text: await text, seen: seen.slice(1).sort() });
    }
    expect(outcomes[1]).toEqual(outcomes[0]);
  });

  test("bytes beyond a request's length are another request, and none ends the connection", async () => {
    const { listener, seen } = await start();
    const socket = open(listener);
    socket.write(`${post("/fast", "hello")}xyz${LAST}`);
    expect(await allFrom(socket)).toMatch(/\r\nhelloHTTP\/1.1 400 Bad Request\r\nConnection: close\r\n\r\n$/);
    expect(seen).toEqual(["/fast  hello"]);
  });

  test("a body that never comes: 408", async () => {
    const texts: string[] = [];
    for (const first of [FIRST, post("/fast", "before")]) {
      const { listener } = await start({ limits: { headersTimeoutMs: 50, requestTimeoutMs: 100 } });
      const socket = open(listener);
      socket.write(first);
      await once(socket, "data");
      socket.write(post("/fast", "hello").slice(0, -1));
      texts.push(await allFrom(socket));
    }
    expect(texts[1]).toBe(texts[0]);
    expect(texts[1]).toBe("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n");
  });
});

describe("a connection", () => {
  test("whose body comes in drops, but not in time, gets a 408 all the same", async () => {
    const { listener } = await start({ limits: { requestTimeoutMs: 100 } });
    const socket = open(listener);
    const answer = allFrom(socket);
    socket.write(post("/fast", "x".repeat(60_000)).slice(0, 200));
    const drops = setInterval(() => socket.write("x"), 10);
    cleanUps.push(() => clearInterval(drops));
    expect(await answer).toMatch(/^HTTP\/1.1 408 /);
  });

  test("that was idle for longer than a request may take has the time of a request for its next", async () => {
    const { listener, counts } = await start({ limits: { requestTimeoutMs: 300, idleTimeoutMs: 60_000 } });
    const socket = open(listener);
    const answer = allFrom(socket);
    socket.write(post("/fast", "one"));
    await untilTrue(() => counts.fast === 1);
    await new Promise((resolve) => setTimeout(resolve, 700));
    const bytes = post("/fast", "two");
    socket.write(bytes.slice(0, -1));
    // A sweep sees half of it.
    await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setTimeout(resolve, 20));
    socket.write(bytes.slice(-1) + LAST);
    expect(await answer).not.toMatch(/ 408 /);
  });

  test("without a request for the idle time is closed", async () => {
    const { listener } = await start({ limits: { idleTimeoutMs: 50 } });
    const socket = open(listener);
    socket.write(post("/fast", "x"));
    expect(await allFrom(socket)).toMatch(/^HTTP\/1.1 200 OK[\s\S]*x$/);
  });

  test("whose call takes longer than that is not", async () => {
    const { listener, held } = await start({ limits: { idleTimeoutMs: 30, requestTimeoutMs: 30 } });
    const socket = open(listener);
    const answer = allFrom(socket);
    socket.write(post("/held", "x"));
    await untilTrue(() => held.length === 1);
    await new Promise((resolve) => setTimeout(resolve, 150));
    held[0]!.resolve({ message: Buffer.from("at last") });
    expect(await answer).toMatch(/at last$/);
  });

  test("that its client breaks aborts the call that goes on", async () => {
    const { listener, held } = await start();
    const socket = open(listener);
    socket.write(post("/held", "x"));
    await untilTrue(() => held.length === 1);
    socket.resetAndDestroy();
    await untilTrue(() => held[0]!.signal.aborted);
    held[0]!.resolve({ message: Buffer.from("too late") });
  });

  test("on which its client sends nothing more gets the answers to what it asked, and ends with the last", async () => {
    const { listener, held } = await start();
    const socket = connect({ host: "127.0.0.1", port: Number(listener.address.split(":")[1]), allowHalfOpen: true });
    let text = "";
    socket.on("data", (chunk: Buffer) => {
      text += chunk.toString("latin1");
    });
    const closed = once(socket, "close");
    socket.end(post("/held", "x") + post("/held", "y") + post("/held", "z").slice(0, -1));
    for (const [index, body] of ["first", "second"].entries()) {
      await untilTrue(() => held.length > index);
      expect(held[index]!.signal.aborted).toBe(false);
      held[index]!.resolve({ message: Buffer.from(body) });
    }
    await closed;
    expect(text).toMatch(/first.*second$/s);
  });

  test("whose client does not read what node:http answers is cut", async () => {
    const { listener, counts } = await start({ limits: { requestTimeoutMs: 100 } });
    const socket = open(listener);
    socket.pause();
    // Not the plain case: it has another method.
    socket.write(post("/echo", "x".repeat(30_000_000)).replace("POST", "PUT"));
    await untilTrue(() => counts.node === 1);
    await listener.close(60_000);
  });

  test("whose client reads slowly gets a large answer in one write all the same", async () => {
    const { listener } = await start({ limits: { requestTimeoutMs: 1_000, maxMessageBytes: 64_000 } });
    const socket = open(listener);
    socket.write(post("/echo", "x".repeat(20_000_000)).replace("POST", "PUT") + LAST);
    let received = 0;
    socket.on("data", (chunk) => {
      received += chunk.length;
      socket.pause();
      setTimeout(() => socket.resume(), 10);
    });
    await new Promise((resolve) => socket.once("close", resolve));
    expect(received).toBeGreaterThan(20_000_000);
  });

  test("whose client does not read its answers is not read from, and cut in the end", async () => {
    const { listener, counts } = await start({ limits: { idleTimeoutMs: 200, requestTimeoutMs: 200 } });
    const socket = open(listener);
    socket.pause();
    const many = post("/large", "100000").repeat(100) + post("/soon", "x").repeat(100);
    for (let round = 0; round < 20; round++) socket.write(many);
    await listener.close(60_000).then(() => socket.resume());
    expect(counts.fast).toBeLessThan(2_000);
  });
});

describe("a drain", () => {
  test("lets the call under way finish, says so, and serves nothing after it", async () => {
    const { listener, held, seen } = await start();
    const socket = open(listener);
    const answer = allFrom(socket);
    socket.write(post("/held", "x"));
    await untilTrue(() => held.length === 1);
    socket.write(post("/fast", "beyond"));
    const idle = open(listener);
    idle.write(post("/fast", "idle"));
    const idled = allFrom(idle);
    await untilTrue(() => seen.length === 1);
    const closed = listener.close(60_000);
    expect(await idled).toMatch(/idle$/);
    held[0]!.resolve({ message: Buffer.from("finished") });
    const text = await answer;
    expect(text).toMatch(/Connection: close\r\n\r\nfinished$/);
    expect(seen).toHaveLength(1);
    await closed;
  });

  test.each(["/fast", "/none"])("lets a request to %s finish that is half sent", async (path) => {
    const { listener, seen } = await start();
    const socket = open(listener);
    const answer = allFrom(socket);
    const bytes = post(path, "half and half");
    socket.write(post("/fast", "first") + bytes.slice(0, -5));
    await untilTrue(() => seen.length === 1);
    const closed = listener.close(60_000);
    socket.write(bytes.slice(-5));
    expect(await answer).toMatch(/half and half$/);
    await closed;
  });
});
