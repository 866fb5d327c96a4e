import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { BidiStream, type BidiStreams } from "./bidi.ts";
import { ENVELOPE_BYTES, type HotAnswer, type Peer } from "./hot-method.ts";
import { createHpackDecoder, encodeFields, type HpackDecoder, HpackError } from "./hpack.ts";
import { httpDate } from "./http-date.ts";
import {
  createFrameReader,
  DEFAULT_TABLE_BYTES,
  DEFAULT_WINDOW_BYTES,
  Fault,
  Flag,
  FRAME_HEAD_BYTES,
  type Frame,
  frame,
  goawayFrame,
  headersFrames,
  MAX_FRAME_BYTES,
  MAX_WINDOW_BYTES,
  number32,
  PREFACE,
  putHead,
  Setting,
  settingsFrame,
  Type,
} from "./http2-frames.ts";
import { StockSession } from "./http2-stock.ts";
import { peerOf } from "./peer.ts";
import { ASYNC_UNITS, MAX_UNWRITTEN_BYTES, Share, STOCK_UNITS, unitsOf } from "./turns.ts";
import {
  bodyOf,
  Call,
  type HotMethods,
  headersOf,
  isPromise,
  messageIn,
  type Recognised,
  settle,
  toHeaders,
} from "./unary.ts";
import { EMPTY, FORMATS, type Headers, OK_TRAILERS, statusTrailers } from "./wire-format.ts";

export interface Http2LaneOptions {
  methods: HotMethods;
  bidi: Pick<BidiStreams, "recognise">;
  /** HTTP/2 streams at once on a connection; more are refused. */
  maxConcurrentStreams: number;
  /** Streams refused to one connection after which it is ended. */
  maxSessionRejectedStreams: number;
  /** Of all headers of a request together. */
  maxHeaderBytes: number;
  /** Time for a whole request, and for the client to take its answer. */
  requestTimeoutMs: number;
  /** Time without an open stream after which a connection is closed. */
  idleTimeoutMs: number;
  /** Serves a connection that has on it only what is not served here; `peer` is who is at its end. */
  openStock(connection: Duplex, peer: Peer | undefined): void;
}

export interface Http2Lane {
  serve(socket: Socket): void;
  /** Tells every peer by GOAWAY which stream was the last to be served; each connection ends when its open streams have. */
  drain(): void;
  stop(): void;
}

/**
 * Serves hot methods on HTTP/2 connections frame by frame. node:http2 spends more on making a stream than a call of ours
 * costs in all; what arrives together is answered here in one write, without a stream being made.
 *
 * Everything else on the connection is node:http2's: its frames are handed to a session that Node has on an inner
 * connection, with the headers written anew, since only one of the two can keep the client's header table. What that
 * session sends goes to the client as it is: answers from here touch no header table.
 */
export function createHttp2Lane(options: Http2LaneOptions): Http2Lane {
  const connections = new Set<Connection>();
  const sweep = () => {
    const nowMs = performance.now();
    for (const connection of connections) connection.sweep(nowMs);
  };
  const everyMs = Math.min(1_000, options.requestTimeoutMs, options.idleTimeoutMs);
  const timer = setInterval(sweep, everyMs).unref();
  return {
    serve(socket) {
      const connection = new Connection(socket, options);
      connections.add(connection);
      socket.once("close", () => {
        connections.delete(connection);
        connection.closed();
      });
    },
    drain() {
      for (const connection of connections) connection.drain();
    },
    stop: () => clearInterval(timer),
  };
}

// Of the 65,535 bytes that a client may send before it is given credit, node:http2 keeps back up to a half. The two below
// must leave some of the other half, or a client could wait for credit for ever.

/** What calls under way may have sent on a connection before they are whole. A larger message is node:http2's. */
const MAX_HELD_BYTES = 24_000;
/** Credit for received bytes is given in portions. */
const CREDIT_BYTES = 8_192;
/** Blocks of headers that are known by heart, a connection; longer ones are not. */
const MAX_MEMORIES = 16;
const MAX_MEMORY_BYTES = 1_024;

/** A call whose message is not whole, or that is being answered. */
interface OpenCall {
  id: number;
  recognised: Recognised;
  body: Buffer | undefined;
  call: Call | undefined;
  sinceMs: number;
  /** What the client opened the stream's window by, beyond its first size. */
  credit: number;
}

/** A stream of messages. */
interface OpenBidi {
  id: number;
  stream: BidiStream;
  credit: number;
  /** Received, and not yet credited to the client. */
  uncredited: number;
  /** To be credited with the next portion. */
  creditable: number;
  hasEnded: boolean;
  waiting: Blocked | undefined;
}

/** What waits for the client's windows. */
interface Blocked {
  /** Whose window it is. */
  of: { readonly id: number; credit: number };
  body: Buffer;
  at: number;
  /** Headers, the end of an answer; undefined: the body's last byte is, or, of a stream of messages, more may follow. */
  trailers: Buffer | undefined;
  bidi: OpenBidi | undefined;
  /** To be reset behind its trailers. */
  hangUp: boolean;
  sinceMs: number;
}

