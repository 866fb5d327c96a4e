import { Duplex } from "node:stream";
import { encodeFields } from "./hpack.ts";
import {
  createFrameReader,
  DEFAULT_WINDOW_BYTES,
  Fault,
  Flag,
  type Frame,
  frame,
  headersFrames,
  number32,
  PREFACE,
  settingsFrame,
  Type,
} from "./http2-frames.ts";
import { EMPTY } from "./wire-format.ts";

export interface StockParts {
  /** The client's, as a socket would tell it. */
  remoteAddress: string | undefined;
  open(connection: Duplex): void;
  /** The client's, so far. */
  settings: ReadonlyMap<number, number>;
  /** What the client lets the connection send at this moment. */
  sendWindow: number;
  windowLeft(): number;
  /** Data was sent to the client. */
  sent(bytes: number): void;
  /** The last stream that is or was served, by either. */
  lastId(): number;
  write(bytes: Buffer): void;
  whenTaken(then: () => void): void;
  pause(): void;
  resume(): void;
  /** No stream is open any more. */
  idle(): void;
  /** The session is over. */
  ended(): void;
}

/** node:http2's own session, for the streams of a connection that are not served here. */
export class StockSession {
  private readonly parts: StockParts;
  private readonly inner: Duplex;
  /** Open streams, and which end has ended its own half. */
  private readonly streams = new Map<number, "neither" | "client" | "session">();
  /** What the session believes it may send, beyond what the client's window holds. */
  private excess: number;
  /** Frames of streams that wait for the client's window. */
  private held: Frame[] = [];
  private isSetUp = false;

  constructor(parts: StockParts) {
    this.parts = parts;
    const read = createFrameReader(0xffffff, (sent) => this.pass(sent));
    this.inner = new Duplex({
      read: () => parts.resume(),
      write: (chunk: Buffer, _encoding, done) => {
        read(chunk);
        parts.whenTaken(done);
      },
      final: (done) => {
        parts.ended();
        done();
      },
    });
    Object.assign(this.inner, { remoteAddress: parts.remoteAddress });
    this.inner.on("error", () => {});
    this.inner.once("close", parts.ended);
    parts.open(this.inner);
    const surplus = parts.sendWindow - DEFAULT_WINDOW_BYTES;
    this.excess = Math.max(0, -surplus);
    this.inner.push(PREFACE);
    this.inner.push(settingsFrame(parts.settings));
    this.inner.push(SETTINGS_ACK);
    if (surplus > 0) this.inner.push(frame(Type.WINDOW_UPDATE, 0, 0, number32(surplus)));
  }

  has(id: number): boolean {
    return this.streams.has(id);
  }

  get size(): number {
    return this.streams.size;
  }

  open(id: number, flags: number, list: readonly string[]): void {
    this.streams.set(id, "neither");
    this.sendHeaders(id, flags, list);
  }

  sendHeaders(id: number, flags: number, list: readonly string[]): void {
    this.note(Type.HEADERS, flags, id, "client");
    this.push(headersFrames(flags & Flag.END_STREAM, id, encodeFields(list)));
  }

  send({ type, flags, id, payload }: Frame): void {
    this.note(type, flags, id, "client");
    this.push(frame(type, flags, id, payload));
  }

  private push(bytes: Buffer): void {
    if (!this.inner.destroyed && !this.inner.push(bytes)) this.parts.pause();
  }

  private note(type: number, flags: number, id: number, by: "client" | "session"): void {
    const isLast = (type === Type.DATA || type === Type.HEADERS) && (flags & Flag.END_STREAM) !== 0;
    const ended = this.streams.get(id);
    if (type === Type.RST_STREAM || (isLast && ended !== "neither" && ended !== by)) this.streams.delete(id);
    else if (isLast && ended === "neither") this.streams.set(id, by);
  }

  /** Data was sent that the session doesn't know of: its window is smaller than it believes. */
  spent(bytes: number): void {
    this.excess += bytes;
  }

  /** The client opened the connection's window. */
  credited(bytes: number): void {
    const own = Math.max(0, bytes - this.excess);
    this.excess -= bytes - own;
    if (own > 0) this.send({ type: Type.WINDOW_UPDATE, flags: 0, id: 0, payload: number32(own) });
  }

  /** From the session to the client. */
  private pass(sent: Frame): void {
    const { type, flags, payload } = sent;
    if (type === Type.SETTINGS && !this.isSetUp) {
      // Its own settings, which the client has from us, and its acknowledgement of what the client said before.
      this.isSetUp = (flags & Flag.ACK) !== 0;
      return;
    }
    this.note(type, flags, sent.id, "session");
    if (type === Type.GOAWAY) {
      if (payload.readUInt32BE(4) === Fault.NO_ERROR) return;
      // Its last stream is only the last of its own.
      payload.writeUInt32BE(this.parts.lastId());
    }
    const waits = this.held.length > 0 || (type === Type.DATA && payload.length > this.parts.windowLeft());
    if (waits && OF_STREAMS.has(type)) this.held.push({ ...sent, payload: Buffer.from(payload) });
    else this.forward(sent);
  }

  private forward({ type, flags, id, payload }: Frame): void {
    if (type === Type.DATA) {
      this.parts.sent(payload.length);
    }
    this.parts.write(frame(type, flags, id, payload));
    if (this.isIdle()) this.parts.idle();
  }

  /** What the client's window has room for now. */
  sendHeld(): void {
    while (this.held.length > 0) {
      const [next] = this.held;
      if (next!.type === Type.DATA && next!.payload.length > this.parts.windowLeft()) return;
      this.held.shift();
      this.forward(next!);
    }
  }

  isIdle(): boolean {
    return this.streams.size === 0 && this.held.length === 0;
  }

  destroy(): void {
    this.inner.destroy();
  }
}

const OF_STREAMS: ReadonlySet<number> = new Set([Type.DATA, Type.HEADERS, Type.CONTINUATION, Type.RST_STREAM]);

const SETTINGS_ACK = frame(Type.SETTINGS, Flag.ACK, 0, EMPTY);
