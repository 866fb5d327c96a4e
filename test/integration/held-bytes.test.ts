import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { ConnectRouter, Interceptor } from "@connectrpc/connect";
import { afterEach, expect, test } from "@jest/globals";
import { Health } from "#gen/health/v1/health_pb";
import { createRequestHandler } from "../../src/edge/connect/adapter.ts";
import { undecodable } from "../../src/edge/connect/strict-decoding.ts";
import { toConnectError } from "../../src/edge/errors.ts";
import { HeldBytes } from "../../src/fastpath/held-bytes.ts";
import { type Listener, listen } from "../../src/fastpath/listen.ts";

// Requests that are not whole, before anything says who sends them: what they hold together is bounded, by whichever of the readers.

const MAX_HELD = 10_000;
const FAST = "/grpc.health.v1.Health/Check";
const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(): Promise<Listener> {
  const held = new HeldBytes(MAX_HELD);
  const routes = (router: ConnectRouter) => router.service(Health, { check: () => ({}), list: () => ({}) });
  const handler = createRequestHandler({ held, interceptors: [refuse], maxMessageBytes: 64 * 1024, routes });
  const fast = [{ path: FAST, answer: () => ({ message: Buffer.from("{}") }) }];
  const listener = await listen({ host: "127.0.0.1", port: 0, fast, handler, held });
  cleanUps.push(() => listener.close(0));
  return listener;
}

const refuse: Interceptor = (next) => (request) => {
  const fault = request.contextValues.get(undecodable);
  if (fault !== undefined) throw toConnectError(fault, "");
  return next(request);
};

const BODY = `"${"x".repeat(7_998)}"`;

interface Sender {
  socket: Socket;
  /** So many bytes more of the request. */
  send(bytes: number): Promise<void>;
  answer(): Promise<{ status: number; text: string }>;
}

async function open({ address }: Listener, path: string, headers: string): Promise<Sender> {
  const socket = connect({ host: "127.0.0.1", port: Number(address.split(":")[1]), noDelay: true });
  socket.on("error", () => {});
  cleanUps.push(() => socket.destroy());
  let came = "";
  socket.on("data", (chunk) => {
    came += chunk;
  });
  await once(socket, "connect");
  socket.write(
    `POST ${path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n${headers}Content-Length: ${BODY.length}\r\n\r\n`,
  );
  let sent = 0;
  return {
    socket,
    async send(bytes) {
      socket.write(BODY.slice(sent, sent + bytes));
      sent += bytes;
      // So that it comes in a piece of its own.
      await sleep(50);
    },
    async answer() {
      while (!/\r\n\r\n./.test(came)) await sleep(5);
      return { status: Number(came.split(" ")[1]), text: came };
    },
  };
}

test.each([
  ["our own reader", FAST, ""],
  ["a fast method at Node's server", FAST, "Connection: x-other\r\n"],
  ["Connect", "/grpc.health.v1.Health/List", ""],
])(
  "%s: a request for which there is no room is OVERLOADED; others go on, and what is over makes room",
  async (_reader, path, headers) => {
    const listener = await start();
    const first = await open(listener, path, headers);
    await first.send(3_000);
    await first.send(3_000);
    const second = await open(listener, path, headers);
    await second.send(3_000);
    await second.send(3_000);
    // Connect reads a body to its end before it answers.
    await second.send(2_000);
    const refusal = await second.answer();
    expect(refusal.status).toBe(429);
    expect(refusal.text).toMatch(/resource_exhausted/);
    await first.send(2_000);
    expect((await first.answer()).status).not.toBe(429);
    // A client that breaks off makes room too.
    const third = await open(listener, path, headers);
    await third.send(3_000);
    await third.send(3_000);
    third.socket.destroy();
    await sleep(50);
    const fourth = await open(listener, path, headers);
    await fourth.send(3_000);
    await fourth.send(3_000);
    await fourth.send(2_000);
    expect((await fourth.answer()).status).not.toBe(429);
  },
);
