import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import type { BidirectionalStreams } from "../bidirectional.ts";
import type { FastAnswer, Peer, TransportRefusals } from "../fast-method.ts";
import { peerOf } from "../peer.ts";
import { ASYNC_UNITS, NODE_UNITS, Share, unitsOf } from "../share.ts";
import { Call, type FastMethods, isPromise, messageIn, type Recognised, toHeaders, unitsToInflate } from "../unary.ts";
import { append, EMPTY } from "../wire-format.ts";
import { writeAnswer, writeRefusal } from "./answers.ts";
import { OpenStreams } from "./bidirectional-streams.ts";
import { Drain } from "./drain.ts";
import {
  CREDIT_BYTES,
  createFrameReader,
  DEFAULT_TABLE_BYTES,
  Fault,
  Flag,
  type Frame,
  frame,
  goawayFrame,
  MAX_FRAME_BYTES,
  MAX_WINDOW_BYTES,
  number32,
  PREFACE,
  Setting,
  settingsFrame,
  Type,
} from "./frames.ts";
import { HeaderBlocks } from "./header-blocks.ts";
import { ENTRY_OVERHEAD } from "./hpack.ts";
import { NodeSession } from "./node-server.ts";
import { Output } from "./output.ts";
import { Sender, type StreamWindow, UNSWEPT } from "./sender.ts";

interface Http2ConnectionsOptions {
  methods: FastMethods;
  streams: Pick<BidirectionalStreams, "recognise">;
  /** HTTP/2 streams at once on a connection; more wait, or are refused. */
  maxConcurrentStreams: number;
  refusals: Pick<TransportRefusals, "tooManyCalls">;
  /** Streams refused to one connection after which it is ended. */
  maxSessionRejectedStreams: number;
  /** Of all headers of a request together. */
  maxHeaderBytes: number;
  /** Time for a whole request, and for the client to take its answer. */
  requestTimeoutMs: number;
  /** Time without an open stream after which a connection is closed. */
  idleTimeoutMs: number;
  /** Serves a connection that has on it only what is not served here; `peer` is who is at its end. */
  openNodeSession(connection: Duplex, peer: Peer | undefined): void;
}

interface Http2Connections {
  serve(socket: Socket): void;
  /** Asks every peer to go, and serves it until it knows; each connection ends when its open streams have. */
  drain(): void;
  stop(): void;
}

/**
 * Serves fast methods on HTTP/2 connections frame by frame. node:http2 spends more on making a stream than a call of ours
 * costs in all; what arrives together is answered here in one write, without a stream being made.
 *
 * Everything else on the connection is node:http2's: its frames are handed to a session that Node has on an inner
 * connection, with the headers written anew, since only one of the two can keep the client's header table. What that
 * session sends goes to the client as it is: answers from here touch no header table.
 */
export function createHttp2Connections(options: Http2ConnectionsOptions): Http2Connections {
  const connections = new Set<Connection>();
  const sweep = () => {
    const nowMs = performance.now();
    for (const connection of connections) connection.sweep(nowMs);
  };
  const everyMs = Math.min(1_000, options.requestTimeoutMs, options.idleTimeoutMs);
  const timer = setInterval(sweep, everyMs).unref();
  let draining = false;
  return {
    serve(socket) {
      const connection = new Connection(socket, options);
      connections.add(connection);
      socket.once("close", () => {
        connections.delete(connection);
        connection.closed();
      });
      if (draining) connection.drain();
    },
    drain() {
      draining = true;
      for (const connection of connections) connection.drain();
    },
    stop: () => clearInterval(timer),
  };
}

/**
 * Bytes that calls under way may have sent on a connection before they are whole. A larger message is node:http2's. Of the 65,535
 * bytes that a client may send before it is given credit, node:http2 keeps back up to a half; this and CREDIT_BYTES must
 * leave some of the other half, or a client could wait for credit for ever.
 */
const MAX_UNANSWERED_BYTES = 24_000;

/** A call whose message is not whole, or that is being answered. */
interface OpenCall extends StreamWindow {
  recognised: Recognised;
  body: Buffer | undefined;
  call: Call | undefined;
  sinceMs: number;
}

