import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import type { FastAnswer, Peer, TransportRefusals } from "../fast-method.ts";
import type { HeldBytes } from "../held-bytes.ts";
import { peerOf } from "../peer.ts";
import { Share, unitsOf } from "../share.ts";
import { endReading } from "../sink.ts";
import { bodyOf, Call, type FastMethods, isPromise, messageIn, type Recognised, unitsToInflate } from "../unary.ts";
import { append, EMPTY } from "../wire-format.ts";
import { httpDate } from "./http-date.ts";

interface Http1ConnectionsOptions {
  methods: FastMethods;
  held: HeldBytes;
  refusals: Pick<TransportRefusals, "tooManyBytes">;
  maxHeaderBytes: number;
  /** Time for a whole request. */
  requestTimeoutMs: number;
  /** Time without a request after which a connection is closed. */
  idleTimeoutMs: number;
  /**
   * Takes a connection from the beginning of a request on.
   *
   * @param isAsked - whether that request's fast method has left it to Node's own server
   * @param rest - what was read of the connection and not served
   * @param hasEnded - whether the client sends nothing after it
   */
  handOver(socket: Socket, isAsked: boolean, rest: Buffer, hasEnded: boolean): void;
}

interface Http1Connections {
  serve(socket: Socket): void;
  /** Each connection ends with the next answer. */
  drain(): void;
  /** Ends those on which nothing is under way. */
  endIdle(): void;
  stop(): void;
}

/**
 * Serves fast methods on HTTP/1.1 connections for as long as nothing else is asked on them: plain requests, the first of
 * which has its headers in one piece. At the first request of another kind the connection is node:http's for good. What is the least
 * unusual (a header that may be read in two ways, a chunked body …) is of another kind, so that there is but one reader of
 * what could smuggle a request in.
 */
export function createHttp1Connections(options: Http1ConnectionsOptions): Http1Connections {
  const connections = new Set<Connection>();
  const sweep = () => {
    const nowMs = performance.now();
    for (const connection of connections) connection.sweep(nowMs);
  };
  const timer = setInterval(sweep, Math.min(1_000, options.requestTimeoutMs, options.idleTimeoutMs)).unref();
  let draining = false;
  return {
    serve(socket) {
      // A client that sends no more may still want what it asked for.
      socket.allowHalfOpen = true;
      if (draining) return options.handOver(socket, false, EMPTY, false);
      const connection = new Connection(socket, options, () => connections.delete(connection));
      connections.add(connection);
    },
    drain() {
      draining = true;
      for (const connection of connections) connection.drain();
    },
    endIdle() {
      for (const connection of connections) connection.endIdle();
    },
    stop: () => clearInterval(timer),
  };
}

/** A request's headers, and how many bytes they took. */
interface Head {
  text: string;
  recognised: Recognised;
  bodyBytes: number;
}

class Connection {
  private readonly socket: Socket;
  private readonly peer: Peer | undefined;
  private readonly options: Http1ConnectionsOptions;
  private readonly left: () => void;
  private readonly onData = (chunk: Buffer): void => this.receive(chunk);
  private readonly onEnd = (): void => {
    this.hasEnded = true;
    this.goOn();
  };
  private readonly onClose = (): void => this.close();
  private readonly share = new Share(() => this.goOn());
  /** Bytes that have come and are not answered. */
  private rest: Buffer = EMPTY;
  /** It came in more than one chunk, and is in `pieces` if it came in more than two. */
  private isJoined = false;
  private pieces: Buffer | undefined;
  /** How much of it counts among what all connections hold. */
  private counted = 0;
  /** There may be whole requests among it, which wait for the connection's turn, or for the client to take its answers. */
  private holding = false;
  /** The last request's: most clients send the same with each. */
  private head: Head | undefined;
  private call: Call | undefined;
  /** The client sends nothing more. */
  private hasEnded = false;
  private draining = false;
  /** Nothing more is served: the last answer says so. */
  private ending = false;
  /** The connection is closed, or another's. */
  private isOver = false;
  private idleSinceMs = performance.now();
  /** Since when what has come is known not to be whole. */
  private partialSinceMs: number | undefined;
  private used = false;
  private out: Buffer[] = [];
  /** The client does not take what is written. */
  private outFull = false;
  private readonly onDrain = (): void => {
    this.outFull = false;
    this.readOn();
  };

  constructor(socket: Socket, options: Http1ConnectionsOptions, left: () => void) {
    this.socket = socket;
    this.peer = peerOf(socket);
    this.options = options;
    this.left = left;
    socket.on("data", this.onData);
    socket.once("end", this.onEnd);
    socket.once("close", this.onClose);
  }

  private receive(chunk: Buffer) {
    if (this.ending) return;
    this.keep(chunk);
    this.goOn();
  }