class Connection {
  private readonly socket: Socket;
  private readonly peer: Peer | undefined;
  private readonly options: Http2LaneOptions;
  private readonly decoder: HpackDecoder;
  private readonly read: (chunk: Buffer) => "ok" | "more" | "too large";
  private readonly share = new Share(() => this.goOn());
  /** Frames that have come, and wait for the connection's turn. */
  private holding = false;
  private preface: Buffer | undefined = EMPTY;
  private sawSettings = false;
  private ended = false;
  private endedMs: number | undefined;
  private draining = false;
  private lastId = 0;
  private refused = 0;
  /** Streams above it are not served: the client was told so. */
  private goneId = MAX_WINDOW_BYTES;
  /** Headers of which more is to come. */
  private block: { id: number; flags: number; parts: Buffer[]; bytes: number } | undefined;
  private readonly memories = new Map<string, Recognised>();
  private memoriesVersion = 0;

  private readonly calls = new Map<number, OpenCall>();
  private readonly bidis = new Map<number, OpenBidi>();
  /** Calls that are being answered, and whose stream is no more. */
  private abandoned = 0;
  private readonly blocked = new Map<number, Blocked>();
  /** Bytes of bodies that are not whole. */
  private heldBytes = 0;
  /** Received, and not yet credited to the client. */
  private uncredited = 0;
  private idleSinceMs = performance.now();
  private used = false;

  private readonly settings = new Map<number, number>();
  /** What the client has set, and the inner session has not acknowledged. */
  private readonly said: [number, number][][] = [];
  private sendWindow = DEFAULT_WINDOW_BYTES;
  /** The windows that answers wait for may have changed. */
  private windowsChanged = false;
  /** The client once had its header table smaller than it is at first. */
  private tableShrunk = false;

  private stock: StockSession | undefined;
  /** Who wants no more to be read for now: the client does not take what is written, the inner session not what is read. */
  private outFull = false;
  private innerFull = false;

  /** What is to be written when the chunk being read is through. */
  private pending: Buffer[] = [];
  private pendingBytes = 0;
  private flushing = false;

  constructor(socket: Socket, options: Http2LaneOptions) {
    this.socket = socket;
    this.peer = peerOf(socket);
    this.options = options;
    this.decoder = createHpackDecoder({ maxTableBytes: DEFAULT_TABLE_BYTES, maxListBytes: options.maxHeaderBytes });
    this.read = createFrameReader(
      MAX_FRAME_BYTES,
      (received) => this.take(received),
      () => this.mayTake(),
    );
    socket.on("data", (chunk: Buffer) => this.receive(chunk));
    socket.on("end", () => this.end());
    this.put(
      settingsFrame([
        [Setting.MAX_CONCURRENT_STREAMS, options.maxConcurrentStreams],
        [Setting.MAX_HEADER_LIST_SIZE, options.maxHeaderBytes],
      ]),
    );
    this.flush();
  }

  // ---- reading

  private receive(chunk: Buffer) {
    if (this.ended) return;
    const frames = this.preface === undefined ? chunk : this.afterPreface(chunk);
    if (frames !== undefined) this.serve(frames);
  }

  private goOn() {
    if (this.ended || !this.holding || !this.mayRead()) return;
    this.serve(EMPTY);
    if (!this.holding) this.readOn();
  }

  private serve(frames: Buffer) {
    this.flushing = true;
    const outcome = this.read(frames);
    if (outcome === "too large") this.fail(Fault.FRAME_SIZE_ERROR);
    this.flushing = false;
    this.holding = outcome === "more";
    this.endIfDone();
    this.flush();
    if (this.ended) return;
    if (this.holding) {
      this.socket.pause();
      this.readOn();
    } else this.share.renew();
  }

  private mayTake(): boolean {
    return this.share.hasLeft() && this.mayRead() && this.pendingBytes < MAX_UNWRITTEN_BYTES;
  }

  private afterPreface(chunk: Buffer): Buffer | undefined {
    const seen = Buffer.concat([this.preface!, chunk]);
    const length = Math.min(seen.length, PREFACE.length);
    if (!PREFACE.subarray(0, length).equals(seen.subarray(0, length))) {
      this.fail(Fault.PROTOCOL_ERROR);
      return undefined;
    }
    this.preface = length < PREFACE.length ? seen : undefined;
    return this.preface === undefined ? seen.subarray(length) : undefined;
  }

