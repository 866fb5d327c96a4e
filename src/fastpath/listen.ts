import { type AddressInfo, createServer, isIPv6, type Socket } from "node:net";
import { createServer as createTlsServer, type TLSSocket, type Server as TlsServer } from "node:tls";
import { defaultListenerLimits } from "./limits.ts";
import { notePeer, verifiedPeer } from "./peer.ts";
import { createConnectionServer, type ServerOptions } from "./server.ts";
import { sniff } from "./sniff.ts";

/** PEM: a certificate with those between it and its root, its key, and whose certificates clients may prove themselves by. */
export interface TlsIdentity {
  cert: string | Buffer;
  key: string | Buffer;
  ca?: string | Buffer | undefined;
}

interface ListenerOptions extends ServerOptions {
  host: string;
  /** 0: any free one. */
  port: number;
  /** Serves TLS alone; cleartext when left out. With a `ca`, clients are asked for a certificate, and may have none. */
  tls?: TlsIdentity | undefined;
}

export interface Listener {
  /** host:port as bound; an IPv6 host stands in brackets. */
  readonly address: string;
  /** Accepts all as before, as the connections' `dismiss`. */
  dismiss(): void;
  /** Accepts nothing more, lets open requests finish for at most `graceMs`, then cuts what is left. Idempotent. */
  close(graceMs: number): Promise<void>;
  /** For connections from now on. Only where TLS is served, and with a `ca` only where there was one. */
  renewTls(identity: TlsIdentity): void;
}

/**
 * One port for HTTP/1.1 and HTTP/2. In cleartext the first bytes tell which it is, with TLS the handshake does. Rejects with the
 * system's error where the address can't be had.
 */
export async function listen({ host, port, tls, ...options }: ListenerOptions): Promise<Listener> {
  const limits = { ...defaultListenerLimits, ...options.limits };
  const connections = createConnectionServer(options);
  const serve = (socket: Socket, isHttp2: boolean) => {
    if (isHttp2) connections.serveHttp2(socket);
    else connections.serveHttp1(socket);
  };
  let closing: Promise<void> | undefined;
  const sockets = new Set<Socket>();
  const undecided = new Set<Socket>();
  /** Connections in their handshake, by the peer's address: Node does not tell which of them a secure socket was. */
  const shaking = new Map<string, Socket>();
  const track = (socket: Socket) => {
    sockets.add(socket);
    undecided.add(socket);
    socket.once("close", () => {
      sockets.delete(socket);
      undecided.delete(socket);
    });
    socket.on("error", () => socket.destroy());
  };
  // Keep-alive probes find peers that vanished without a word while an answer was streamed to them.
  const tcp = { noDelay: true, keepAlive: true, keepAliveInitialDelay: limits.keepAliveProbeMs };
  const createCleartext = () =>
    createServer(tcp, (socket) => {
      track(socket);
      sniff(socket, limits.firstBytesTimeoutMs, (isHttp2) => {
        undecided.delete(socket);
        serve(socket, isHttp2);
      });
    });
  const createSecure = (identity: TlsIdentity) =>
    createTlsServer({
      ...{ ...tcp, ...identity, minVersion: OLDEST_TLS, ALPNProtocols: ["h2", "http/1.1"] },
      // A client without a certificate may still do what a user may.
      ...{ requestCert: identity.ca !== undefined, rejectUnauthorized: false },
      handshakeTimeout: limits.firstBytesTimeoutMs,
    })
      .on("connection", (socket: Socket) => {
        track(socket);
        const address = addressOf(socket);
        shaking.set(address, socket);
        socket.once("close", () => shaking.delete(address));
      })
      .on("tlsClientError", (_error, socket) => socket.destroy())
      .on("secureConnection", (socket: TLSSocket) => {
        const raw = shaking.get(addressOf(socket));
        if (raw !== undefined) undecided.delete(raw);
        socket.on("error", () => socket.destroy());
        notePeer(socket, verifiedPeer(socket));
        serve(socket, socket.alpnProtocol === "h2");
      });
  const server = tls === undefined ? createCleartext() : createSecure(tls);
  server.maxConnections = limits.maxConnections;

  await new Promise<void>((resolve, reject) => {
    server.once("error", reject).listen({ host, port }, resolve);
  }).catch((error: unknown) => {
    connections.stop();
    throw error;
  });
  server.on("error", () => {});
  const bound = server.address() as AddressInfo;

  /** One in the middle of a handshake has as long as that may take. */
  const endIdle = () => {
    for (const socket of undecided) if (socket.bytesRead === 0) socket.destroy();
    connections.endIdle();
  };
  return {
    address: formatAddress(bound.address, bound.port),
    renewTls(identity) {
      // Its tickets are sealed with new keys: no session of the old one is resumed, and with it no client that the old CA signed.
      (server as TlsServer).setSecureContext({ ...identity, minVersion: OLDEST_TLS });
    },
    dismiss: connections.dismiss,
    close(graceMs) {
      closing ??= new Promise((resolve) => {
        const cut = setTimeout(() => {
          for (const socket of sockets) socket.destroy();
        }, graceMs);
        const idle = setInterval(endIdle, Math.min(graceMs, LAST_REQUEST_MS));
        server.close(() => {
          clearTimeout(cut);
          clearInterval(idle);
          connections.stop();
          resolve();
        });
        connections.drain();
      });
      return closing;
    },
  };
}

/** For requests that were sent before their client could know. */
const LAST_REQUEST_MS = 500;
const OLDEST_TLS = "TLSv1.2";

/** host:port, an IPv6 host in brackets. */
export function formatAddress(host: string, port: number): string {
  return isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
}

function addressOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress} ${remotePort}`;
}