  private keep(chunk: Buffer) {
    const { rest } = this;
    if (rest.length === 0) this.rest = chunk;
    // Most often it is whole with the next chunk, and no room is needed for more.
    else if (!this.isJoined) this.rest = Buffer.concat([rest, chunk]);
    else {
      this.pieces = append(this.pieces ?? append(undefined, rest), chunk);
      this.rest = this.pieces;
    }
    this.isJoined = rest.length > 0;
  }

  private goOn() {
    this.serve();
    // While a call is answered, what comes meanwhile has a bound of its own.
    if ((this.isJoined || this.counted > 0) && this.call === undefined && !this.isOver) this.count();
    this.flush();
    if (this.isOver || this.ending) return;
    if (this.hasEnded && this.call === undefined && !this.holding) return this.end();
    // Reading goes on while a call is answered, or nobody would see its client leave; but not for ever.
    if (this.holding || this.isFarAhead()) this.socket.pause();
    else this.share.renew();
    this.readOn();
  }

  /** Answers the requests that are whole, up to one that has to be waited for. */
  private serve() {
    this.holding = false;
    while (this.rest.length > 0 && this.call === undefined && !this.ending && !this.socket.destroyed) {
      this.holding = this.outFull || !this.share.hasLeft();
      if (this.holding) return;
      const head = this.knownHead() ?? this.readHead();
      if (head === undefined && this.isPartOfHead()) return;
      if (head === undefined) return this.handOver(false);
      this.head = head;
      const start = head.text.length;
      const end = start + head.bodyBytes;
      if (this.rest.length < end) return;
      const { method, format, isGzip, headers, timeoutMs } = head.recognised;
      const body = head.bodyBytes === 0 ? null : this.rest.subarray(start, end);
      const message = messageIn(format, isGzip, body, this.options.methods.maxBytesOf(method));
      const call = message && new Call(format, message, headers, timeoutMs, this.peer);
      const answer = call && this.options.methods.answer(method, call);
      if (answer === undefined) return this.handOver(call !== undefined);
      this.rest = this.rest.subarray(end);
      this.isJoined = false;
      this.pieces = undefined;
      this.share.spend(UNITS_A_CALL + unitsOf(head.bodyBytes) + (isGzip ? unitsToInflate(message!) : 0));
      this.used = true;
      this.partialSinceMs = undefined;
      if (isPromise(answer)) this.wait(answer, call!, head.recognised);
      else this.write(answer, head.recognised);
    }
  }

  /** Pieces of a request that is not whole. Where there is no room for them, the connection ends in words. */
  private count() {
    const { head, options, rest } = this;
    const more = (this.isJoined ? rest.length : 0) - this.counted;
    if (more > 0 && !options.held.take(more)) {
      this.draining = true;
      this.ending = true;
      if (head !== undefined) this.write({ error: options.refusals.tooManyBytes }, head.recognised);
      return;
    }
    if (more < 0) options.held.give(-more);
    this.counted += more;
  }

  private wait(answer: Promise<FastAnswer>, call: Call, recognised: Recognised) {
    this.call = call;
    this.options.methods.settle(answer, call, (late) => {
      this.call = undefined;
      if (this.socket.destroyed) return;
      this.write(late, recognised);
      this.goOn();
    });
  }

  private readOn() {
    if (this.outFull || this.isOver || this.isFarAhead()) return;
    if (this.holding) this.share.wait();
    else if (this.socket.isPaused()) this.socket.resume();
  }

  private isFarAhead(): boolean {
    return this.call !== undefined && this.rest.length >= MAX_AHEAD_BYTES;
  }

  private knownHead(): Head | undefined {
    const { head, rest } = this;
    const isKnown = head !== undefined && rest.toString("latin1", 0, head.text.length) === head.text;
    return isKnown ? head : undefined;
  }

  /** Of calls that are sent without waiting for answers, one is cut by the end of each chunk: it is no reason to leave. */
  private isPartOfHead(): boolean {
    const { head, rest, options } = this;
    if (head === undefined || rest.length > options.maxHeaderBytes || rest.includes(HEAD_END)) return false;
    return FIRST_WORD.startsWith(rest.toString("latin1", 0, FIRST_WORD.length));
  }

  /** undefined: not plain, or not whole. */
  private readHead(): Head | undefined {
    const length = this.rest.indexOf(HEAD_END) + HEAD_END.length;
    if (length < HEAD_END.length || length > this.options.maxHeaderBytes) return undefined;
    const text = this.rest.toString("latin1", 0, length);
    const list = listOf(text);
    const recognised = list && this.options.methods.recognise(list);
    if (recognised?.contentLength === undefined || recognised.format.protocol === "grpc") return undefined;
    if (recognised.contentLength > this.options.methods.maxBytesOf(recognised.method)) return undefined;
    return { text, recognised, bodyBytes: recognised.contentLength };
  }

