import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";

/** What the network does to a connection. Nothing said: it is open, and no slower than it is. */
export interface Weather {
  /** Everything is reset, and nothing new gets through. */
  cut?: boolean;
  /** Connections stay open, and what is sent waits: in both directions, or in one. */
  blackHole?: "both" | "toServer" | "toClient";
  /** Each direction's delay in milliseconds. */
  delayMs?: { toServer?: number; toClient?: number };
}

export interface TcpProxy {
  readonly port: number;
  /** Changes the weather for the connections from `peer`, those that there are and those to come; without `peer`, for all. */
  set(weather: Weather, peer?: string): void;
  /** Connections at present, by peer. */
  connections(peer?: string): number;
  close(): Promise<void>;
}

export interface TcpProxyOptions {
  /** Port of the server on 127.0.0.1. */
  to: number;
  /** Names whoever connected from this port of 127.0.0.1 to the proxy's; undefined: nobody who is known, or not yet. Default: nobody is. */
  peerOf?: (port: number, proxyPort: number) => string | undefined;
  /** The name of all who are not known. */
  others?: string;
}

/** The system's table of sockets has gaps while it changes: who is not found in it is looked for again before anything is let through. */
const LOOK_AGAIN_MS = [0, 5, 20, 50, 100];

/** Bytes that wait in one direction; beyond, the sender is no longer read from, as TCP would have it. */
const MAX_HELD_BYTES = 4 * 1024 * 1024;

interface Link {
  readonly peer: string;
  drop(): void;
  changed(): void;
}

/** Stands between clients and a server on loopback, and can be told to fail. Begins open. */
export async function startTcpProxy({ to, peerOf, others = "others" }: TcpProxyOptions): Promise<TcpProxy> {
  const links = new Set<Link>();
  const byPeer = new Map<string, Weather>();
  let everyone: Weather = {};
  const weatherOf = (peer: string) => byPeer.get(peer) ?? everyone;
  const whoIs = async (client: Socket): Promise<string> => {
    for (const ms of peerOf === undefined ? [] : LOOK_AGAIN_MS) {
      if (ms > 0) await sleep(ms);
      // Reset already: it has no peer any more.
      const known = client.remotePort === undefined ? others : peerOf?.(client.remotePort, port);
      if (known !== undefined) return known;
    }
    return others;
  };

  const server = createServer({ allowHalfOpen: true, noDelay: true }, async (client) => {
    client.on("error", () => {});
    const peer = await whoIs(client);
    if (client.destroyed || weatherOf(peer).cut) {
      reset(client);
      return;
    }
    const upstream = connect({ host: "127.0.0.1", port: to, allowHalfOpen: true, noDelay: true });
    upstream.on("error", () => {});
    const there = pump(client, upstream, () => condition(weatherOf(peer), "toServer"));
    const back = pump(upstream, client, () => condition(weatherOf(peer), "toClient"));
    const link: Link = {
      peer,
      drop: () => {
        reset(client);
        reset(upstream);
      },
      changed: () => {
        there.changed();
        back.changed();
      },
    };
    links.add(link);
    const gone = () => {
      if (client.destroyed && upstream.destroyed) links.delete(link);
    };
    client.once("close", gone);
    upstream.once("close", gone);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };

  return {
    port,
    set(weather, peer) {
      if (peer === undefined) {
        everyone = weather;
        byPeer.clear();
      } else byPeer.set(peer, weather);
      for (const link of links) {
        if (weatherOf(link.peer).cut) link.drop();
        else link.changed();
      }
    },
    connections: (peer) => [...links].filter((link) => peer === undefined || link.peer === peer).length,
    async close() {
      for (const { drop } of links) drop();
      server.close();
      await once(server, "close");
    },
  };
}

/** Node (20 to 26) never closes a socket that is reset while its end is on its way: the process would not end either. */
function reset(socket: Socket): void {
  if (socket.writableEnded && !socket.writableFinished) socket.destroy();
  else socket.resetAndDestroy();
}

function condition({ blackHole, delayMs }: Weather, direction: "toServer" | "toClient") {
  return { blocked: blackHole === "both" || blackHole === direction, delayMs: delayMs?.[direction] ?? 0 };
}

/** Carries bytes, and then the end, from one socket to the other, in order, each when its time has come. */
function pump(from: Socket, to: Socket, now: () => { blocked: boolean; delayMs: number }): { changed(): void } {
  const held: { dueMs: number; deliver: () => void; bytes: number }[] = [];
  let heldBytes = 0;
  let timer: NodeJS.Timeout | undefined;

  const drain = () => {
    clearTimeout(timer);
    timer = undefined;
    if (now().blocked) return;
    while (held.length > 0 && held[0]!.dueMs <= performance.now()) {
      const { deliver, bytes } = held.shift()!;
      heldBytes -= bytes;
      deliver();
    }
    if (heldBytes < MAX_HELD_BYTES) from.resume();
    if (held.length > 0) timer = setTimeout(drain, Math.max(0, held[0]!.dueMs - performance.now()));
  };
  const hold = (deliver: () => void, bytes: number) => {
    held.push({ dueMs: performance.now() + now().delayMs, deliver, bytes });
    heldBytes += bytes;
    if (heldBytes >= MAX_HELD_BYTES) from.pause();
    drain();
  };

  from.on("data", (chunk: Buffer) => hold(() => void (to.destroyed || to.write(chunk)), chunk.length));
  from.on("end", () => hold(() => to.end(), 0));
  // After an orderly end the other side is closed by its own; a reset is passed on.
  from.on("close", (failed) => hold(() => void (failed ? reset(to) : to.end()), 0));
  return { changed: drain };
}