  private take(received: Frame) {
    if (this.ended) return;
    const { type, id, payload } = received;
    this.share.spend(1 + unitsOf(payload.length));
    if (!this.sawSettings && type !== Type.SETTINGS) return this.fail(Fault.PROTOCOL_ERROR);
    if (this.block !== undefined && (type !== Type.CONTINUATION || id !== this.block.id)) {
      return this.fail(Fault.PROTOCOL_ERROR);
    }
    switch (type) {
      case Type.DATA:
        return this.takeData(received);
      case Type.HEADERS:
        return this.takeHeaders(received);
      case Type.CONTINUATION:
        return this.takeContinuation(received);
      case Type.WINDOW_UPDATE:
        return this.takeWindowUpdate(received);
      case Type.RST_STREAM:
        return this.takeReset(received);
      case Type.SETTINGS:
        return this.takeSettings(received);
      case Type.PING:
        return this.takePing(received);
      case Type.GOAWAY:
        // It is about streams that a server opens.
        if (id !== 0) return this.fail(Fault.PROTOCOL_ERROR);
        return;
      case Type.PUSH_PROMISE:
        return this.fail(Fault.PROTOCOL_ERROR);
      case Type.PRIORITY:
        if (id === 0) return this.fail(Fault.PROTOCOL_ERROR);
        if (payload.length !== 5) return this.fail(Fault.FRAME_SIZE_ERROR);
        return;
      default:
      // RFC 9113, 5.5: unknown frames are ignored.
    }
  }

  private takeHeaders({ flags, id, payload }: Frame) {
    if (id % 2 === 0) return this.fail(Fault.PROTOCOL_ERROR);
    let start = 0;
    let end = payload.length;
    if ((flags & Flag.PADDED) !== 0) {
      start = 1;
      end -= payload[0] ?? 0;
    }
    if ((flags & Flag.PRIORITY) !== 0) start += 5;
    if (end < start) return this.fail(Fault.PROTOCOL_ERROR);
    const fragment = payload.subarray(start, end);
    if ((flags & Flag.END_HEADERS) !== 0) return this.takeBlock(id, flags, fragment);
    this.block = { id, flags, parts: [fragment], bytes: fragment.length };
  }

  private takeContinuation({ flags, payload }: Frame) {
    const { block } = this;
    if (block === undefined) return this.fail(Fault.PROTOCOL_ERROR);
    block.parts.push(payload);
    block.bytes += payload.length;
    // A block that never ends, or of endless empty parts, would fill the memory (CONTINUATION flood).
    if (block.bytes > this.options.maxHeaderBytes + MAX_FRAME_BYTES || block.parts.length > MAX_FRAGMENTS) {
      return this.fail(Fault.ENHANCE_YOUR_CALM);
    }
    if ((flags & Flag.END_HEADERS) === 0) return;
    this.block = undefined;
    this.takeBlock(block.id, block.flags, Buffer.concat(block.parts));
  }

  private takeBlock(id: number, flags: number, block: Buffer) {
    const known = this.recall(block);
    const list = known === undefined ? this.decode(block) : known.list;
    if (list === undefined) return;
    if (id <= this.lastId) return this.takeTrailers(id, flags, list);
    this.lastId = id;
    this.used = true;
    if (id > this.goneId) return;
    if (list.length === 0) return this.reset(id, Fault.ENHANCE_YOUR_CALM);
    // A call goes on for a while when its stream is reset: what a client could start by resets is bounded too.
    if (this.openStreams() + this.abandoned >= this.options.maxConcurrentStreams) return this.refuse(id);
    const recognised = known ?? this.recognise(block, list);
    if (recognised === undefined) return this.openBidi(id, flags, list);
    const call = { id, recognised, body: undefined, call: undefined, sinceMs: UNSWEPT, credit: 0 };
    if ((flags & Flag.END_STREAM) !== 0) this.answer(call);
    else this.calls.set(id, call);
  }

  private openBidi(id: number, flags: number, list: string[]) {
    const headers = toHeaders(list);
    const serve = headers && this.options.bidi.recognise(headers, this.peer);
    if (serve === undefined) return this.handOver(id, flags, list);
    const bidi: OpenBidi = {
      id,
      credit: 0,
      uncredited: 0,
      creditable: 0,
      hasEnded: false,
      waiting: undefined,
      stream: new BidiStream({
        send: (bytes) => {
          this.flushSoon();
          return this.send(bidi, asBuffer(bytes), undefined, bidi);
        },
        credit: (bytes) => this.creditBidi(bidi, bytes),
        finish: (trailers) => this.finishBidi(bidi, trailers),
      }),
    };
    this.share.spend(STOCK_UNITS);
    this.bidis.set(id, bidi);
    this.putHeaders(0, id, plainHead(FORMATS.get("application/grpc")!.contentType));
    serve(bidi.stream);
    if ((flags & Flag.END_STREAM) !== 0) this.endBidi(bidi);
  }

  /** A block that was seen before, and means the same since the table did not change. */
  private recall(block: Buffer): Recognised | undefined {
    if (this.memoriesVersion !== this.decoder.version) {
      this.memories.clear();
      this.memoriesVersion = this.decoder.version;
    }
    if (this.memories.size === 0 || block.length > MAX_MEMORY_BYTES) return undefined;
    return this.memories.get(block.toString("latin1"));
  }

