import { once } from "node:events";
import { connect } from "node:net";
import type { Duplex } from "node:stream";
import { connect as connectTls } from "node:tls";
import {
  createFrameReader,
  DEFAULT_WINDOW_BYTES,
  Flag,
  type Frame,
  frame,
  headersFrames,
  MAX_FRAME_BYTES,
  number32,
  PREFACE,
  Setting,
  settingsFrame,
  Type,
} from "../../src/fastpath/http2/frames.ts";
import { createHpackDecoder, encodeFields } from "../../src/fastpath/http2/hpack.ts";

export interface SeenStream {
  /** Of all blocks, in order. */
  fields: [name: string, value: string][];
  body: Buffer;
  ended: boolean;
  resetBy: number | undefined;
}

export interface Goaway {
  lastId: number;
  fault: number;
}

export interface FrameClient {
  readonly socket: Duplex;
  /** Everything that came, acknowledgements included. */
  readonly frames: Frame[];
  /** What the server did that HTTP/2 forbids. */
  readonly faults: string[];
  /** All GOAWAYs, in order, and the last one. */
  readonly goaways: Goaway[];
  readonly goaway: Goaway | undefined;
  readonly closed: boolean;
  /** What the client may still send on the connection, and the server. */
  readonly sendWindow: number;
  readonly receiveWindow: number;
  stream(id: number): SeenStream;
  write(...frames: Buffer[]): void;
  /** Opens a window for the server; connection: 0. */
  grant(id: number, bytes: number): void;
  /** Changes the first size of the server's windows, as the client counts them: from the acknowledgement on. */
  setFirstWindow(bytes: number): void;
  /** Sends a body as the server's windows allow. */
  upload(id: number, body: Buffer): Promise<void>;
  until(condition: () => boolean): Promise<void>;
}

export interface FrameClientOptions {
  settings?: [number, number][];
  /** Whether what was received is granted again; default true. */
  grants?: boolean;
  /** Whether pings are answered; default true. */
  answersPings?: boolean;
}

/** `frameClient` at a port. */
export async function openFrameClient(
  { address }: { address: string },
  { ca, ...options }: FrameClientOptions & { ca?: string | undefined } = {},
): Promise<FrameClient> {
  const [host, port] = address.split(":");
  const to = { host: host!, port: Number(port) };
  const socket =
    ca === undefined ? connect(to) : connectTls({ ...to, ca, ALPNProtocols: ["h2"], servername: "localhost" });
  socket.on("error", () => {});
  await once(socket, ca === undefined ? "connect" : "secureConnect");
  socket.setNoDelay(true);
  return frameClient(socket, options);
}

