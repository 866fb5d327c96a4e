import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import type { HotAnswer, Peer } from "./hot-method.ts";
import { httpDate } from "./http-date.ts";
import { peerOf } from "./peer.ts";
import { takeTurns } from "./turns.ts";
import { bodyOf, Call, type HotMethods, isPromise, messageIn, type Recognised, settle } from "./unary.ts";
import { EMPTY } from "./wire-format.ts";

export interface Http1LaneOptions {
  methods: HotMethods;
  maxHeaderBytes: number;
  /** Time for a whole request. */
  requestTimeoutMs: number;
  /** Time without a request after which a connection is closed. */
  idleTimeoutMs: number;
  /** Takes a connection from the beginning of a request on; what was read of it is given back to the socket. */
  handOver(socket: Socket): void;
}

export interface Http1Lane {
  serve(socket: Socket): void;
  /** Each connection ends when its call under way is answered. */
  drain(): void;
  stop(): void;
}

/**
 * Serves hot methods on HTTP/1.1 connections for as long as nothing else is asked on them: plain requests, the first of
 * which has its headers in one piece. At the first request of another kind the connection is node:http's for good. What is the least
 * unusual (a header that may be read in two ways, a chunked body …) is of another kind, so that there is but one reader of
 * what could smuggle a request in.
 */