  private recognise(block: Buffer, list: string[]): Recognised | undefined {
    const recognised = this.options.methods.recognise(list);
    // One that changed the table means something else the next time.
    const isLasting = block.length <= MAX_MEMORY_BYTES && this.memoriesVersion === this.decoder.version;
    if (recognised !== undefined && isLasting) {
      if (this.memories.size >= MAX_MEMORIES) this.memories.clear();
      this.memories.set(block.toString("latin1"), recognised);
    }
    return recognised;
  }

  /** undefined: the connection is over. */
  private decode(block: Buffer): string[] | undefined {
    try {
      return this.decoder.decode(block);
    } catch (error) {
      if (!(error instanceof HpackError)) throw error;
      this.fail(Fault.COMPRESSION_ERROR);
      return undefined;
    }
  }

  /** A second block ends the request. No call of ours has one. */
  private takeTrailers(id: number, flags: number, list: string[]) {
    const call = this.calls.get(id);
    const bidi = this.bidis.get(id);
    if (call !== undefined && call.call === undefined) this.giveUp(call);
    if (bidi !== undefined) this.endBidi(bidi);
    else if (this.stock?.has(id)) this.stock.sendHeaders(id, flags, list);
    // It may have been on its way when the stream was reset from here.
    else this.reset(id, Fault.STREAM_CLOSED);
  }

  private takeData(received: Frame) {
    const { flags, id, payload } = received;
    if (id === 0 || id > this.lastId) return this.fail(Fault.PROTOCOL_ERROR);
    const call = this.calls.get(id);
    if (call === undefined || call.call !== undefined) {
      const bidi = this.bidis.get(id);
      if (bidi !== undefined) return this.takeBidiData(bidi, received);
      if (this.stock?.send(received)) return;
      this.credit(payload.length);
      if (id <= this.goneId) this.reset(id, Fault.STREAM_CLOSED);
      return;
    }
    this.heldBytes += payload.length;
    if ((flags & Flag.PADDED) !== 0 || this.heldBytes > MAX_HELD_BYTES) {
      this.heldBytes -= payload.length;
      this.giveUp(call);
      if (!this.stock!.send(received)) this.credit(payload.length);
      return;
    }
    const isLast = (flags & Flag.END_STREAM) !== 0;
    call.body = isLast && call.body === undefined ? payload : append(call.body, payload);
    if (isLast) this.answer(call);
  }

  private takeBidiData(bidi: OpenBidi, { flags, payload }: Frame) {
    const padding = (flags & Flag.PADDED) === 0 ? 0 : 1 + (payload[0] ?? 0);
    bidi.uncredited += payload.length;
    this.credit(payload.length);
    if (padding > payload.length || bidi.uncredited > DEFAULT_WINDOW_BYTES) return this.fail(Fault.FLOW_CONTROL_ERROR);
    if (bidi.hasEnded) return this.fail(Fault.STREAM_CLOSED);
    if (padding > 0) this.creditBidi(bidi, padding);
    if (payload.length > padding) {
      bidi.stream.received(padding === 0 ? payload : payload.subarray(1, payload.length - padding + 1));
    }
    if ((flags & Flag.END_STREAM) !== 0) this.endBidi(bidi);
  }

  private endBidi(bidi: OpenBidi) {
    bidi.hasEnded = true;
    bidi.stream.ended();
  }

  private creditBidi(bidi: OpenBidi, bytes: number) {
    bidi.uncredited -= bytes;
    bidi.creditable += bytes;
    if (bidi.creditable < CREDIT_BYTES || bidi.hasEnded) return;
    this.put(frame(Type.WINDOW_UPDATE, 0, bidi.id, number32(bidi.creditable)));
    bidi.creditable = 0;
    this.flushSoon();
  }

  private finishBidi(bidi: OpenBidi, last: Headers) {
    const { id, hasEnded, waiting } = bidi;
    this.bidis.delete(id);
    const trailers = encodeFields(fieldsOf(last));
    // A client that still sends is told that nobody listens.
    const ending = { trailers, bidi: undefined, hangUp: !hasEnded, sinceMs: UNSWEPT };
    const answer = { ...(waiting ?? { of: bidi, body: EMPTY, at: 0 }), ...ending };
    if (!this.sendOn(answer)) this.blocked.set(id, answer);
    this.endIfDone();
    this.flushSoon();
  }

  private takeReset(received: Frame) {
    const { id, payload } = received;
    if (payload.length !== 4) return this.fail(Fault.FRAME_SIZE_ERROR);
    if (id === 0 || id > this.lastId) return this.fail(Fault.PROTOCOL_ERROR);
    const call = this.calls.get(id);
    const bidi = this.bidis.get(id);
    if (call !== undefined) this.drop(call);
    else if (bidi !== undefined) {
      this.bidis.delete(id);
      bidi.stream.aborted();
    } else if (!this.blocked.delete(id)) this.stock?.send(received);
  }

