import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { peerOf } from "../peer.ts";
import { sinkOf } from "../sink.ts";
import { Connection, type Http2Options } from "./connection.ts";

interface Http2Connections {
  /** `connection`: a socket, or anything else that carries bytes both ways. */
  serve(connection: Duplex): void;
  /** Asks every peer to go, and serves it until it knows; each connection ends when its open streams have. */
  drain(): void;
  stop(): void;
}

export function createHttp2Connections(options: Http2Options): Http2Connections {
  const connections = new Set<Connection>();
  const sweep = () => {
    const nowMs = performance.now();
    for (const connection of connections) connection.sweep(nowMs);
  };
  const everyMs = Math.min(1_000, options.requestTimeoutMs, options.idleTimeoutMs);
  const timer = setInterval(sweep, everyMs).unref();
  let draining = false;
  return {
    serve(duplex) {
      const { remoteAddress } = duplex as Partial<Socket>;
      const connection = new Connection(sinkOf(duplex), { peer: peerOf(duplex), remoteAddress }, options);
      connections.add(connection);
      duplex.on("data", (chunk: Buffer) => connection.receive(chunk));
      duplex.on("end", () => connection.end());
      duplex.once("close", () => {
        connections.delete(connection);
        connection.closed();
      });
      if (draining) connection.drain();
    },
    drain() {
      draining = true;
      for (const connection of connections) connection.drain();
    },
    stop: () => clearInterval(timer),
  };
}
