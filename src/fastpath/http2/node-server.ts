import { Duplex } from "node:stream";
import { EMPTY } from "../wire-format.ts";
import {
  createFrameReader,
  DEFAULT_TABLE_BYTES,
  DEFAULT_WINDOW_BYTES,
  Fault,
  Flag,
  type Frame,
  frame,
  headersFrames,
  number32,
  PREFACE,
  Setting,
  settingsFrame,
  Type,
} from "./frames.ts";
import { createHpackDecoder, encodeFields } from "./hpack.ts";
import { SendWindow } from "./windows.ts";

interface NodeSessionParts {
  /** The client's, as a socket would tell it. */
  remoteAddress: string | undefined;
  open(connection: Duplex): void;
  /** The client's, so far. */
  settings: ReadonlyMap<number, number>;
  /** Bytes that the client lets the connection send at this moment. */
  windowLeft(): number;
  /** The session sent data: its windows may need to be opened again. */
  windowUsed(): void;
  /** Data was sent to the client. */
  sent(bytes: number): void;
  /** The session reset a stream. */
  reset(id: number): void;
  /** The session keeps to the client's settings, those that were sent to it first. */
  acknowledged(): void;
  writeHeaders(flags: number, id: number, block: Buffer): void;
  write(bytes: Buffer): void;
  whenTaken(then: () => void): void;
  pause(): void;
  resume(): void;
  /** No stream is open any more. */
  idle(): void;
  /** The session is over: the client broke the rules, or a limit. */
  failed(fault: number): void;
}

interface NodeStream {
  /** The session's number. */
  id: number;
  /** Which end has ended its own half. */
  ended: "neither" | "client" | "session";
  /** Its answer has ended with its headers: of what the session still says, only a reset counts. */
  isAnswered: boolean;
  /** Bytes of the request that are still to come, where its headers said how many there are. */
  left: number | undefined;
}

/** node:http2's own session, for the streams of a connection that are not served here. */
export class NodeSession {
  private readonly parts: NodeSessionParts;
  private readonly inner: Duplex;
  /**
   * Open streams by the client's number. The session has its own: a call that is handed over late would come after streams
   * of higher numbers, which HTTP/2 does not allow.
   */
  private readonly streams = new Map<number, NodeStream>();
  private readonly clientIds = new Map<number, number>();
  private nextId = 1;
  /** The client's, as the session believes. */
  private readonly believed = new SendWindow();
  /** Frames that wait for the client's window, and their data: no more than the session believed it may send. */
  private held: Frame[] = [];
  private heldBytes = 0;
  /** Headers of which more is to come. */
  private block: Frame | undefined;
  private isSetUp = false;

  constructor(parts: NodeSessionParts) {
    this.parts = parts;
    const read = createFrameReader(0xffffff, (sent) => this.take(sent));
    this.inner = new Duplex({
      read: () => parts.resume(),
      write: (chunk: Buffer, _encoding, done) => {
        read(chunk);
        parts.whenTaken(done);
      },
      final: (done) => {
        parts.failed(Fault.INTERNAL_ERROR);
        done();
      },
    });
    Object.assign(this.inner, { remoteAddress: parts.remoteAddress });
    this.inner.on("error", () => {});
    this.inner.once("close", () => parts.failed(Fault.INTERNAL_ERROR));
    parts.open(this.inner);
    this.inner.push(PREFACE);
    // Headers that refer to no table can be held, or sent later than others, without a change of what they mean.
    this.inner.push(settingsFrame([...withoutTable(parts.settings), [Setting.HEADER_TABLE_SIZE, 0]]));
    this.inner.push(SETTINGS_ACK);
  }

  has(id: number): boolean {
    return this.streams.has(id);
  }

  get size(): number {
    return this.streams.size;
  }

  open(id: number, flags: number, list: readonly string[]): void {
    const own: NodeStream = { id: this.nextId, ended: "neither", isAnswered: false, left: lengthIn(list) };
    this.nextId += 2;
    this.streams.set(id, own);
    this.clientIds.set(own.id, id);
    this.sendHeaders(id, flags, list);
  }