  private takeWindowUpdate(received: Frame) {
    const { id, payload } = received;
    if (payload.length !== 4) return this.fail(Fault.FRAME_SIZE_ERROR);
    const increment = payload.readUInt32BE(0) & MAX_WINDOW_BYTES;
    if (increment === 0 || id > this.lastId) return this.fail(Fault.PROTOCOL_ERROR);
    if (id !== 0) {
      const waiting = this.calls.get(id) ?? this.bidis.get(id) ?? this.blocked.get(id)?.of;
      if (waiting === undefined) {
        this.stock?.send(received);
        return;
      }
      waiting.credit += increment;
      if (this.firstWindow() + waiting.credit > MAX_WINDOW_BYTES) return this.fail(Fault.FLOW_CONTROL_ERROR);
    } else {
      this.sendWindow += increment;
      if (this.sendWindow > MAX_WINDOW_BYTES) return this.fail(Fault.FLOW_CONTROL_ERROR);
    }
    this.windowsChanged = true;
  }

  private takeSettings(received: Frame) {
    const { flags, id, payload } = received;
    if (id !== 0) return this.fail(Fault.PROTOCOL_ERROR);
    if ((flags & Flag.ACK) !== 0) {
      if (payload.length > 0) this.fail(Fault.FRAME_SIZE_ERROR);
      return;
    }
    if (payload.length % 6 !== 0) return this.fail(Fault.FRAME_SIZE_ERROR);
    this.sawSettings = true;
    const said: [number, number][] = [];
    for (let at = 0; at < payload.length; at += 6) {
      const setting = payload.readUInt16BE(at);
      const value = payload.readUInt32BE(at + 2);
      const fault = faultOf(setting, value);
      if (fault !== undefined) return this.fail(fault);
      // What is unknown is ignored, and not kept: there are too many numbers.
      if (setting <= Setting.MAX_HEADER_LIST_SIZE) said.push([setting, value]);
      if (setting === Setting.HEADER_TABLE_SIZE && value < DEFAULT_TABLE_BYTES) this.tableShrunk = true;
    }
    if (this.stock !== undefined) {
      // The session's own acknowledgement stands where its data change to the new window.
      this.said.push(said);
      if (this.said.length > MAX_UNACKNOWLEDGED) return this.fail(Fault.ENHANCE_YOUR_CALM);
      this.stock.sendSettings(said);
      return;
    }
    this.put(SETTINGS_ACK);
    this.apply(said);
  }

  private apply(said: readonly [number, number][]) {
    for (const [setting, value] of said) this.settings.set(setting, value);
    this.windowsChanged = true;
  }

  private takePing(received: Frame) {
    const { flags, id, payload } = received;
    if (id !== 0) return this.fail(Fault.PROTOCOL_ERROR);
    if (payload.length !== 8) return this.fail(Fault.FRAME_SIZE_ERROR);
    if ((flags & Flag.ACK) === 0) this.put(frame(Type.PING, Flag.ACK, 0, payload));
  }

  // ---- answering

  private answer(open: OpenCall) {
    const { id, recognised, body } = open;
    const { method, format, headers, timeoutMs, contentLength } = recognised;
    const length = body?.length ?? 0;
    const whole = contentLength === undefined || contentLength === length;
    const message = whole ? messageIn(format, body ?? null, this.options.methods.maxBytesOf(method)) : undefined;
    const call = message && new Call(format, message, headers, timeoutMs, this.peer);
    const answer = call && this.options.methods.answer(method, call);
    if (answer === undefined) {
      if (!this.calls.has(id)) this.calls.set(id, open);
      this.giveUp(open, true);
      return;
    }
    this.heldBytes -= length;
    this.credit(length);
    if (!isPromise(answer)) {
      this.calls.delete(id);
      this.write(open, answer);
      return;
    }
    this.share.spend(ASYNC_UNITS);
    open.call = call;
    open.body = undefined;
    this.calls.set(id, open);
    settle(answer, call!, (late) => {
      if (this.calls.delete(id)) this.write(open, late);
      else this.abandoned -= 1;
      this.endIfDone();
      this.flushSoon();
    });
  }

  private write(open: OpenCall, answer: HotAnswer) {
    const { format } = open.recognised;
    if (format.protocol !== "grpc") {
      const { status, headers, bytes } = bodyOf(format, answer);
      const block = encodeFields([":status", String(status), ...fieldsOf(headers), "date", httpDate()]);
      this.putHeaders(0, open.id, block);
      this.send(open, asBuffer(bytes), undefined);
      return;
    }
    const { error, trailers, message } = answer;
    if (error === undefined && trailers === undefined && answer.headers === undefined && message !== undefined) {
      if (this.writePlain(open, message, answer.roomy === true)) return;
    }
    const head = encodeFields([":status", "200", ...fieldsOf(headersOf(format, answer)), "date", httpDate()]);
    const status = error === undefined ? OK_TRAILERS : { "cache-control": "no-store", ...statusTrailers(error) };
    const last = encodeFields(fieldsOf({ ...trailers, ...status }));
    const content = answer.roomy ? message!.subarray(ENVELOPE_BYTES) : (message ?? EMPTY);
    this.putHeaders(0, open.id, head);
    this.send(open, error === undefined ? envelope(content) : EMPTY, last);
  }

