import { BidirectionalStream } from "../bidirectional.ts";
import { EMPTY, type Headers } from "../wire-format.ts";
import { asBuffer, fieldsOf, putStreamHead } from "./answers.ts";
import { DEFAULT_WINDOW_BYTES, Fault, Flag, type Frame, frame, number32, Type } from "./frames.ts";
import { encodeFields } from "./hpack.ts";
import type { Output } from "./output.ts";
import { type Sender, type Sending, UNSWEPT } from "./sender.ts";
import { Credit, type StreamWindow } from "./windows.ts";

interface OpenStreamsParts {
  sender: Sender;
  output: Output;
  /** A stream is finished. */
  finished(): void;
}

/** A stream of messages. */
interface OpenStream extends StreamWindow {
  stream: BidirectionalStream;
  /** Bytes that were received, and are not dealt with. */
  undealt: number;
  readonly received: Credit;
  hasEnded: boolean;
  waiting: Sending | undefined;
}

/** A connection's streams of messages, as BidirectionalStream has them. */
export class OpenStreams {
  private readonly parts: OpenStreamsParts;
  private readonly open = new Map<number, OpenStream>();

  constructor(parts: OpenStreamsParts) {
    this.parts = parts;
  }

  get size(): number {
    return this.open.size;
  }

  has(id: number): boolean {
    return this.open.has(id);
  }

  windowOf(id: number): StreamWindow | undefined {
    return this.open.get(id);
  }

  begin(id: number, serve: (stream: BidirectionalStream) => void): void {
    const stream = new BidirectionalStream({
      send: (bytes) => this.send(opened, asBuffer(bytes)),
      credit: (bytes) => this.credit(opened, bytes),
      finish: (trailers) => this.finish(opened, trailers),
    });
    const opened: OpenStream = {
      ...{ id, stream, credit: 0, undealt: 0, received: new Credit() },
      ...{ hasEnded: false, waiting: undefined },
    };
    this.open.set(id, opened);
    putStreamHead(this.parts.output, id);
    serve(stream);
  }

  /** Returns what the client broke, if anything: the connection is over. */
  take({ id, flags, payload }: Frame): number | undefined {
    const opened = this.open.get(id)!;
    const padding = (flags & Flag.PADDED) === 0 ? 0 : 1 + (payload[0] ?? 0);
    opened.undealt += payload.length;
    if (padding > payload.length || opened.undealt > DEFAULT_WINDOW_BYTES) return Fault.FLOW_CONTROL_ERROR;
    if (opened.hasEnded) return Fault.STREAM_CLOSED;
    if (padding > 0) this.credit(opened, padding);
    if (payload.length > padding) {
      opened.stream.received(padding === 0 ? payload : payload.subarray(1, payload.length - padding + 1));
    }
    if ((flags & Flag.END_STREAM) !== 0) this.end(id);
    return undefined;
  }

  /** The client has sent all. */
  end(id: number): void {
    const opened = this.open.get(id);
    if (opened === undefined) return;
    opened.hasEnded = true;
    opened.stream.ended();
  }

  /** By the client. False: there is no such stream. */
  reset(id: number): boolean {
    const opened = this.open.get(id);
    if (opened === undefined) return false;
    this.open.delete(id);
    opened.stream.aborted();
    return true;
  }

  /** The client's windows may have opened. */
  sendWaiting(): void {
    for (const opened of this.open.values()) {
      if (opened.waiting === undefined || !this.parts.sender.sendOn(opened.waiting)) continue;
      opened.waiting = undefined;
      opened.stream.drained();
    }
  }

  abort(): void {
    for (const { stream } of this.open.values()) stream.aborted();
    this.open.clear();
  }

  private send(opened: OpenStream, body: Buffer): boolean {
    const { output, sender } = this.parts;
    output.flushSoon();
    const ends = { trailers: undefined, mayFollow: true, hangUp: false };
    const sending: Sending = { of: opened, body, at: 0, ...ends, sinceMs: UNSWEPT };
    const hasGone = sender.sendOn(sending);
    if (!hasGone) opened.waiting = sending;
    return hasGone;
  }

  private credit(opened: OpenStream, bytes: number) {
    const { output } = this.parts;
    opened.undealt -= bytes;
    const portion = opened.received.add(bytes);
    if (portion === 0 || opened.hasEnded) return;
    output.put(frame(Type.WINDOW_UPDATE, 0, opened.id, number32(portion)));
    output.flushSoon();
  }

  private finish(opened: OpenStream, last: Headers) {
    const { output, sender, finished } = this.parts;
    const { id, hasEnded, waiting } = opened;
    this.open.delete(id);
    // A client that still sends learns that nobody listens.
    const ends = { trailers: encodeFields(fieldsOf(last)), mayFollow: false, hangUp: !hasEnded };
    sender.finish({ ...(waiting ?? { of: opened, body: EMPTY, at: 0 }), ...ends, sinceMs: UNSWEPT });
    finished();
    output.flushSoon();
  }
}
