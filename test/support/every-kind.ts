import { once } from "node:events";
import type { ServerResponse } from "node:http";
import type { Http2ServerRequest } from "node:http2";
import { type Duplex, duplexPair } from "node:stream";
import { expect } from "@jest/globals";
import type { FastAnswer, FastCall, FastMethod } from "../../src/fastpath/fast-method.ts";
import { Fault, frame, number32, Type } from "../../src/fastpath/http2/frames.ts";
import type { ListenerLimits } from "../../src/fastpath/limits.ts";
import { type Listener, listen } from "../../src/fastpath/listen.ts";
import { createConnectionServer, type ServerOptions } from "../../src/fastpath/server.ts";
import { loadTls } from "../../src/service/tls-files.ts";
import {
  data,
  type FrameClient,
  type FrameClientOptions,
  frameClient,
  inEnvelope,
  openFrameClient,
  requestHeaders,
} from "./frame-client.ts";

/** For `afterEach`: what the tests of a file have opened. */
export const cleanUps: (() => unknown)[] = [];
export async function cleanUp(): Promise<void> {
  for (const clean of cleanUps.splice(0).reverse()) await clean();
}

interface Held {
  call: FastCall;
  signal: AbortSignal;
  resolve(answer: FastAnswer): void;
  reject(reason: Error): void;
}

/** Fast methods of every kind; all else, and what they leave to it, gets its own body back as `other:…`. */
function everyKind() {
  const held: Held[] = [];
  const counts = { size: 0, echo: 0, beforeEcho: 0 };
  /** Called with the first call of /fast/size. */
  const hooks = { first: () => {} };
  const node = { calls: 0, closed: 0 };
  const letterbox: ServerResponse[] = [];
  const fast: FastMethod[] = [
    {
      path: "/fast/echo",
      answer({ message }) {
        counts.echo += 1;
        counts.beforeEcho = counts.size;
        return { message: Buffer.from(message) };
      },
    },
    {
      path: "/fast/roomy",
      answer: ({ message }) => ({ message: Buffer.concat([Buffer.alloc(5), message]), roomy: true }),
    },
    {
      path: "/fast/size",
      answer({ message }) {
        counts.size += 1;
        if (counts.size === 1) hooks.first();
        return { message: pattern(Number(message)) };
      },
    },
    { path: "/fast/who", answer: ({ headers }) => ({ message: Buffer.from(String(headers.authorization)) }) },
    { path: "/fast/none", answer: () => undefined },
    {
      path: "/fast/held",
      answer: (call) => new Promise((resolve, reject) => held.push({ call, signal: call.signal(), resolve, reject })),
    },
    {
      path: "/fast/soon",
      answer: async ({ message }) => {
        const copy = Buffer.from(message);
        await new Promise((resolve) => setImmediate(resolve));
        return { message: copy };
      },
    },
    {
      path: "/fast/throws",
      answer: () => {
        throw new Error("not to be told");
      },
    },
    { path: "/fast/rejects", answer: async () => Promise.reject(new Error("not to be told")) },
  ];
  const options: ServerOptions = {
    fast,
    handler: async (request, answer) => {
      node.calls += 1;
      const response = answer as ServerResponse;
      response.once("close", () => {
        node.closed += 1;
      });
      if (request.url === "/node/held") return void letterbox.push(response);
      // node:http2 may reset a stream before its answer's end when nobody reads the request.
      if (request.url !== "/node/echo" && request.url?.startsWith("/node/")) request.on("error", () => {}).resume();
      if (request.url?.startsWith("/node/size/"))
        return void response.end(pattern(Number(request.url.slice("/node/size/".length))));
      if (request.url === "/node/refused") return void response.writeHead(200, REFUSAL).end();
      if (request.url === "/node/refused-late") {
        response.writeHead(200, REFUSAL);
        return void setTimeout(() => response.end(), 5);
      }
      if (request.url === "/node/headers") return void response.writeHead(200, { long: "x".repeat(40_000) }).end();
      response.write("other:");
      (request as Http2ServerRequest).on("error", () => {}).pipe(answer as never);
    },
  };
  return { options, held, node, letterbox, counts, hooks };
}

/** gRPC's answer in headers alone. */
const REFUSAL = { "content-type": "application/grpc", "grpc-status": "12", "grpc-message": "no such method" };

const PATTERN = Buffer.from(Array.from({ length: 251 }, (_, index) => index));

export function pattern(length: number): Buffer {
  return Buffer.alloc(length, PATTERN);
}

/** At a port. */
export async function startAtPort(limits: Partial<ListenerLimits> = {}, secure = false) {
  const { options, ...seen } = everyKind();
  const certFile = "test/support/tls/server-cert.pem";
  const tls = secure ? loadTls({ certFile, keyFile: "test/support/tls/server-key.pem" }) : undefined;
  const listener = await listen({ ...options, ...{ host: "127.0.0.1", port: 0, limits, tls } });
  cleanUps.push(() => listener.close(0));
  return { ...seen, listener, ca: tls?.cert as string | undefined };
}

export async function openAtPort(
  listener: Listener,
  options?: FrameClientOptions & { ca?: string | undefined },
): Promise<FrameClient> {
  const client = await openFrameClient(listener, options);
  cleanUps.push(() => client.socket.destroy());
  return client;
}

/** Without a socket: bytes go from one stream in memory to another. */
export function startInMemory(limits: Partial<ListenerLimits> = {}) {
  const { options, ...seen } = everyKind();
  const server = createConnectionServer({ ...options, limits });
  const connections = new Set<Duplex>();
  const listener = {
    connect(): Duplex {
      const [client, served] = duplexPair();
      client.once("end", () => client.destroy());
      connections.add(served);
      served.once("close", () => connections.delete(served));
      server.serveHttp2(served);
      return client;
    },
    /** Resolves when all connections have ended. */
    async close(): Promise<void> {
      server.drain();
      await Promise.all([...connections].map((connection) => once(connection, "close")));
      server.stop();
    },
  };
  cleanUps.push(() => {
    for (const connection of connections) connection.destroy();
    server.stop();
  });
  return { ...seen, listener };
}

export function openInMemory(listener: { connect(): Duplex }, options?: FrameClientOptions): FrameClient {
  const client = frameClient(listener.connect(), options);
  cleanUps.push(() => client.socket.destroy());
  return client;
}

export const call = (id: number, path: string, message: string | Uint8Array = "", more: string[] = []) =>
  Buffer.concat([requestHeaders(id, { path, more }), data(id, inEnvelope(message))]);
export const nodeCall = (id: number, path: string, body = "") =>
  Buffer.concat([requestHeaders(id, { path, type: "text/plain" }), data(id, Buffer.from(body))]);
export const reset = (id: number) => frame(Type.RST_STREAM, 0, id, number32(Fault.CANCEL));

export const isOver = (client: FrameClient, ...ids: number[]) =>
  ids.every((id) => client.stream(id).ended || client.stream(id).resetBy !== undefined);
export const field = (client: FrameClient, id: number, name: string) =>
  client.stream(id).fields.find(([found]) => found === name)?.[1];

/** Waits for streams that are to end well, and checks that the server kept to the rules. */
export async function answersOf(client: FrameClient, ...ids: number[]): Promise<Buffer[]> {
  await client.until(() => isOver(client, ...ids));
  expect(client.faults).toEqual([]);
  return ids.map((id) => {
    expect([id, client.stream(id).resetBy]).toEqual([id, undefined]);
    return client.stream(id).body;
  });
}

export async function untilTrue(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 2));
}