/** A stream beyond the limit. */
interface WaitingStream {
  /** Of its headers. */
  flags: number;
  list: string[];
  recognised: Recognised | undefined;
  /** Frames that came after its headers. */
  frames: Frame[];
  bytes: number;
  sinceMs: number;
}

/** Streams of a connection that wait, and what they hold together. */
const MAX_WAITING = 1_000;
const MAX_WAITING_BYTES = 512 * 1024;
/** Of which it is known how they ended, a connection. */
const MAX_RESETS = 1_000;
const MAX_SKIPPED = 100;

class Connection {
  private readonly socket: Socket;
  private readonly peer: Peer | undefined;
  private readonly options: Http2ConnectionsOptions;
  private readonly read: (chunk: Buffer) => "ok" | "more" | "too large";
  private readonly share = new Share(() => this.goOn());
  /** Frames that have come, and wait for the connection's turn. */
  private holding = false;
  private preface: Buffer | undefined = EMPTY;
  private sawSettings = false;
  private ended = false;
  private readonly draining: Drain;
  /** Nothing is served that has not begun, and the connection ends when all of it has ended. */
  private leaving = false;
  private lastId = 0;
  private refused = 0;
  /** Streams above it are not served: a GOAWAY said so. */
  private goneId = MAX_WINDOW_BYTES;

  private readonly calls = new Map<number, OpenCall>();
  /** Late answers that are worked on, and those of them whose stream is open. */
  private working = 0;
  private answering = 0;
  /** Streams beyond the limit, until one of the others ends; the oldest first. */
  private readonly waiting = new Map<number, WaitingStream>();
  private waitingBytes = 0;
  /** The client knows how many streams it may have. */
  private knowsLimit = false;
  /** Streams that were reset of late, and by which end: frames of theirs may be on their way. The oldest first. */
  private readonly resets = new Map<number, "client" | "server">();
  /** Numbers, from and to, that the client passed over. */
  private readonly skipped: [number, number][] = [];
  /** Bytes of bodies that are not whole. */
  private heldBytes = 0;
  /** Received, and not yet credited to the client. */
  private uncredited = 0;
  private idleSinceMs = performance.now();
  private used = false;

  /** Settings of the client that the inner session has not acknowledged. */
  private readonly said: [number, number][][] = [];

  private node: NodeSession | undefined;
  /** It wants no more to be read for now. */
  private innerFull = false;
  private readonly blocks: HeaderBlocks;
  private readonly output: Output;
  private readonly sender: Sender;
  private readonly bidirectional: OpenStreams;