  /** The usual answer, put where it is sent from. False when it is not to be sent in one go. */
  private writePlain({ id, recognised, credit }: OpenCall, message: Uint8Array, roomy: boolean): boolean {
    const dataBytes = message.length + (roomy ? 0 : ENVELOPE_BYTES);
    if (this.tableShrunk) return false;
    if (dataBytes > MAX_FRAME_BYTES || dataBytes > Math.min(this.sendWindow, this.firstWindow() + credit)) return false;
    const head = plainHead(recognised.format.contentType);
    const size = 3 * FRAME_HEAD_BYTES + head.length + dataBytes + OK_BLOCK.length;
    const { slab, start } = this.reserve(size);
    let at = putHead(slab, start, head.length, Type.HEADERS, Flag.END_HEADERS, id);
    slab.set(head, at);
    at = putHead(slab, at + head.length, dataBytes, Type.DATA, 0, id);
    if (!roomy) at = putEnvelopeHead(slab, at, message.length);
    slab.set(message, at);
    if (roomy) putEnvelopeHead(slab, at, message.length - ENVELOPE_BYTES);
    at += message.length;
    at = putHead(slab, at, OK_BLOCK.length, Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, id);
    slab.set(OK_BLOCK, at);
    this.sendWindow -= dataBytes;
    return true;
  }

  /** Sends what the client's windows have room for, and the rest when they have. Whether all has gone. */
  private send(of: Blocked["of"], body: Buffer, trailers: Buffer | undefined, bidi?: OpenBidi): boolean {
    const answer = { of, body, at: 0, trailers, bidi, hangUp: false, sinceMs: UNSWEPT };
    const hasGone = this.sendOn(answer);
    if (hasGone) return true;
    if (bidi === undefined) this.blocked.set(of.id, answer);
    else bidi.waiting = answer;
    return false;
  }

  private sendOn(answer: Blocked): boolean {
    const { of, body, trailers, bidi } = answer;
    while (answer.at < body.length) {
      const window = Math.min(this.sendWindow, this.firstWindow() + of.credit);
      const length = Math.min(body.length - answer.at, window, MAX_FRAME_BYTES);
      if (length <= 0) return false;
      const end = answer.at + length;
      const isLast = end === body.length && trailers === undefined && bidi === undefined;
      this.put(frame(Type.DATA, isLast ? Flag.END_STREAM : 0, of.id, body.subarray(answer.at, end)));
      answer.at = end;
      of.credit -= length;
      this.sendWindow -= length;
    }
    if (trailers !== undefined) this.putHeaders(Flag.END_STREAM, of.id, trailers);
    else if (body.length === 0 && bidi === undefined) this.put(frame(Type.DATA, Flag.END_STREAM, of.id, EMPTY));
    if (answer.hangUp) this.put(frame(Type.RST_STREAM, 0, of.id, number32(Fault.NO_ERROR)));
    return true;
  }

  private sendBlocked() {
    this.stock?.windowOpened();
    for (const [id, answer] of this.blocked) if (this.sendOn(answer)) this.blocked.delete(id);
    for (const bidi of this.bidis.values()) {
      if (bidi.waiting === undefined || !this.sendOn(bidi.waiting)) continue;
      bidi.waiting = undefined;
      bidi.stream.drained();
    }
    this.endIfDone();
  }

  private firstWindow(): number {
    return this.settings.get(Setting.INITIAL_WINDOW_SIZE) ?? DEFAULT_WINDOW_BYTES;
  }

  /** Lets the client send as much again on the connection. */
  private credit(bytes: number) {
    this.uncredited += bytes;
    if (this.uncredited < CREDIT_BYTES) return;
    this.put(frame(Type.WINDOW_UPDATE, 0, 0, number32(this.uncredited)));
    this.uncredited = 0;
  }

  // ---- what is node:http2's

  /** A call that turned out not to be served here, from its beginning. */
  private giveUp(open: OpenCall, isWhole = false) {
    const { id, recognised, body, credit } = open;
    this.calls.delete(id);
    this.heldBytes -= body?.length ?? 0;
    const isEmpty = isWhole && (body?.length ?? 0) === 0;
    this.handOver(id, isEmpty ? Flag.END_STREAM : 0, recognised.list);
    for (let at = 0; body !== undefined && at < body.length; at += MAX_FRAME_BYTES) {
      const isLast = isWhole && at + MAX_FRAME_BYTES >= body.length;
      const payload = body.subarray(at, at + MAX_FRAME_BYTES);
      const isTaken = this.stock!.send({ type: Type.DATA, flags: isLast ? Flag.END_STREAM : 0, id, payload });
      if (!isTaken) this.credit(payload.length);
    }
    if (credit > 0) this.stock!.send({ type: Type.WINDOW_UPDATE, flags: 0, id, payload: number32(credit) });
  }

  private handOver(id: number, flags: number, list: readonly string[]) {
    this.share.spend(STOCK_UNITS);
    this.stock ??= this.openStock();
    this.stock.open(id, flags, list);
  }

