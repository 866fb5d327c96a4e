import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { Duplex } from "node:stream";
import type { TLSSocket } from "node:tls";
import { notePeer, peerOf } from "../peer.ts";
import { NODE_UNITS, Share, unitsOf } from "../share.ts";
import { EMPTY } from "../wire-format.ts";

/**
 * A connection as node:http gets it. Its parser has all the requests of a chunk under way before it looks up, and two
 * thousand may stand in one: here it is fed by slices, and gets no more than the connection's turn allows.
 */
export class NodeConnection extends Duplex {
  readonly remoteAddress: string | undefined;
  readonly encrypted: boolean;
  private readonly socket: Socket;
  private readonly share = new Share(() => this.feed());
  private held: Buffer;
  private sliceBytes = MIN_SLICE_BYTES;
  private hasEnded: boolean;
  private parting: NodeJS.Timeout | undefined;
  /** Requests under way. */
  private open = 0;

  /** `read`: what was read of it before. `hasEnded`: whether the client sends nothing after it. */
  constructor(socket: Socket, read: Buffer = EMPTY, hasEnded = false) {
    super({ decodeStrings: false });
    this.socket = socket;
    this.held = read;
    this.hasEnded = hasEnded;
    this.remoteAddress = socket.remoteAddress;
    this.encrypted = (socket as Partial<TLSSocket>).encrypted === true;
    notePeer(this, peerOf(socket));
    const feed = () => this.feed();
    this.on("resume", feed).on("drain", feed);
    this.on("error", () => {});
    socket.on("data", (chunk: Buffer) => {
      this.held = this.held.length === 0 ? chunk : Buffer.concat([this.held, chunk]);
      this.feed();
    });
    socket.once("end", () => {
      this.hasEnded = true;
      this.feed();
    });
    socket.on("timeout", () => this.emit("timeout"));
    socket.once("close", () => this.destroy());
  }

  /** A request has begun. */
  asked(response: ServerResponse): void {
    this.share.spend(NODE_UNITS);
    this.sliceBytes = MIN_SLICE_BYTES;
    this.open += 1;
    response.once("close", () => {
      this.open -= 1;
      this.feed();
    });
  }

  private feed() {
    const { socket } = this;
    while (this.held.length > 0 && this.mayFeed() && this.share.hasLeft()) {
      const slice = this.held.subarray(0, this.sliceBytes);
      this.held = this.held.subarray(slice.length);
      // Bytes that begin no request are a body.
      this.sliceBytes = Math.min(2 * this.sliceBytes, MAX_SLICE_BYTES);
      this.share.spend(1 + unitsOf(slice.length));
      // It is taken before this returns: what comes of it is known before the next.
      this.push(slice);
    }
    if (this.destroyed) return;
    if (this.held.length > 0) {
      socket.pause();
      if (this.mayFeed()) this.share.wait();
      return;
    }
    this.share.renew();
    if (this.hasEnded) {
      this.push(null);
      this.parting ??= setTimeout(() => this.socket.destroy(), PARTING_MS).unref();
    } else if (socket.isPaused()) socket.resume();
  }

  private mayFeed(): boolean {
    if (this.destroyed || this.writableNeedDrain || this.open >= MAX_OPEN) return false;
    return this.readableFlowing === true && this.readableLength === 0;
  }

  /** As a socket has it. */
  setTimeout(ms: number): this {
    this.socket.setTimeout(ms);
    return this;
  }

  /** As a socket has it. */
  destroySoon(): void {
    this.end();
  }

  override _read(): void {
    // Only what was pushed before anybody read is found here: the rest goes through at once.
    if (this.held.length > 0) process.nextTick(() => this.feed());
  }

  override _write(chunk: Buffer | string, encoding: BufferEncoding, done: () => void): void {
    if (this.socket.write(chunk, encoding)) done();
    else this.socket.once("drain", done);
  }

  override _writev(chunks: { chunk: Buffer | string; encoding: BufferEncoding }[], done: () => void): void {
    const { socket } = this;
    socket.cork();
    for (const { chunk, encoding } of chunks) socket.write(chunk, encoding);
    socket.uncork();
    if (socket.writableNeedDrain) socket.once("drain", done);
    else done();
  }

  override _final(done: () => void): void {
    this.socket.destroySoon();
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.share.leave();
    clearTimeout(this.parting);
    // Ended well, its last bytes may still be on their way.
    if (error !== null || !this.writableFinished) this.socket.destroy();
    done(error);
  }
}

/**
 * Time for the answers under way when the client has ended its half. It may want them, or be gone: an answer that never ends,
 * as a Watch's, would be held for ever.
 */
const PARTING_MS = 10_000;
/** Of requests sent without waiting for an answer; more wait. */
const MAX_OPEN = 16;
/** Of small requests, some: what is fed at once can't be taken back. */
const MIN_SLICE_BYTES = 128;
const MAX_SLICE_BYTES = 2_048;
