import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { type ClientHttp2Session, connect as connectHttp2 } from "node:http2";
import { connect, type Socket } from "node:net";
import { residentBytesOf } from "../bench/machine.ts";
import { VERIFY_PATH } from "../bench/messages.ts";
import { quantile } from "../bench/statistics.ts";
import { userToken } from "../support/service.ts";

/** A service of its own, and what is needed to ask it well and badly. */
export interface World {
  readonly address: string;
  readonly good: string;
  /** A key of another user, and one that was revoked. */
  readonly other: string;
  readonly revoked: string;
  residentBytes(): number;
  alive(): boolean;
  /** Connections and sessions that are ended with the attack. */
  openSocket(): Socket;
  openSession(): ClientHttp2Session;
  endConnections(): void;
  stop(): Promise<void>;
}

const JWT_SECRET = "a-secret-of-the-attacks-that-is-long-enough";

/** `cli`: the built `latchkey`; `env`: where its records are kept. */
export async function startWorld(cli: string, env: Record<string, string>): Promise<World> {
  const child = spawn(process.execPath, [cli, "serve"], {
    env: {
      ...{ PATH: process.env.PATH, HOME: process.env.HOME, LATCHKEY_LISTEN: "127.0.0.1:0", LATCHKEY_OPS_LISTEN: "off" },
      ...{ LATCHKEY_JWT_SECRET: JWT_SECRET, LATCHKEY_PEPPERS: `p:${Buffer.alloc(32, 1).toString("base64")}` },
      ...{ LATCHKEY_JWT_AUDIENCE: "users", ...env },
    },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const address = await addressOf(child);
  const sockets = new Set<Socket>();
  const sessions = new Set<ClientHttp2Session>();
  const call = async (user: string, method: string, body: object) => {
    const answer = await fetch(`http://${address}/latchkey.v1.ApiKeyService/${method}`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${await goodToken(user)}` },
      body: JSON.stringify(body),
    });
    if (!answer.ok) throw new Error(`${method}: ${await answer.text()}`);
    return (await answer.json()) as { key: string };
  };
  const keyOf = async (user: string) => (await call(user, "Create", { scopes: ["read"] })).key;
  const [good, other, revoked] = await Promise.all([keyOf("good"), keyOf("other"), keyOf("revoked")]);
  await call("revoked", "Revoke", {});
  const [host, port] = address.split(":");
  return {
    ...{ address, good: good!, other: other!, revoked: revoked! },
    residentBytes: () => residentBytesOf(child.pid!),
    alive: () => child.exitCode === null && child.signalCode === null,
    openSocket() {
      const socket = connect({ host: host!, port: Number(port) });
      sockets.add(socket);
      return socket
        .setMaxListeners(0)
        .on("error", () => {})
        .once("close", () => sockets.delete(socket));
    },
    openSession() {
      const session = connectHttp2(`http://${address}`);
      sessions.add(session);
      return session.on("error", () => {}).once("close", () => sessions.delete(session));
    },
    endConnections() {
      for (const socket of sockets) socket.destroy();
      for (const session of sessions) session.destroy();
    },
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGTERM");
      await once(child, "exit");
    },
  };
}

function addressOf(child: ChildProcess): Promise<string> {
  const ready = /"event":"ready","listen":"([^"]+)"/;
  let text = "";
  return new Promise((resolve, reject) => {
    child.once("exit", () => reject(new Error(`the service ended: ${text}`)));
    // It is read to the end: what it logs of each refusal must not wait for us.
    child.stdout!.on("data", (chunk: Buffer) => {
      if (text.length < 100_000) text += chunk;
      const listen = ready.exec(text)?.[1];
      if (listen !== undefined) resolve(listen);
    });
  });
}

export function goodToken(user: string): Promise<string> {
  return userToken(user, { secret: JWT_SECRET, claims: { aud: "users" } });
}

/** The body of one Verify, in JSON over HTTP/2; undefined: none came. */
export function ask(
  session: ClientHttp2Session,
  key: string,
  path = VERIFY_PATH,
  headers: object = {},
): Promise<string | undefined> {
  return new Promise((resolve) => {
    const stream = session.request({
      ":method": "POST",
      ":path": path,
      "content-type": "application/json",
      ...headers,
    });
    let text = "";
    stream.on("data", (chunk: Buffer) => {
      text += chunk.toString("latin1");
    });
    stream.on("error", () => {});
    stream.once("close", () => resolve(text === "" ? undefined : text));
    stream.end(JSON.stringify({ key }));
  });
}

export interface GoodTraffic {
  perSecond: number;
  /** Calls that were not answered VALID. */
  failed: number;
  p99Ms: number;
}

const IN_FLIGHT = 8;

/** What a client that asks about a good key, eight calls at a time, gets. */
export async function goodTraffic(world: World, forMs: number): Promise<GoodTraffic> {
  const session = connectHttp2(`http://${world.address}`);
  session.on("error", () => {});
  const timesMs: number[] = [];
  let failed = 0;
  const startedMs = performance.now();
  const endMs = startedMs + forMs;
  const caller = async () => {
    while (performance.now() < endMs) {
      const askedMs = performance.now();
      const answer = await ask(session, world.good);
      if (answer?.includes("OUTCOME_VALID")) timesMs.push(performance.now() - askedMs);
      else failed += 1;
      if (session.destroyed) return;
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, caller));
  session.destroy();
  const perSecond = (timesMs.length * 1_000) / (performance.now() - startedMs);
  return { perSecond, failed, p99Ms: quantile(timesMs, 0.99) };
}