  private openStock(): StockSession {
    return new StockSession({
      open: (connection) => this.options.openStock(connection, this.peer),
      remoteAddress: this.socket.remoteAddress,
      settings: this.settings,
      windowLeft: () => this.sendWindow,
      windowUsed: () => {
        this.windowsChanged = true;
        this.flushSoon();
      },
      sent: (bytes) => {
        this.sendWindow -= bytes;
      },
      acknowledged: () => this.apply(this.said.shift() ?? []),
      writeHeaders: (flags, id, block) => {
        this.putHeaders(flags, id, block);
        this.flushSoon();
      },
      write: (bytes) => {
        this.put(bytes);
        this.flushSoon();
      },
      whenTaken: (then) => {
        if (this.socket.writableNeedDrain) this.socket.once("drain", then);
        else then();
      },
      pause: () => {
        this.innerFull = true;
        this.socket.pause();
      },
      resume: () => {
        this.innerFull = false;
        this.readOn();
      },
      idle: () => this.endIfDone(),
      failed: (fault) => this.fail(fault),
    });
  }

  // ---- writing

  private put(bytes: Buffer) {
    this.pending.push(bytes);
    this.pendingBytes += bytes.length;
  }

  private putHeaders(flags: number, id: number, block: Buffer) {
    // RFC 7541, 4.2: a client that made its table smaller waits for a block that says so. No block of either uses a table,
    // so that each may say it.
    this.put(headersFrames(flags, id, this.tableShrunk ? Buffer.concat([TABLE_EMPTIED, block]) : block));
  }

  /** A piece of the slab right behind the last, so that answers that go together stand together. */
  private reserve(bytes: number): { slab: Buffer; start: number } {
    if (slab.length - slabAt < bytes) {
      slab = Buffer.allocUnsafeSlow(Math.max(SLAB_BYTES, bytes));
      slabAt = 0;
    }
    const start = slabAt;
    slabAt += bytes;
    this.pendingBytes += bytes;
    const last = this.pending.at(-1);
    if (last !== undefined && last.buffer === slab.buffer && last.byteOffset + last.length === start) {
      this.pending[this.pending.length - 1] = slab.subarray(last.byteOffset, slabAt);
    } else this.pending.push(slab.subarray(start, slabAt));
    return { slab, start };
  }

  private flush() {
    const { socket } = this;
    if (this.windowsChanged && !this.ended) {
      this.windowsChanged = false;
      this.sendBlocked();
    }
    const { pending } = this;
    if (pending.length === 0) return;
    this.pending = [];
    this.pendingBytes = 0;
    if (socket.destroyed || socket.writableEnded) return;
    if (pending.length > 1) socket.cork();
    for (const bytes of pending) socket.write(bytes);
    if (pending.length > 1) socket.uncork();
    // A client that does not read its answers is not read from.
    if (socket.writableNeedDrain && !this.outFull) {
      this.outFull = true;
      socket.pause();
      socket.once("drain", () => {
        this.outFull = false;
        this.readOn();
      });
    }
  }

  private readOn() {
    if (!this.mayRead()) return;
    if (this.holding) this.share.wait();
    else if (this.socket.isPaused()) this.socket.resume();
  }

  private mayRead(): boolean {
    return !this.outFull && !this.innerFull;
  }

  /** What is written apart from a chunk that is being read: together with all that is written in this turn. */
  private flushSoon() {
    if (this.flushing) return;
    this.flushing = true;
    process.nextTick(() => {
      this.flushing = false;
      this.flush();
    });
  }

  // ---- ending

  private reset(id: number, fault: number) {
    const call = this.calls.get(id);
    if (call !== undefined) this.drop(call);
    this.blocked.delete(id);
    this.put(frame(Type.RST_STREAM, 0, id, number32(fault)));
  }

  /** Before it was told how many streams it may have, a client may well have too many, but not again and again. */
  private refuse(id: number) {
    this.refused += 1;
    if (this.refused > this.options.maxSessionRejectedStreams) this.fail(Fault.ENHANCE_YOUR_CALM);
    else this.reset(id, Fault.REFUSED_STREAM);
  }

  private drop(open: OpenCall) {
    this.calls.delete(open.id);
    const bytes = open.body?.length ?? 0;
    this.heldBytes -= bytes;
    this.credit(bytes);
    if (open.call === undefined) return;
    this.abandoned += 1;
    open.call.abort();
  }

  /** The peer broke the rules: the connection is over. */
  private fail(fault: number) {
    if (this.ended) return;
    this.put(goawayFrame(Math.min(this.lastId, this.goneId), fault));
    this.end();
  }

  private end() {
    if (this.ended) return;
    this.ended = true;
    this.flush();
    this.socket.destroySoon();
    this.closed();
  }

  private endIfDone() {
    if (this.draining && this.isIdle()) this.end();
  }

  private openStreams(): number {
    return this.calls.size + this.bidis.size + this.blocked.size + (this.stock?.size ?? 0);
  }