  private write(answer: FastAnswer, { format }: Recognised) {
    const { status, headers, bytes } = bodyOf(format, answer);
    let text = `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n`;
    for (const name in headers) text += `${name}: ${headers[name]}\r\n`;
    if (format.protocol === "grpc-web") text += `content-length: ${bytes.length}\r\n`;
    text += `Date: ${httpDate()}\r\n`;
    this.ending = this.draining;
    text += this.ending
      ? "Connection: close\r\n\r\n"
      : `Connection: keep-alive\r\nKeep-Alive: timeout=${Math.floor(this.options.idleTimeoutMs / 1_000)}\r\n\r\n`;
    const response = Buffer.allocUnsafe(text.length + bytes.length);
    response.write(text, "latin1");
    response.set(bytes, text.length);
    this.out.push(response);
    this.share.spend(unitsOf(response.length));
  }

  private flush() {
    const { out, socket } = this;
    if (out.length > 0) {
      this.out = [];
      socket.write(out.length === 1 ? out[0]! : Buffer.concat(out));
      // A client that does not read its answers is not read from.
      if (socket.writableNeedDrain && !this.outFull) {
        this.outFull = true;
        socket.pause();
        socket.once("drain", this.onDrain);
      }
    }
    if (!this.ending) return;
    if (this.rest.length > 0) endReading(socket);
    else socket.destroySoon();
  }

  private handOver(isAsked: boolean) {
    const { socket, rest } = this;
    this.flush();
    this.forget();
    if (socket.destroyed) return;
    socket.pause();
    this.options.handOver(socket, isAsked, rest, this.hasEnded);
    socket.resume();
  }

  private forget() {
    this.isOver = true;
    this.options.held.give(this.counted);
    this.counted = 0;
    this.share.leave();
    this.socket.off("data", this.onData);
    this.socket.off("end", this.onEnd);
    this.socket.off("close", this.onClose);
    this.socket.off("drain", this.onDrain);
    this.left();
  }

  private close() {
    this.forget();
    this.call?.abort();
  }

  private end(lastWords = "") {
    if (this.ending) return;
    this.ending = true;
    this.socket.write(lastWords);
    this.socket.destroySoon();
  }

  drain(): void {
    this.draining = true;
  }

  endIdle(): void {
    if (this.rest.length === 0 && this.call === undefined) this.end();
  }

  sweep(nowMs: number): void {
    const { requestTimeoutMs, idleTimeoutMs } = this.options;
    if (this.ending) return;
    if (this.used || this.call !== undefined || this.rest.length > 0) this.idleSinceMs = nowMs;
    this.used = false;
    if (nowMs - this.idleSinceMs >= idleTimeoutMs) this.end();
    if (this.call !== undefined || this.rest.length === 0) return;
    this.partialSinceMs ??= nowMs;
    if (nowMs - this.partialSinceMs >= requestTimeoutMs) this.end(this.holding ? "" : TIMED_OUT);
  }
}

const TIMED_OUT = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n";
const UNITS_A_CALL = 2;
/** Of requests that wait for a call's answer. */
const MAX_AHEAD_BYTES = 64 * 1024;
const HEAD_END = "\r\n\r\n";
const FIRST_WORD = "POST /";
const FIRST_LINE = /^POST (\/[!-~]*) HTTP\/1\.1$/;
const SPACE = 0x20;
const NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;

/** Names and values as HTTP/2 has them, pseudo-headers first. undefined: not the plain case. */
function listOf(text: string): string[] | undefined {
  const [first, ...lines] = text.slice(0, -HEAD_END.length).split("\r\n");
  const path = FIRST_LINE.exec(first!)?.[1];
  if (path === undefined) return undefined;
  const list = [":method", "POST", ":path", path, ":scheme", "http"];
  let hosts = 0;
  for (const line of lines) {
    const colon = line.indexOf(":");
    const name = line.slice(0, Math.max(0, colon)).toLowerCase();
    if (!NAME.test(name) || line.includes("\t")) return undefined;
    const value = trim(line, colon + 1);
    if (name === "host") {
      hosts += 1;
      // Where HTTP/2 has it.
      list.splice(6, 0, ":authority", value);
    } else if (name !== "connection" || value.toLowerCase() !== "keep-alive") list.push(name, value);
  }
  return hosts === 1 ? list : undefined;
}

/** The rest of `line` from `start` on, without spaces around it. By hand: an expression would take their number squared. */
function trim(line: string, start: number): string {
  let from = start;
  let to = line.length;
  while (from < to && line.charCodeAt(from) === SPACE) from += 1;
  while (to > from && line.charCodeAt(to - 1) === SPACE) to -= 1;
  return line.slice(from, to);
}