  sendHeaders(id: number, flags: number, list: readonly string[]): void {
    const stream = this.streams.get(id);
    if (stream === undefined) return;
    this.note(Type.HEADERS, flags, id, "client");
    this.push(headersFrames(flags & Flag.END_STREAM, stream.id, encodeFields(list)));
  }

  /** Whether a frame is not what the headers of its stream said that there would be. */
  breaksLength({ type, flags, id, payload }: Frame): boolean {
    const left = this.streams.get(id)?.left;
    if (left === undefined) return false;
    const bytes = type === Type.DATA ? dataBytes(flags, payload) : 0;
    return bytes > left || ((flags & Flag.END_STREAM) !== 0 && bytes !== left);
  }

  sendSettings(settings: Iterable<readonly [number, number]>): void {
    this.push(settingsFrame(withoutTable(settings)));
  }

  /** False when there is no such stream any more. */
  send({ type, flags, id, payload }: Frame): boolean {
    const stream = this.streams.get(id);
    if (stream === undefined) return false;
    this.note(type, flags, id, "client");
    if (type === Type.RST_STREAM) this.forget(id);
    if (type === Type.DATA && stream.left !== undefined) stream.left -= dataBytes(flags, payload);
    this.push(frame(type, flags, stream.id, payload));
    return true;
  }

  private push(bytes: Buffer): void {
    if (!this.inner.destroyed && !this.inner.push(bytes)) this.parts.pause();
  }

  private note(type: number, flags: number, id: number, by: "client" | "session"): void {
    const stream = this.streams.get(id);
    if (stream === undefined) return;
    const isLast = (type === Type.DATA || type === Type.HEADERS) && (flags & Flag.END_STREAM) !== 0;
    if (type === Type.RST_STREAM || (isLast && stream.ended !== "neither" && stream.ended !== by)) {
      this.streams.delete(id);
      this.clientIds.delete(stream.id);
    } else if (isLast) stream.ended = by;
  }

  /** From the session, with headers made whole: nothing may come between their parts. */
  private take(sent: Frame): void {
    const { type, flags, payload } = sent;
    if (type === Type.HEADERS) this.block = sent;
    else if (type === Type.CONTINUATION) this.block!.payload = Buffer.concat([this.block!.payload, payload]);
    else this.pass(sent);
    if (this.block === undefined || (flags & Flag.END_HEADERS) === 0) return;
    const { block } = this;
    this.block = undefined;
    this.pass(block);
  }

  /** From the session to the client. */
  private pass(sent: Frame): void {
    const { type, flags, payload } = sent;
    if (type === Type.SETTINGS && !this.isSetUp) {
      // Its own settings, which the client has from us, and its acknowledgement of what the client said before.
      this.isSetUp = (flags & Flag.ACK) !== 0;
      return;
    }
    if (type === Type.GOAWAY) {
      const fault = payload.readUInt32BE(4);
      if (fault !== Fault.NO_ERROR) this.parts.failed(fault);
      return;
    }
    if (type === Type.DATA) {
      this.believed.sent(payload.length);
      this.parts.windowUsed();
    }
    const id = sent.id === 0 ? 0 : this.clientIds.get(sent.id);
    // The client has reset it.
    if (id === undefined) return;
    this.passInOrder({ ...sent, id });
  }

  /**
   * gRPC's answer in headers alone ends with them. node:http2 lets an empty DATA frame follow, and gRPC's C core then tells its
   * caller UNKNOWN, whatever the headers say.
   */
  private passInOrder(sent: Frame): void {
    const { type, flags, id, payload } = sent;
    const stream = this.streams.get(id);
    if (stream?.isAnswered && (type === Type.DATA || type === Type.HEADERS)) return;
    const mayEnd = type === Type.HEADERS && (flags & Flag.END_STREAM) === 0 && stream !== undefined;
    if (mayEnd && hasStatus(payload)) {
      stream.isAnswered = true;
      this.enqueue({ ...sent, flags: flags | Flag.END_STREAM });
    } else this.enqueue(sent);
  }

