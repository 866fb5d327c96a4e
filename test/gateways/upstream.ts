import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage } from "node:http";
import type { Duplex } from "node:stream";

/** What reached the application behind the gateway. */
export interface Arrival {
  method: string;
  path: string;
  /** As they were spelled, in their order. */
  headers: [name: string, value: string][];
  bodyBytes: number;
  bodySha256: string;
}

export interface Upstream {
  readonly port: number;
  /** Says that the request marked `mark` carries a key that holds; all others must not get here. */
  mayArrive(mark: string): void;
  /** What came with this mark so far. */
  arrivals(mark: string): Arrival[];
  /** Requests that may not have arrived. */
  readonly unproven: string[];
  close(): Promise<void>;
}

/** The header by which a test knows its request again. */
export const MARK = "x-test-mark";
const WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/** An application that answers each request with what it received, and a WebSocket with what it was told. */
export async function startUpstream(): Promise<Upstream> {
  const proven = new Set<string>();
  const arrived = new Map<string, Arrival[]>();
  const unproven: string[] = [];
  const upgraded = new Set<Duplex>();

  const arrive = (request: IncomingMessage, bodyBytes = 0, bodySha256 = ""): Arrival => {
    const mark = String(request.headers[MARK]);
    const headers: [string, string][] = [];
    for (let at = 0; at < request.rawHeaders.length; at += 2)
      headers.push([request.rawHeaders[at]!, request.rawHeaders[at + 1]!]);
    const arrival = { method: request.method!, path: request.url!, headers, bodyBytes, bodySha256 };
    arrived.set(mark, [...(arrived.get(mark) ?? []), arrival]);
    return arrival;
  };
  const judge = (request: IncomingMessage) => {
    const mark = String(request.headers[MARK]);
    if (!proven.has(mark)) unproven.push(`${request.method} ${request.url} (${mark})`);
  };

  const server = createServer({ maxHeaderSize: 1024 * 1024 }, async (request, response) => {
    judge(request);
    const hash = createHash("sha256");
    let bytes = 0;
    try {
      for await (const chunk of request) {
        bytes += (chunk as Buffer).length;
        hash.update(chunk as Buffer);
      }
    } catch {
      return;
    }
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(arrive(request, bytes, hash.digest("hex"))));
  });
  server.on("upgrade", (request, socket) => {
    judge(request);
    arrive(request);
    const accept = createHash("sha1").update(`${request.headers["sec-websocket-key"]}${WEBSOCKET_GUID}`);
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: ${accept.digest("base64")}\r\n\r\n`,
    );
    socket.on("data", (frame: Buffer) => socket.write(textFrame(`you said ${textOf(frame)}`)));
    socket.on("error", () => {});
    socket.on("end", () => socket.end());
    upgraded.add(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as { port: number }).port,
    mayArrive: (mark) => void proven.add(mark),
    arrivals: (mark) => arrived.get(mark) ?? [],
    unproven,
    async close() {
      server.closeAllConnections();
      for (const socket of upgraded) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

/** The text in a masked frame of up to 125 bytes, as clients send them. */
function textOf(frame: Buffer): string {
  const mask = frame.subarray(2, 6);
  return Buffer.from(frame.subarray(6).map((byte, at) => byte ^ mask[at % 4]!)).toString();
}

function textFrame(text: string): Buffer {
  return Buffer.concat([Buffer.from([0x81, text.length]), Buffer.from(text)]);
}