export function createHttp1Lane(options: Http1LaneOptions): Http1Lane {
  const connections = new Set<Connection>();
  const sweep = () => {
    const nowMs = performance.now();
    for (const connection of connections) connection.sweep(nowMs);
  };
  const timer = setInterval(sweep, Math.min(1_000, options.requestTimeoutMs, options.idleTimeoutMs)).unref();
  let draining = false;
  return {
    serve(socket) {
      if (draining) return options.handOver(socket);
      const connection = new Connection(socket, options, () => connections.delete(connection));
      connections.add(connection);
    },
    drain() {
      draining = true;
      for (const connection of connections) connection.drain();
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
  private readonly options: Http1LaneOptions;
  private readonly left: () => void;
  private readonly onData = (chunk: Buffer): void => this.receive(chunk);
  private readonly onClose = (): void => this.close();
  /** What has come and is not answered. */
  private rest: Buffer = EMPTY;
  /** The last request's: most clients send the same with each. */
  private head: Head | undefined;
  private call: Call | undefined;
  private draining = false;
  /** The connection is closed, or another's. */
  private isOver = false;
  private sinceMs = performance.now();
  private used = false;
  private out: Buffer[] = [];

  constructor(socket: Socket, options: Http1LaneOptions, left: () => void) {
    this.socket = socket;
    this.peer = peerOf(socket);
    this.options = options;
    this.left = left;
    socket.on("data", this.onData);
    socket.once("close", this.onClose);
  }

  private receive(chunk: Buffer) {
    this.rest = this.rest.length === 0 ? chunk : Buffer.concat([this.rest, chunk]);
    this.serve();
    this.flush();
    if (!this.isOver) takeTurns(this.socket, chunk, () => this.call === undefined && !this.isOver);
  }

  /** Answers the requests that are whole, up to one that has to be waited for. */
  private serve() {
    while (this.rest.length > 0 && this.call === undefined && !this.socket.destroyed) {
      const head = this.knownHead() ?? this.readHead();
      if (head === undefined && this.isPartOfHead()) return;
      if (head === undefined) return this.handOver();
      this.head = head;
      this.used = true;
      const start = head.text.length;
      const end = start + head.bodyBytes;
      if (this.rest.length < end) return;
      const { method, format, headers, timeoutMs } = head.recognised;
      const body = head.bodyBytes === 0 ? null : this.rest.subarray(start, end);
      const message = messageIn(format, body, this.options.methods.maxBytesOf(method));
      const call = message && new Call(format, message, headers, timeoutMs, this.peer);
      const answer = call && this.options.methods.answer(method, call);
      if (answer === undefined) return this.handOver();
      this.rest = this.rest.subarray(end);
      if (isPromise(answer)) this.wait(answer, call!, head.recognised);
      else this.write(answer, head.recognised);
    }
  }

  private wait(answer: Promise<HotAnswer>, call: Call, recognised: Recognised) {
    this.call = call;
    // What comes meanwhile waits in the socket.
    this.socket.pause();
    settle(answer, call, (late) => {
      this.call = undefined;
      if (this.socket.destroyed) return;
      this.write(late, recognised);
      this.socket.resume();
      this.serve();
      this.flush();
    });
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

  private write(answer: HotAnswer, { format }: Recognised) {
    const { status, headers, bytes } = bodyOf(format, answer);
    let text = `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n`;
    for (const name in headers) text += `${name}: ${headers[name]}\r\n`;
    if (format.protocol === "grpc-web") text += `content-length: ${bytes.length}\r\n`;
    text += `Date: ${httpDate()}\r\n`;
    text += this.draining
      ? "Connection: close\r\n\r\n"
      : `Connection: keep-alive\r\nKeep-Alive: timeout=${Math.floor(this.options.idleTimeoutMs / 1_000)}\r\n\r\n`;
    const response = Buffer.allocUnsafe(text.length + bytes.length);
    response.write(text, "latin1");
    response.set(bytes, text.length);
    this.out.push(response);
  }

  private flush() {
    const { out, socket } = this;
    if (out.length > 0) {
      this.out = [];
      socket.write(out.length === 1 ? out[0]! : Buffer.concat(out));
      // A client that does not read its answers is not read from.
      if (socket.writableNeedDrain) {
        socket.pause();
        socket.once("drain", () => {
          if (this.call === undefined) socket.resume();
        });
      }
    }
    if (this.draining && this.call === undefined) socket.destroySoon();
  }

  private handOver() {
    const { socket, rest } = this;
    this.flush();
    this.forget();
    if (socket.destroyed) return;
    socket.pause();
    socket.unshift(rest);
    this.options.handOver(socket);
    socket.resume();
  }

  private forget() {
    this.isOver = true;
    this.socket.off("data", this.onData);
    this.socket.off("close", this.onClose);
    this.left();
  }

  private close() {
    this.forget();
    this.call?.abort();
  }

  drain(): void {
    this.draining = true;
    if (this.rest.length === 0) this.flush();
  }

  sweep(nowMs: number): void {
    const { socket, options } = this;
    if (this.used || this.call !== undefined) this.sinceMs = nowMs;
    this.used = false;
    const waitedMs = nowMs - this.sinceMs;
    if (this.rest.length > 0 && waitedMs >= options.requestTimeoutMs) {
      socket.end("HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n");
      this.forget();
    } else if (waitedMs >= options.idleTimeoutMs) socket.destroySoon();
  }
}

const HEAD_END = "\r\n\r\n";
const FIRST_WORD = "POST /";
const FIRST_LINE = /^POST (\/[!-~]*) HTTP\/1\.1$/;
const LINE = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*$/;

/** Names and values as HTTP/2 has them, pseudo-headers first. undefined: not the plain case. */
function listOf(text: string): string[] | undefined {
  const [first, ...lines] = text.slice(0, -HEAD_END.length).split("\r\n");
  const path = FIRST_LINE.exec(first!)?.[1];
  if (path === undefined) return undefined;
  const list = [":method", "POST", ":path", path, ":scheme", "http"];
  let hosts = 0;
  for (const line of lines) {
    const [, name, value] = LINE.exec(line) ?? [];
    if (name === undefined || value === undefined) return undefined;
    const lower = name.toLowerCase();
    if (lower === "host") hosts += 1;
    // Says what is so anyway.
    else if (lower === "connection" && value.toLowerCase() === "keep-alive") continue;
    list.push(lower, value);
  }
  return hosts === 1 ? list : undefined;
}