  private isIdle(): boolean {
    return this.openStreams() === 0 && (this.stock === undefined || this.stock.isIdle());
  }

  drain(): void {
    if (this.draining || this.ended) return;
    this.draining = true;
    this.goneId = this.lastId;
    this.put(goawayFrame(this.lastId, Fault.NO_ERROR));
    this.flushSoon();
    this.endIfDone();
  }

  closed(): void {
    this.ended = true;
    this.share.leave();
    for (const open of this.calls.values()) open.call?.abort();
    for (const { stream } of this.bidis.values()) stream.aborted();
    this.calls.clear();
    this.bidis.clear();
    this.blocked.clear();
    this.stock?.destroy();
  }

  sweep(nowMs: number): void {
    const { requestTimeoutMs, idleTimeoutMs } = this.options;
    if (this.ended) {
      // One that does not take what it was sent last would stay.
      this.endedMs ??= nowMs;
      if (nowMs - this.endedMs >= requestTimeoutMs) this.socket.destroy();
      return;
    }
    for (const open of this.calls.values()) {
      if (open.call !== undefined) continue;
      if (open.sinceMs === UNSWEPT) open.sinceMs = nowMs;
      else if (nowMs - open.sinceMs >= requestTimeoutMs) this.reset(open.id, Fault.CANCEL);
    }
    for (const [id, answer] of this.blocked) {
      if (answer.sinceMs === UNSWEPT) answer.sinceMs = nowMs;
      else if (nowMs - answer.sinceMs >= requestTimeoutMs) this.reset(id, Fault.CANCEL);
    }
    this.endIfDone();
    this.flushSoon();
    if (this.used || !this.isIdle()) this.idleSinceMs = nowMs;
    this.used = false;
    if (nowMs - this.idleSinceMs >= idleTimeoutMs) this.drain();
  }
}

/** What only sweeps say: reading the clock for each stream would be felt. */
const UNSWEPT = 0;
/** Settings: a client that leaves no room for the answers before an acknowledgement could heap them up. */
const MAX_UNACKNOWLEDGED = 100;
/** Of one block of headers. */
const MAX_FRAGMENTS = 64;
/** HPACK: the table's size from here on is 0. */
const TABLE_EMPTIED = Buffer.of(0x20);
const SETTINGS_ACK = frame(Type.SETTINGS, Flag.ACK, 0, EMPTY);
const OK_BLOCK = encodeFields(fieldsOf(OK_TRAILERS));
const SLAB_BYTES = 64 * 1024;
let slab = Buffer.allocUnsafeSlow(SLAB_BYTES);
let slabAt = 0;

let plainHeads = new Map<string, Buffer>();
let plainHeadsDate = "";

/** The headers of a gRPC answer that adds none. */
function plainHead(contentType: string): Buffer {
  const date = httpDate();
  if (date !== plainHeadsDate) {
    plainHeadsDate = date;
    plainHeads = new Map();
  }
  let head = plainHeads.get(contentType);
  if (head === undefined) {
    const { head: headers } = FORMATS.get(contentType)!;
    head = encodeFields([":status", "200", ...fieldsOf(headers), "date", date]);
    plainHeads.set(contentType, head);
  }
  return head;
}

/** A buffer of its own: a piece would keep alive all that it came with. Room is doubled, so that many pieces cost no more. */
function append(body: Buffer | undefined, piece: Buffer): Buffer {
  const start = body?.length ?? 0;
  const length = start + piece.length;
  if (body !== undefined && body.buffer.byteLength >= length) {
    Buffer.from(body.buffer).set(piece, start);
    return Buffer.from(body.buffer, 0, length);
  }
  const roomier = Buffer.allocUnsafeSlow(2 * length);
  if (body !== undefined) roomier.set(body);
  roomier.set(piece, start);
  return roomier.subarray(0, length);
}

function putEnvelopeHead(target: Buffer, at: number, length: number): number {
  target[at] = 0;
  target[at + 1] = length >>> 24;
  target[at + 2] = length >>> 16;
  target[at + 3] = length >>> 8;
  target[at + 4] = length;
  return at + ENVELOPE_BYTES;
}

function envelope(message: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(ENVELOPE_BYTES + message.length);
  bytes.set(message, putEnvelopeHead(bytes, 0, message.length));
  return bytes;
}

function fieldsOf(headers: Headers): string[] {
  return Object.entries(headers).flatMap(([name, value]) => [name, String(value)]);
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** RFC 9113, 6.5.2. */
function faultOf(setting: number, value: number): number | undefined {
  if (setting === Setting.ENABLE_PUSH && value > 1) return Fault.PROTOCOL_ERROR;
  if (setting === Setting.INITIAL_WINDOW_SIZE && value > MAX_WINDOW_BYTES) return Fault.FLOW_CONTROL_ERROR;
  if (setting === Setting.MAX_FRAME_SIZE && (value < MAX_FRAME_BYTES || value > 0xffffff)) return Fault.PROTOCOL_ERROR;
  return undefined;
}
