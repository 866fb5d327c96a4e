import { BidiStream } from "./bidi.ts";
import { encodeFields } from "./hpack.ts";
import { asBuffer, fieldsOf, putBidiHead } from "./http2-answers.ts";
import { CREDIT_BYTES, DEFAULT_WINDOW_BYTES, Fault, Flag, type Frame, frame, number32, Type } from "./http2-frames.ts";
import type { Output } from "./http2-output.ts";
import { type Sender, type Sending, type StreamWindow, UNSWEPT } from "./http2-sender.ts";
import { EMPTY, type Headers } from "./wire-format.ts";

export interface BidisParts {
  sender: Sender;
  output: Output;
  /** A stream is finished. */
  finished(): void;
}

/** A stream of messages. */
interface OpenBidi extends StreamWindow {
  stream: BidiStream;
  /** Received, and not yet credited to the client. */
  uncredited: number;
  /** To be credited with the next portion. */
  creditable: number;
  hasEnded: boolean;
  waiting: Sending | undefined;
}

/** A connection's streams of messages, as BidiStream has them. */
export class Bidis {
  private readonly parts: BidisParts;
  private readonly open = new Map<number, OpenBidi>();

  constructor(parts: BidisParts) {
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

  begin(id: number, serve: (stream: BidiStream) => void): void {
    const stream = new BidiStream({
      send: (bytes) => this.send(bidi, asBuffer(bytes)),
      credit: (bytes) => this.credit(bidi, bytes),
      finish: (trailers) => this.finish(bidi, trailers),
    });
    const bidi: OpenBidi = {
      ...{ id, stream, credit: 0, uncredited: 0, creditable: 0 },
      ...{ hasEnded: false, waiting: undefined },
    };
    this.open.set(id, bidi);
    putBidiHead(this.parts.output, id);
    serve(stream);
  }

  /** Returns what the client broke, if anything: the connection is over. */
  take({ id, flags, payload }: Frame): number | undefined {
    const bidi = this.open.get(id)!;
    const padding = (flags & Flag.PADDED) === 0 ? 0 : 1 + (payload[0] ?? 0);
    bidi.uncredited += payload.length;
    if (padding > payload.length || bidi.uncredited > DEFAULT_WINDOW_BYTES) return Fault.FLOW_CONTROL_ERROR;
    if (bidi.hasEnded) return Fault.STREAM_CLOSED;
    if (padding > 0) this.credit(bidi, padding);
    if (payload.length > padding) {
      bidi.stream.received(padding === 0 ? payload : payload.subarray(1, payload.length - padding + 1));
    }
    if ((flags & Flag.END_STREAM) !== 0) this.end(id);
    return undefined;
  }

  /** The client has sent all. */
  end(id: number): void {
    const bidi = this.open.get(id);
    if (bidi === undefined) return;
    bidi.hasEnded = true;
    bidi.stream.ended();
  }

  /** By the client. False: there is no such stream. */
  reset(id: number): boolean {
    const bidi = this.open.get(id);
    if (bidi === undefined) return false;
    this.open.delete(id);
    bidi.stream.aborted();
    return true;
  }

  /** The client's windows may have opened. */
  sendWaiting(): void {
    for (const bidi of this.open.values()) {
      if (bidi.waiting === undefined || !this.parts.sender.sendOn(bidi.waiting)) continue;
      bidi.waiting = undefined;
      bidi.stream.drained();
    }
  }

  abort(): void {
    for (const { stream } of this.open.values()) stream.aborted();
    this.open.clear();
  }

  private send(bidi: OpenBidi, body: Buffer): boolean {
    const { output, sender } = this.parts;
    output.flushSoon();
    const ends = { trailers: undefined, mayFollow: true, hangUp: false };
    const sending: Sending = { of: bidi, body, at: 0, ...ends, sinceMs: UNSWEPT };
    const hasGone = sender.sendOn(sending);
    if (!hasGone) bidi.waiting = sending;
    return hasGone;
  }

  private credit(bidi: OpenBidi, bytes: number) {
    const { output } = this.parts;
    bidi.uncredited -= bytes;
    bidi.creditable += bytes;
    if (bidi.creditable < CREDIT_BYTES || bidi.hasEnded) return;
    output.put(frame(Type.WINDOW_UPDATE, 0, bidi.id, number32(bidi.creditable)));
    bidi.creditable = 0;
    output.flushSoon();
  }

  private finish(bidi: OpenBidi, last: Headers) {
    const { output, sender, finished } = this.parts;
    const { id, hasEnded, waiting } = bidi;
    this.open.delete(id);
    // A client that still sends is told that nobody listens.
    const ends = { trailers: encodeFields(fieldsOf(last)), mayFollow: false, hangUp: !hasEnded };
    sender.finish({ ...(waiting ?? { of: bidi, body: EMPTY, at: 0 }), ...ends, sinceMs: UNSWEPT });
    finished();
    output.flushSoon();
  }
}