/** An HTTP/2 client that sends the frames it is told to, and holds the server to its windows. */
export function frameClient(
  socket: Duplex,
  { settings = [], grants = true, answersPings = true }: FrameClientOptions = {},
): FrameClient {
  const frames: Frame[] = [];
  const faults: string[] = [];
  const streams = new Map<number, SeenStream>();
  const decoder = createHpackDecoder({ maxTableBytes: 4_096, maxListBytes: 1_000_000 });
  const waiting = new Set<() => void>();
  const goaways: Goaway[] = [];
  let closed = false;
  let block: { id: number; flags: number; parts: Buffer[] } | undefined;
  /** What the server may send, and what it may be sent. */
  let firstWindow = settings.find(([id]) => id === Setting.INITIAL_WINDOW_SIZE)?.[1] ?? DEFAULT_WINDOW_BYTES;
  const unacknowledged: (number | undefined)[] = [firstWindow];
  let connectionWindow = DEFAULT_WINDOW_BYTES;
  const credits = new Map<number, number>();
  const uploaded = new Map<number, number>();
  let sendWindow = DEFAULT_WINDOW_BYTES;

  const stream = (id: number): SeenStream => {
    let seen = streams.get(id);
    if (seen === undefined) {
      seen = { fields: [], body: Buffer.alloc(0), ended: false, resetBy: undefined };
      streams.set(id, seen);
    }
    return seen;
  };
  const grant = (id: number, bytes: number) => {
    if (id === 0) connectionWindow += bytes;
    else credits.set(id, (credits.get(id) ?? 0) + bytes);
    socket.write(frame(Type.WINDOW_UPDATE, 0, id, number32(bytes)));
  };
  const endOf = (id: number, flags: number) => {
    const seen = stream(id);
    if (seen.ended) faults.push(`stream ${id} goes on after its end`);
    if (seen.resetBy !== undefined) faults.push(`stream ${id} goes on after its reset`);
    seen.ended ||= (flags & Flag.END_STREAM) !== 0;
  };
  const takeBlock = (id: number, flags: number, bytes: Buffer) => {
    endOf(id, flags);
    const list = decoder.decode(bytes);
    for (let at = 0; at < list.length; at += 2) stream(id).fields.push([list[at]!, list[at + 1]!]);
  };
  const read = createFrameReader(MAX_FRAME_BYTES, (received) => {
    const { type, flags, id, payload } = received;
    frames.push(received);
    if (block !== undefined && type !== Type.CONTINUATION) faults.push("a frame between parts of a block");
    if (type === Type.HEADERS || type === Type.CONTINUATION) {
      block ??= { id, flags, parts: [] };
      block.parts.push(payload);
      if ((flags & Flag.END_HEADERS) === 0) return;
      const whole = block;
      block = undefined;
      takeBlock(whole.id, whole.flags, Buffer.concat(whole.parts));
    } else if (type === Type.DATA) {
      endOf(id, flags);
      const seen = stream(id);
      seen.body = Buffer.concat([seen.body, payload]);
      connectionWindow -= payload.length;
      const left = firstWindow + (credits.get(id) ?? 0) - seen.body.length;
      if (payload.length > 0 && (connectionWindow < 0 || left < 0)) faults.push(`stream ${id} overran a window`);
      if (grants && payload.length > 0) {
        grant(0, payload.length);
        if (!seen.ended) grant(id, payload.length);
      }
    } else if (type === Type.RST_STREAM) {
      // RFC 9113, 8.1: after a whole answer it only says that no more of the request is wanted.
      if (!stream(id).ended) stream(id).resetBy ??= payload.readUInt32BE(0);
    } else if (type === Type.WINDOW_UPDATE) {
      if (id === 0) sendWindow += payload.readUInt32BE(0);
      else uploaded.set(id, (uploaded.get(id) ?? 0) - payload.readUInt32BE(0));
    } else if (type === Type.SETTINGS) {
      if ((flags & Flag.ACK) === 0) socket.write(frame(Type.SETTINGS, Flag.ACK, 0, Buffer.alloc(0)));
      else firstWindow = unacknowledged.shift() ?? firstWindow;
    } else if (type === Type.PING) {
      if ((flags & Flag.ACK) === 0 && answersPings) socket.write(frame(Type.PING, Flag.ACK, 0, payload));
    } else if (type === Type.GOAWAY) {
      goaways.push({ lastId: payload.readUInt32BE(0), fault: payload.readUInt32BE(4) });
    }
  });
  const tell = () => {
    for (const look of [...waiting]) look();
  };
  socket.on("data", (chunk: Buffer) => {
    if (read(chunk) !== "ok") faults.push("a frame is too large");
    tell();
  });
  socket.once("close", () => {
    closed = true;
    tell();
  });
  const count = createFrameReader(0xffffff, ({ type, payload }) => {
    if (type === Type.DATA) sendWindow -= payload.length;
  });
  const write = (...bytes: Buffer[]) => {
    const all = Buffer.concat(bytes);
    count(all);
    socket.write(all);
  };
  const until = (condition: () => boolean) =>
    new Promise<void>((resolve, reject) => {
      const look = () => {
        if (!condition() && !closed) return;
        waiting.delete(look);
        if (condition()) resolve();
        else reject(new Error(`the connection is closed: ${JSON.stringify({ goaways, faults })}`));
      };
      waiting.add(look);
      look();
    });
  socket.write(Buffer.concat([PREFACE, settingsFrame(settings)]));
  return {
    ...{ socket, frames, faults, stream, write, grant, until, goaways },
    get goaway() {
      return goaways.at(-1);
    },
    get closed() {
      return closed;
    },
    get receiveWindow() {
      return connectionWindow;
    },
    get sendWindow() {
      return sendWindow;
    },
    setFirstWindow(bytes) {
      unacknowledged.push(bytes);
      socket.write(settingsFrame([[Setting.INITIAL_WINDOW_SIZE, bytes]]));
    },
    async upload(id, body) {
      for (let at = 0; at < body.length; ) {
        const left = () => Math.min(sendWindow, DEFAULT_WINDOW_BYTES - (uploaded.get(id) ?? 0));
        // Another upload may take what this one waited for.
        while (left() <= 0 && stream(id).resetBy === undefined) {
          await until(() => left() > 0 || stream(id).resetBy !== undefined);
        }
        if (stream(id).resetBy !== undefined) return;
        const end = Math.min(body.length, at + Math.min(left(), MAX_FRAME_BYTES));
        uploaded.set(id, (uploaded.get(id) ?? 0) + end - at);
        const isLast = end === body.length;
        write(frame(Type.DATA, isLast ? Flag.END_STREAM : 0, id, body.subarray(at, end)));
        at = end;
      }
    },
  };
}

/** The headers of a call, without either table. */
export function requestHeaders(
  id: number,
  {
    path,
    type = "application/grpc",
    end = false,
    more = [],
  }: { path: string; type?: string; end?: boolean; more?: string[] },
): Buffer {
  const list = [":method", "POST", ":scheme", "http", ":path", path, ":authority", "x", "content-type", type, ...more];
  return headersFrames(end ? Flag.END_STREAM : 0, id, encodeFields(list));
}

export function data(id: number, bytes: Uint8Array, flags: number = Flag.END_STREAM): Buffer {
  return frame(Type.DATA, flags, id, bytes);
}

export function inEnvelope(message: string | Uint8Array): Buffer {
  const bytes = Buffer.from(message as Uint8Array);
  return Buffer.concat([Buffer.of(0), number32(bytes.length), bytes]);
}