  constructor(socket: Socket, options: Http2ConnectionsOptions) {
    this.socket = socket;
    this.peer = peerOf(socket);
    this.options = options;
    const output = new Output(socket, { beforeFlush: () => this.beforeFlush(), drained: () => this.readOn() });
    const sender = new Sender(output, (id) => this.noteReset(id, "server"));
    this.output = output;
    this.sender = sender;
    this.draining = new Drain({ output, leave: () => this.leave() });
    this.bidirectional = new OpenStreams({ sender, output, finished: () => this.endIfDone() });
    this.blocks = new HeaderBlocks({
      recognise: options.methods.recognise,
      maxHeaderBytes: options.maxHeaderBytes,
      take: (id, flags, block) => this.takeBlock(id, flags, block),
      fail: (fault) => this.fail(fault),
    });
    this.read = createFrameReader(
      MAX_FRAME_BYTES,
      (received) => this.take(received),
      () => this.share.hasLeft(),
    );
    socket.on("data", (chunk: Buffer) => this.receive(chunk));
    socket.on("end", () => this.end());
    output.put(
      settingsFrame([
        [Setting.MAX_CONCURRENT_STREAMS, options.maxConcurrentStreams],
        [Setting.MAX_HEADER_LIST_SIZE, options.maxHeaderBytes],
      ]),
    );
    output.flush();
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
    if (!this.mayRead()) this.share.stop();
    this.output.collect();
    const outcome = this.read(frames);
    if (outcome === "too large") this.fail(Fault.FRAME_SIZE_ERROR);
    this.holding = outcome === "more";
    this.endIfDone();
    this.output.flush();
    if (this.ended) return;
    if (this.holding) {
      this.socket.pause();
      this.readOn();
    } else this.share.renew();
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
    const { partialId } = this.blocks;
    if (partialId !== undefined && (type !== Type.CONTINUATION || id !== partialId)) {
      return this.fail(Fault.PROTOCOL_ERROR);
    }
    switch (type) {
      case Type.DATA:
        return this.takeData(received);
      case Type.HEADERS:
        return this.blocks.takeHeaders(received);
      case Type.CONTINUATION:
        return this.blocks.takeContinuation(received);
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

  private takeBlock(id: number, flags: number, block: Buffer) {
    const known = this.blocks.recall(block);
    const list = known === undefined ? this.blocks.decode(block) : known.list;
    if (list === undefined) return;
    if (id <= this.lastId) return this.takeTrailers(id, flags, list);
    if (id > this.lastId + 2) this.noteSkipped(id);
    this.lastId = id;
    this.used = true;
    if (id > this.goneId) return;
    if (list.length === 0) return this.reset(id, Fault.ENHANCE_YOUR_CALM);
    const recognised = known ?? this.blocks.recognise(block, list);
    if (this.hasRoom()) this.begin(id, flags, list, recognised);
    else if (!this.wait(id, flags, list, recognised)) this.turnAway(id, flags, list);
  }

  private begin(id: number, flags: number, list: string[], recognised: Recognised | undefined) {
    if (recognised === undefined) return this.openStream(id, flags, list);
    const call = { id, recognised, body: undefined, call: undefined, sinceMs: UNSWEPT, credit: 0 };
    if ((flags & Flag.END_STREAM) !== 0) this.answer(call);
    else this.calls.set(id, call);
  }

  /** Work that goes on for a stream that was reset, or is past its deadline, counts too: its client could start any amount of it. */
  private hasRoom(): boolean {
    const going = this.openStreams() + this.working - this.answering;
    return going < this.options.maxConcurrentStreams && this.waiting.size === 0;
  }

  // ---- streams beyond the limit

  /**
   * Before a client has read the settings it may well have too many streams, and it can't know of work that goes on for one that
   * is closed: both wait. False: there is no room for that either, or the client knows better (RFC 9113, 5.1.2).
   */
  private wait(id: number, flags: number, list: string[], recognised: Recognised | undefined): boolean {
    if (this.knowsLimit && this.openStreams() >= this.options.maxConcurrentStreams) return false;
    const bytes = list.reduce((sum, text) => sum + text.length, ENTRY_OVERHEAD);
    if (this.waiting.size >= MAX_WAITING || this.waitingBytes + bytes > MAX_WAITING_BYTES) return false;
    this.waiting.set(id, { flags, list, recognised, frames: [], bytes, sinceMs: UNSWEPT });
    this.waitingBytes += bytes;
    return true;
  }

  private takeWaiting(stream: WaitingStream, { type, flags, id, payload }: Frame) {
    // It is not known who will read it, and the streams that this one waits for may need the window.
    this.credit(payload.length);
    if (this.waitingBytes + payload.length > MAX_WAITING_BYTES) {
      this.stopWaiting(id);
      return this.turnAway(id, 0, stream.list);
    }
    stream.bytes += payload.length;
    this.waitingBytes += payload.length;
    stream.frames.push({ type, flags, id, payload: Buffer.from(payload) });
  }

  private stopWaiting(id: number): WaitingStream | undefined {
    const stream = this.waiting.get(id);
    this.waiting.delete(id);
    this.waitingBytes -= stream?.bytes ?? 0;
    return stream;
  }

  private beginWaiting() {
    for (const id of this.waiting.keys()) {
      if (this.openStreams() - this.waiting.size + this.working - this.answering >= this.options.maxConcurrentStreams)
        return;
      const { flags, list, recognised, frames } = this.stopWaiting(id)!;
      this.begin(id, flags, list, recognised);
      for (const one of frames) {
        if (one.type === Type.DATA) {
          // Credited before.
          this.uncredited -= one.payload.length;
          this.takeData(one);
        } else if (one.type === Type.WINDOW_UPDATE) this.takeWindowUpdate(one);
      }
    }
  }

  /** By a status: clients show people a stream that is reset as a failure of the network, or of their own. */
  private turnAway(id: number, flags: number, list: readonly string[]) {
    this.refused += 1;
    if (this.refused > this.options.maxSessionRejectedStreams) return this.fail(Fault.ENHANCE_YOUR_CALM);
    writeRefusal(this.output, id, list, this.options.refusals.tooManyCalls);
    // To a client that has read its answer, this says that no more is listened to.
    const fault = this.knowsLimit || (flags & Flag.END_STREAM) !== 0 ? Fault.REFUSED_STREAM : Fault.NO_ERROR;
    this.reset(id, fault);
  }

  private openStream(id: number, flags: number, list: string[]) {
    const headers = toHeaders(list);
    const serve = headers && this.options.streams.recognise(headers, this.peer);
    if (serve === undefined) return this.handOver(id, flags, list);
    this.share.spend(NODE_UNITS);
    this.bidirectional.begin(id, serve);
    if ((flags & Flag.END_STREAM) !== 0) this.bidirectional.end(id);
  }

  /** A second block ends the request. No call of ours has one. */
  private takeTrailers(id: number, flags: number, list: string[]) {
    const call = this.calls.get(id);
    if (call !== undefined && call.call === undefined) this.giveUp(call);
    if (this.bidirectional.has(id)) this.bidirectional.end(id);
    else if (this.node?.breaksLength({ type: Type.HEADERS, flags, id, payload: EMPTY })) this.breakOff(id);
    else if (this.node?.has(id)) this.node.sendHeaders(id, flags, list);
    else if (this.waiting.has(id)) {
      // Trailers of a call that waits: rare enough to be refused.
      this.turnAway(id, flags, this.stopWaiting(id)!.list);
    } else if (call !== undefined || this.sender.blocked.get(id)?.hangUp === false) this.reset(id, Fault.STREAM_CLOSED);
    else this.takeHeadersOfClosed(id);
  }

  /** RFC 9113, 5.1 and 5.1.1. */
  private takeHeadersOfClosed(id: number) {
    const resetBy = this.resets.get(id);
    // They were on their way when the stream was reset from here, or when a GOAWAY said that it is not served.
    if (resetBy === "server" || this.isFinishing(id) || id > this.goneId) return;
    if (resetBy === "client") this.reset(id, Fault.STREAM_CLOSED);
    else this.fail(this.wasSkipped(id) ? Fault.PROTOCOL_ERROR : Fault.STREAM_CLOSED);
  }

  private noteReset(id: number, by: "client" | "server") {
    if (this.resets.size >= MAX_RESETS) this.resets.delete(this.resets.keys().next().value!);
    this.resets.set(id, by);
  }

  private noteSkipped(id: number) {
    if (this.skipped.length < MAX_SKIPPED) this.skipped.push([this.lastId === 0 ? 1 : this.lastId + 2, id - 2]);
  }

  private wasSkipped(id: number): boolean {
    return this.skipped.some(([from, to]) => id >= from && id <= to);
  }

  private takeData(received: Frame) {
    const { flags, id, payload } = received;
    if (id === 0 || id > this.lastId) return this.fail(Fault.PROTOCOL_ERROR);
    const call = this.calls.get(id);
    if (call === undefined || call.call !== undefined) return this.takeOtherData(received);
    this.heldBytes += payload.length;
    if ((flags & Flag.PADDED) !== 0 || this.heldBytes > MAX_UNANSWERED_BYTES) {
      this.heldBytes -= payload.length;
      this.giveUp(call);
      return this.takeOtherData(received);
    }
    const isLast = (flags & Flag.END_STREAM) !== 0;
    call.body = isLast && call.body === undefined ? payload : append(call.body, payload);
    if (isLast) this.answer(call);
  }

  /** Of no fast call whose request is yet to be whole. */
  private takeOtherData(received: Frame) {
    const { id, payload } = received;
    if (this.bidirectional.has(id)) return this.takeStreamData(received);
    const waiting = this.waiting.size === 0 ? undefined : this.waiting.get(id);
    if (waiting !== undefined) return this.takeWaiting(waiting, received);
    const isBroken = this.node?.breaksLength(received) === true;
    if (!isBroken && this.node?.send(received)) return;
    this.credit(payload.length);
    if (isBroken) return this.breakOff(id);
    if (this.isFinishing(id) || this.resets.get(id) === "server") return;
    if (id <= this.goneId) this.reset(id, Fault.STREAM_CLOSED);
  }

  /** The client does not send what it said that it would. From Node 22 on, its session would end the whole connection. */
  private breakOff(id: number) {
    this.node?.send({ type: Type.RST_STREAM, flags: 0, id, payload: number32(Fault.CANCEL) });
    this.reset(id, Fault.PROTOCOL_ERROR);
  }

  /** Its answers wait for the client's window, and say themselves that no more is listened to. */
  private isFinishing(id: number): boolean {
    return this.sender.blocked.get(id)?.hangUp === true;
  }

  private takeStreamData(received: Frame) {
    this.credit(received.payload.length);
    const fault = this.bidirectional.take(received);
    if (fault !== undefined) this.fail(fault);
  }

  private takeReset(received: Frame) {
    const { id, payload } = received;
    if (payload.length !== 4) return this.fail(Fault.FRAME_SIZE_ERROR);
    if (id === 0 || id > this.lastId) return this.fail(Fault.PROTOCOL_ERROR);
    this.noteReset(id, "client");
    this.stopWaiting(id);
    const call = this.calls.get(id);
    if (call !== undefined) this.drop(call);
    else if (!this.bidirectional.reset(id) && !this.sender.blocked.delete(id)) this.node?.send(received);
  }

  private takeWindowUpdate(received: Frame) {
    const { id, payload } = received;
    if (payload.length !== 4) return this.fail(Fault.FRAME_SIZE_ERROR);
    const increment = payload.readUInt32BE(0) & MAX_WINDOW_BYTES;
    if (increment === 0 || id > this.lastId) return this.fail(Fault.PROTOCOL_ERROR);
    const of = id === 0 ? undefined : this.windowOf(id);
    const waiting = of === undefined ? this.waiting.get(id) : undefined;
    if (waiting !== undefined) this.takeWaiting(waiting, received);
    else if (id !== 0 && of === undefined) this.node?.send(received);
    else if (!this.sender.open(of, increment)) this.fail(Fault.FLOW_CONTROL_ERROR);
  }

  /** undefined: it is none of ours. */
  private windowOf(id: number): StreamWindow | undefined {
    return this.calls.get(id) ?? this.bidirectional.windowOf(id) ?? this.sender.blocked.get(id)?.of;
  }

  private takeSettings(received: Frame) {
    const { flags, id, payload } = received;
    if (id !== 0) return this.fail(Fault.PROTOCOL_ERROR);
    if ((flags & Flag.ACK) !== 0) {
      if (payload.length > 0) this.fail(Fault.FRAME_SIZE_ERROR);
      this.knowsLimit = true;
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
      // Unknown settings are ignored, and not kept: there are too many numbers.
      if (setting <= Setting.MAX_HEADER_LIST_SIZE) said.push([setting, value]);
      if (setting === Setting.HEADER_TABLE_SIZE && value < DEFAULT_TABLE_BYTES) this.output.tableShrunk = true;
    }
    if (this.node !== undefined) {
      // The session's own acknowledgement stands where its data change to the new window.
      this.said.push(said);
      if (this.said.length > MAX_UNACKNOWLEDGED) return this.fail(Fault.ENHANCE_YOUR_CALM);
      this.node.sendSettings(said);
      return;
    }
    this.output.put(SETTINGS_ACK);
    this.sender.apply(said);
  }

  private takePing(received: Frame) {
    const { flags, id, payload } = received;
    if (id !== 0) return this.fail(Fault.PROTOCOL_ERROR);
    if (payload.length !== 8) return this.fail(Fault.FRAME_SIZE_ERROR);
    if ((flags & Flag.ACK) === 0) this.output.put(frame(Type.PING, Flag.ACK, 0, payload));
    else this.draining.takeAnswer(payload);
  }

  // ---- answering

  private answer(open: OpenCall) {
    const { id, recognised, body } = open;
    const { method, format, isGzip, headers, timeoutMs, contentLength } = recognised;
    const length = body?.length ?? 0;
    if (contentLength !== undefined && contentLength !== length) return this.reset(id, Fault.PROTOCOL_ERROR);
    const maxBytes = this.options.methods.maxBytesOf(method);
    const message = messageIn(format, isGzip, body ?? null, maxBytes);
    if (isGzip && message !== undefined) this.share.spend(unitsToInflate(message));
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
    this.working += 1;
    this.answering += 1;
    const write = (late: FastAnswer) => {
      if (!this.calls.delete(id)) return;
      this.answering -= 1;
      this.write(open, late);
      this.endIfDone();
      this.output.flushSoon();
    };
    this.options.methods.settle(answer, call!, write, () => {
      this.working -= 1;
      if (this.waiting.size > 0) this.output.flushSoon();
    });
  }

  private write(open: OpenCall, answer: FastAnswer) {
    if (answer.message !== undefined) this.share.spend(unitsOf(answer.message.length));
    writeAnswer(this.sender, this.output, open, open.recognised.format, answer);
  }

  private beforeFlush() {
    if (this.waiting.size > 0 && !this.ended) this.beginWaiting();
    this.sendBlocked();
  }

  private sendBlocked() {
    const { sender } = this;
    if (!sender.windowsChanged || this.ended) return;
    sender.windowsChanged = false;
    // First: a download by node:http2 would take all of the window, and what is answered here never get any.
    sender.sendBlocked();
    this.bidirectional.sendWaiting();
    this.node?.windowOpened();
    this.endIfDone();
  }

  /** Lets the client send as much again on the connection. */
  private credit(bytes: number) {
    this.uncredited += bytes;
    if (this.uncredited < CREDIT_BYTES) return;
    this.output.put(frame(Type.WINDOW_UPDATE, 0, 0, number32(this.uncredited)));
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
      const isTaken = this.node!.send({ type: Type.DATA, flags: isLast ? Flag.END_STREAM : 0, id, payload });
      if (!isTaken) this.credit(payload.length);
    }
    if (credit > 0) this.node!.send({ type: Type.WINDOW_UPDATE, flags: 0, id, payload: number32(credit) });
  }

  private handOver(id: number, flags: number, list: readonly string[]) {
    this.share.spend(NODE_UNITS);
    this.node ??= this.openNodeSession();
    this.node.open(id, flags, list);
  }

  private openNodeSession(): NodeSession {
    const { output, sender } = this;
    return new NodeSession({
      open: (connection) => this.options.openNodeSession(connection, this.peer),
      remoteAddress: this.socket.remoteAddress,
      settings: sender.settings,
      windowLeft: () => sender.windowLeft,
      windowUsed: () => {
        sender.windowsChanged = true;
        output.flushSoon();
      },
      sent: (bytes) => sender.sent(bytes),
      reset: (id) => this.noteReset(id, "server"),
      acknowledged: () => sender.apply(this.said.shift() ?? []),
      writeHeaders: (flags, id, block) => {
        output.putHeaders(flags, id, block);
        output.flushSoon();
      },
      write: (bytes) => {
        output.put(bytes);
        output.flushSoon();
      },
      whenTaken: (then) => {
        if (this.socket.writableNeedDrain) this.socket.once("drain", then);
        else then();
      },
      pause: () => {
        this.innerFull = true;
        this.share.stop();
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

  private readOn() {
    if (!this.mayRead()) return;
    if (this.holding) this.share.wait();
    else if (this.socket.isPaused()) this.socket.resume();
  }

  private mayRead(): boolean {
    return !this.output.isFull && !this.innerFull;
  }

  // ---- ending

  private reset(id: number, fault: number) {
    const call = this.calls.get(id);
    if (call !== undefined) this.drop(call);
    this.sender.blocked.delete(id);
    this.noteReset(id, "server");
    this.output.put(frame(Type.RST_STREAM, 0, id, number32(fault)));
  }

  private drop(open: OpenCall) {
    this.calls.delete(open.id);
    const bytes = open.body?.length ?? 0;
    this.heldBytes -= bytes;
    this.credit(bytes);
    if (open.call === undefined) return;
    this.answering -= 1;
    open.call.abort();
  }

  /** The peer broke the rules: the connection is over. */
  private fail(fault: number) {
    if (this.ended) return;
    this.output.put(goawayFrame(Math.min(this.lastId, this.goneId), fault));
    this.end();
  }

  private end() {
    if (this.ended) return;
    this.ended = true;
    this.output.release();
    this.output.flush();
    this.socket.destroySoon();
    this.closed();
  }

  private endIfDone() {
    if (!this.leaving || this.ended || !this.isIdle()) return;
    this.ended = true;
    this.output.flush();
    const { socket } = this;
    // The client's last frames (credit, pings) are read: a socket that is closed on unread bytes takes its last answers back.
    socket.end(() => setTimeout(() => socket.destroy(), LINGER_MS).unref());
    socket.resume();
    this.closed();
  }

  private openStreams(): number {
    return (
      this.calls.size + this.bidirectional.size + this.sender.blocked.size + this.waiting.size + (this.node?.size ?? 0)
    );
  }

  private isIdle(): boolean {
    return this.openStreams() === 0 && (this.node === undefined || this.node.isIdle());
  }

  drain(): void {
    if (!this.ended) this.draining.begin();
  }

  private leave() {
    if (this.ended) return;
    this.leaving = true;
    this.goneId = this.lastId;
    this.output.put(goawayFrame(this.lastId, Fault.NO_ERROR));
    this.output.flushSoon();
    this.endIfDone();
  }

  closed(): void {
    this.ended = true;
    this.draining.stop();
    this.share.leave();
    for (const open of this.calls.values()) open.call?.abort();
    this.bidirectional.abort();
    this.calls.clear();
    this.waiting.clear();
    this.sender.blocked.clear();
    this.node?.destroy();
  }

  sweep(nowMs: number): void {
    const { requestTimeoutMs, idleTimeoutMs } = this.options;
    if (this.ended) return;
    for (const open of this.calls.values()) {
      if (open.call !== undefined) continue;
      if (open.sinceMs === UNSWEPT) open.sinceMs = nowMs;
      else if (nowMs - open.sinceMs >= requestTimeoutMs) this.reset(open.id, Fault.CANCEL);
    }
    for (const [id, answer] of this.sender.blocked) {
      if (answer.sinceMs === UNSWEPT) answer.sinceMs = nowMs;
      else if (nowMs - answer.sinceMs >= requestTimeoutMs) this.reset(id, Fault.CANCEL);
    }
    for (const [id, stream] of this.waiting) {
      if (stream.sinceMs === UNSWEPT) stream.sinceMs = nowMs;
      else if (nowMs - stream.sinceMs >= requestTimeoutMs) this.turnAway(id, 0, this.stopWaiting(id)!.list);
    }
    this.endIfDone();
    this.output.flushSoon();
    if (this.used || !this.isIdle()) this.idleSinceMs = nowMs;
    this.used = false;
    if (nowMs - this.idleSinceMs >= idleTimeoutMs) this.drain();
  }
}

/** In which a client should have closed its end after ours. */
const LINGER_MS = 1_000;
/** Settings: a client that leaves no room for the answers before an acknowledgement could heap them up. */
const MAX_UNACKNOWLEDGED = 100;
const SETTINGS_ACK = frame(Type.SETTINGS, Flag.ACK, 0, EMPTY);

/** RFC 9113, 6.5.2. */
function faultOf(setting: number, value: number): number | undefined {
  if (setting === Setting.ENABLE_PUSH && value > 1) return Fault.PROTOCOL_ERROR;
  if (setting === Setting.INITIAL_WINDOW_SIZE && value > MAX_WINDOW_BYTES) return Fault.FLOW_CONTROL_ERROR;
  if (setting === Setting.MAX_FRAME_SIZE && (value < MAX_FRAME_BYTES || value > 0xffffff)) return Fault.PROTOCOL_ERROR;
  return undefined;
}
