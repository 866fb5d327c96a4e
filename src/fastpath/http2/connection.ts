import type { Duplex } from "node:stream";
import type { BidirectionalStreams } from "../bidirectional.ts";
import type { FastAnswer, Peer, TransportRefusals } from "../fast-method.ts";
import { ASYNC_UNITS, NODE_UNITS, Share, unitsOf } from "../share.ts";
import type { Sink } from "../sink.ts";
import { Call, type FastMethods, isPromise, messageIn, type Recognised, toHeaders, unitsToInflate } from "../unary.ts";
import { append, EMPTY } from "../wire-format.ts";
import { writeAnswer, writeRefusal } from "./answers.ts";
import { OpenStreams } from "./bidirectional-streams.ts";
import { Drain } from "./drain.ts";
import {
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
import { NodeSession } from "./node-server.ts";
import { Output } from "./output.ts";
import { Sender, UNSWEPT } from "./sender.ts";
import { type ClosedState, StreamIds } from "./stream-ids.ts";
import { WaitingStreams } from "./waiting-streams.ts";
import { Credit, type StreamWindow } from "./windows.ts";

export interface Http2Options {
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

/** The other end. */
interface Client {
  peer: Peer | undefined;
  remoteAddress: string | undefined;
}

/**
 * Bytes that calls under way may have sent on a connection before they are whole. A larger message is node:http2's. Of the 65,535
 * bytes that a client may send before it is given credit, node:http2 keeps back up to a half; this and PORTION_BYTES must
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

/** Of the frames of a stream that is open, whose they are; of any other, how it was closed. */
type StreamState =
  /** A fast call whose message is not whole, or that is being answered. */
  | "gathering"
  | "answering"
  /** A stream of messages. */
  | "messages"
  /** Beyond the limit. */
  | "waiting"
  /** Node's session has it. */
  | "node"
  /** The rest of its answer waits for the client's window; a reset follows where the client may still send. */
  | "finishing"
  | "finishing, then reset"
  | ClosedState;

/**
 * Serves fast methods on one HTTP/2 connection frame by frame: bytes in by `receive`, bytes out by a Sink. node:http2 spends more on
 * making a stream than a call of ours costs in all; what arrives together is answered here in one write, without a stream being made.
 *
 * Everything else on the connection is node:http2's: its frames are handed to a session that Node has on an inner
 * connection, with the headers written anew, since only one of the two can keep the client's header table. What that
 * session sends goes to the client as it is: answers from here touch no header table.
 */
export class Connection {
  /**
   * `preface`: it is not whole; `settings`: they must come next; `leaving`: nothing is served that has not begun, and the connection
   * ends when all of it has ended.
   */
  private state: "preface" | "settings" | "open" | "leaving" | "over" = "preface";
  private readonly sink: Sink;
  private readonly peer: Peer | undefined;
  private readonly remoteAddress: string | undefined;
  private readonly options: Http2Options;
  private readonly read: (chunk: Buffer) => "ok" | "more" | "too large";
  private readonly share = new Share(() => this.goOn());
  /** Frames that have come, and wait for the connection's turn. */
  private holding = false;
  private preface: Buffer = EMPTY;
  private readonly draining: Drain;
  private readonly ids = new StreamIds();
  private refused = 0;

  private readonly calls = new Map<number, OpenCall>();
  /** Late answers that are worked on, and those of them whose stream is open. */
  private working = 0;
  private answering = 0;
  private readonly waiting = new WaitingStreams();
  /** The client knows how many streams it may have. */
  private knowsLimit = false;
  /** Bytes of bodies that are not whole. */
  private heldBytes = 0;
  private readonly received = new Credit();
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

  constructor(sink: Sink, client: Client, options: Http2Options) {
    this.sink = sink;
    this.peer = client.peer;
    this.remoteAddress = client.remoteAddress;
    this.options = options;
    const output = new Output(sink, { beforeFlush: () => this.beforeFlush(), drained: () => this.readOn() });
    const sender = new Sender(output, (id) => this.ids.reset(id, "server"));
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
    output.put(
      settingsFrame([
        [Setting.MAX_CONCURRENT_STREAMS, options.maxConcurrentStreams],
        [Setting.MAX_HEADER_LIST_SIZE, options.maxHeaderBytes],
      ]),
    );
    output.flush();
  }

  // ---- reading

  receive(chunk: Buffer): void {
    if (this.state === "over") return;
    const frames = this.state === "preface" ? this.afterPreface(chunk) : chunk;
    if (frames !== undefined) this.serve(frames);
  }

  private goOn() {
    if (this.state === "over" || !this.holding || !this.mayRead()) return;
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
    if (this.state === "over") return;
    if (this.holding) {
      this.sink.pause();
      this.readOn();
    } else this.share.renew();
  }

  private afterPreface(chunk: Buffer): Buffer | undefined {
    const seen = Buffer.concat([this.preface, chunk]);
    const length = Math.min(seen.length, PREFACE.length);
    if (!PREFACE.subarray(0, length).equals(seen.subarray(0, length))) {
      this.fail(Fault.PROTOCOL_ERROR);
      return undefined;
    }
    this.preface = seen;
    if (length < PREFACE.length) return undefined;
    this.state = "settings";
    return seen.subarray(length);
  }

  private take(received: Frame) {
    if (this.state === "over") return;
    const { type, id, payload } = received;
    this.share.spend(1 + unitsOf(payload.length));
    if (this.state === "settings" && type !== Type.SETTINGS) return this.fail(Fault.PROTOCOL_ERROR);
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
    if (id <= this.ids.last) return this.takeTrailers(id, flags, list);
    this.ids.use(id);
    this.used = true;
    if (!this.ids.isServed(id)) return;
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
    return this.waiting.add(id, flags, list, recognised);
  }

  private takeWaiting(received: Frame) {
    // It is not known who will read it, and the streams that this one waits for may need the window.
    this.credit(received.payload.length);
    if (!this.waiting.hold(received)) this.turnAwayWaiting(received.id);
  }

  private beginWaiting() {
    for (const id of this.waiting.ids()) {
      if (this.openStreams() - this.waiting.size + this.working - this.answering >= this.options.maxConcurrentStreams)
        return;
      const { flags, list, recognised, frames } = this.waiting.take(id);
      this.begin(id, flags, list, recognised);
      for (const one of frames) {
        if (one.type === Type.DATA) {
          this.received.takeBack(one.payload.length);
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

  private turnAwayWaiting(id: number, flags = 0) {
    this.turnAway(id, flags, this.waiting.take(id).list);
  }

  private openStream(id: number, flags: number, list: string[]) {
    const headers = toHeaders(list);
    const serve = headers && this.options.streams.recognise(headers, this.peer);
    if (serve === undefined) return this.handOver(id, flags, list);
    this.share.spend(NODE_UNITS);
    this.bidirectional.begin(id, serve);
    if ((flags & Flag.END_STREAM) !== 0) this.bidirectional.end(id);
  }

  private stateOf(id: number): StreamState {
    const call = this.calls.get(id);
    if (call !== undefined) return call.call === undefined ? "gathering" : "answering";
    if (this.bidirectional.has(id)) return "messages";
    if (this.waiting.has(id)) return "waiting";
    if (this.node?.has(id)) return "node";
    const sending = this.sender.blocked.get(id);
    if (sending !== undefined) return sending.hangUp ? "finishing, then reset" : "finishing";
    return this.ids.stateOf(id);
  }

  /** A second block ends the request. No call of ours has one. */
  private takeTrailers(id: number, flags: number, list: string[]) {
    const call = this.calls.get(id);
    if (call !== undefined && call.call === undefined) this.giveUp(call);
    switch (this.stateOf(id)) {
      case "node":
        if (this.node!.breaksLength({ type: Type.HEADERS, flags, id, payload: EMPTY })) this.breakOff(id);
        else this.node!.sendHeaders(id, flags, list);
        return;
      case "messages":
        return this.bidirectional.end(id);
      case "waiting":
        // Rare enough to be refused.
        return this.turnAwayWaiting(id, flags);
      case "answering":
      case "finishing":
      case "reset by client":
        return this.reset(id, Fault.STREAM_CLOSED);
      case "skipped":
        return this.fail(Fault.PROTOCOL_ERROR);
      case "closed":
        return this.fail(Fault.STREAM_CLOSED);
      default:
      // On their way when the client heard that its stream is over.
    }
  }

  private takeData(received: Frame) {
    const { flags, id, payload } = received;
    if (id === 0 || id > this.ids.last) return this.fail(Fault.PROTOCOL_ERROR);
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
    const state = this.stateOf(id);
    if (state === "messages") return this.takeStreamData(received);
    if (state === "waiting") return this.takeWaiting(received);
    const isBroken = state === "node" && this.node!.breaksLength(received);
    if (state === "node" && !isBroken) return this.node!.send(received);
    this.credit(payload.length);
    if (isBroken) return this.breakOff(id);
    // On its way when the client heard that its stream is over.
    if (state === "finishing, then reset" || state === "reset by server" || state === "unserved") return;
    this.reset(id, Fault.STREAM_CLOSED);
  }

  /** The client does not send what it said that it would. From Node 22 on, its session would end the whole connection. */
  private breakOff(id: number) {
    this.node!.send({ type: Type.RST_STREAM, flags: 0, id, payload: number32(Fault.CANCEL) });
    this.reset(id, Fault.PROTOCOL_ERROR);
  }

  private takeStreamData(received: Frame) {
    this.credit(received.payload.length);
    const fault = this.bidirectional.take(received);
    if (fault !== undefined) this.fail(fault);
  }

  private takeReset(received: Frame) {
    const { id, payload } = received;
    if (payload.length !== 4) return this.fail(Fault.FRAME_SIZE_ERROR);
    if (id === 0 || id > this.ids.last) return this.fail(Fault.PROTOCOL_ERROR);
    const state = this.stateOf(id);
    this.ids.reset(id, "client");
    if (state === "gathering" || state === "answering") this.drop(this.calls.get(id)!);
    else if (state === "messages") this.bidirectional.reset(id);
    else if (state === "waiting") this.waiting.take(id);
    else if (state === "node") this.node!.send(received);
    else this.sender.blocked.delete(id);
  }

  private takeWindowUpdate(received: Frame) {
    const { id, payload } = received;
    if (payload.length !== 4) return this.fail(Fault.FRAME_SIZE_ERROR);
    const increment = payload.readUInt32BE(0) & MAX_WINDOW_BYTES;
    if (increment === 0 || id > this.ids.last) return this.fail(Fault.PROTOCOL_ERROR);
    const of = id === 0 ? undefined : this.windowOf(id);
    if (id === 0 || of !== undefined) {
      if (!this.sender.open(of, increment)) this.fail(Fault.FLOW_CONTROL_ERROR);
    } else if (this.waiting.has(id)) this.takeWaiting(received);
    else this.node?.send(received);
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
    if (this.state === "settings") this.state = "open";
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
    if (this.waiting.size > 0 && this.state !== "over") this.beginWaiting();
    this.sendBlocked();
  }

  private sendBlocked() {
    const { sender } = this;
    if (!sender.windowsChanged || this.state === "over") return;
    sender.windowsChanged = false;
    // First: a download by node:http2 would take all of the window, and what is answered here never get any.
    sender.sendBlocked();
    this.bidirectional.sendWaiting();
    this.node?.windowOpened();
    this.endIfDone();
  }

  /** Lets the client send as much again on the connection. */
  private credit(bytes: number) {
    const portion = this.received.add(bytes);
    if (portion > 0) this.output.put(frame(Type.WINDOW_UPDATE, 0, 0, number32(portion)));
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
      remoteAddress: this.remoteAddress,
      settings: sender.settings,
      windowLeft: () => sender.window.left,
      windowUsed: () => {
        sender.windowsChanged = true;
        output.flushSoon();
      },
      sent: (bytes) => sender.window.sent(bytes),
      reset: (id) => this.ids.reset(id, "server"),
      acknowledged: () => sender.apply(this.said.shift() ?? []),
      writeHeaders: (flags, id, block) => {
        output.putHeaders(flags, id, block);
        output.flushSoon();
      },
      write: (bytes) => {
        output.put(bytes);
        output.flushSoon();
      },
      whenTaken: (then) => this.sink.whenTaken(then),
      pause: () => {
        this.innerFull = true;
        this.share.stop();
        this.sink.pause();
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
    else this.sink.resume();
  }

  private mayRead(): boolean {
    return !this.output.isFull && !this.innerFull;
  }

  // ---- ending

  private reset(id: number, fault: number) {
    const call = this.calls.get(id);
    if (call !== undefined) this.drop(call);
    this.sender.blocked.delete(id);
    this.ids.reset(id, "server");
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
    if (this.state === "over") return;
    this.output.put(goawayFrame(this.ids.lastServed, fault));
    this.end();
  }

  /** The client sends no more, or broke the rules. */
  end(): void {
    if (this.state === "over") return;
    this.state = "over";
    this.output.release();
    this.output.flush();
    this.sink.end();
    this.closed();
  }

  private endIfDone() {
    if (this.state !== "leaving" || !this.isIdle()) return;
    this.state = "over";
    this.output.flush();
    this.sink.endReading();
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
    if (this.state !== "over") this.draining.begin();
  }

  private leave() {
    if (this.state === "over") return;
    this.state = "leaving";
    this.ids.close();
    this.output.put(goawayFrame(this.ids.last, Fault.NO_ERROR));
    this.output.flushSoon();
    this.endIfDone();
  }

  /** Nothing goes in or out any more. */
  closed(): void {
    this.state = "over";
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
    if (this.state === "over") return;
    for (const open of this.calls.values()) {
      if (open.call !== undefined) continue;
      if (open.sinceMs === UNSWEPT) open.sinceMs = nowMs;
      else if (nowMs - open.sinceMs >= requestTimeoutMs) this.reset(open.id, Fault.CANCEL);
    }
    for (const [id, answer] of this.sender.blocked) {
      if (answer.sinceMs === UNSWEPT) answer.sinceMs = nowMs;
      else if (nowMs - answer.sinceMs >= requestTimeoutMs) this.reset(id, Fault.CANCEL);
    }
    for (const id of this.waiting.overdue(nowMs, requestTimeoutMs)) this.turnAwayWaiting(id);
    this.endIfDone();
    this.output.flushSoon();
    if (this.used || !this.isIdle()) this.idleSinceMs = nowMs;
    this.used = false;
    if (nowMs - this.idleSinceMs >= idleTimeoutMs) this.drain();
  }
}

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