  private enqueue(sent: Frame): void {
    const { type, payload } = sent;
    const waits = this.held.length > 0 || (type === Type.DATA && payload.length > this.parts.windowLeft());
    if (waits && IN_ORDER.has(type)) {
      this.held.push({ ...sent, payload: Buffer.from(payload) });
      if (type === Type.DATA) this.heldBytes += payload.length;
      this.sendHeld();
    } else this.forward(sent);
  }

  private forward({ type, flags, id, payload }: Frame): void {
    const { parts } = this;
    // Not before: a stream counts for as long as its frames are held.
    this.note(type, flags, id, "session");
    if (type === Type.HEADERS) parts.writeHeaders(flags & Flag.END_STREAM, id, payload);
    else parts.write(frame(type, flags, id, payload));
    if (type === Type.DATA) parts.sent(payload.length);
    else if (type === Type.RST_STREAM) parts.reset(id);
    else if (type === Type.SETTINGS) parts.acknowledged();
    if (this.isIdle()) parts.idle();
  }

  /** The client's windows may have opened. */
  windowOpened(): void {
    this.sendHeld();
    // No more than it has at first, so that what must be held is bounded however large the client's window is.
    const own = Math.min(this.parts.windowLeft() - this.heldBytes, DEFAULT_WINDOW_BYTES) - this.believed.left;
    if (own <= 0 || this.believed.left >= DEFAULT_WINDOW_BYTES / 2) return;
    this.believed.open(own);
    this.push(frame(Type.WINDOW_UPDATE, 0, 0, number32(own)));
  }

  private sendHeld(): void {
    for (let next = this.held[0]; next !== undefined; next = this.held[0]) {
      const { type, payload } = next;
      const bytes =
        type === Type.DATA ? Math.min(payload.length, Math.max(0, this.parts.windowLeft())) : payload.length;
      if (type === Type.DATA) this.heldBytes -= bytes;
      if (bytes < payload.length) {
        next.payload = payload.subarray(bytes);
        if (bytes > 0) this.forward({ ...next, flags: 0, payload: payload.subarray(0, bytes) });
        return;
      }
      this.held.shift();
      this.forward(next);
    }
  }

  /** Frames held for a stream that the client does not want any more. */
  private forget(id: number): void {
    this.held = this.held.filter((frame) => {
      if (frame.id === id && frame.type === Type.DATA) this.heldBytes -= frame.payload.length;
      return frame.id !== id;
    });
    this.sendHeld();
  }

  isIdle(): boolean {
    return this.streams.size === 0 && this.held.length === 0;
  }

  destroy(): void {
    this.inner.destroy();
  }
}

/** An acknowledgement too: the data before it was sent by the settings before it. */
const IN_ORDER: ReadonlySet<number> = new Set([Type.DATA, Type.HEADERS, Type.RST_STREAM, Type.SETTINGS]);

/** undefined: none, or none that can be read in one way; Node's own server judges these. */
function lengthIn(list: readonly string[]): number | undefined {
  const values = list.filter((_, index) => index % 2 === 1 && list[index - 1] === "content-length");
  return values.length === 1 && /^\d{1,15}$/.test(values[0]!) ? Number(values[0]) : undefined;
}

function dataBytes(flags: number, payload: Buffer): number {
  return (flags & Flag.PADDED) === 0 ? payload.length : Math.max(0, payload.length - 1 - (payload[0] ?? 0));
}

/** Whether headers hold gRPC's status. The session encodes without a table, so that each block can be read by itself. */
function hasStatus(block: Buffer): boolean {
  const { decode } = createHpackDecoder({ maxTableBytes: DEFAULT_TABLE_BYTES, maxListBytes: Number.POSITIVE_INFINITY });
  return decode(block).some((text, index) => index % 2 === 0 && text === "grpc-status");
}

const SETTINGS_ACK = frame(Type.SETTINGS, Flag.ACK, 0, EMPTY);

function withoutTable(settings: Iterable<readonly [number, number]>): (readonly [number, number])[] {
  return [...settings].filter(([setting]) => setting !== Setting.HEADER_TABLE_SIZE);
}
