import type { Sink } from "../sink.ts";
import { headersFrames } from "./frames.ts";

interface OutputParts {
  /** Bytes that are put now are written with the rest. */
  beforeFlush(): void;
  /** The client has taken what it did not before. */
  drained(): void;
}

/** Writes to a connection: all that comes together, in one go. */
export class Output {
  /** The client does not take what is written. */
  isFull = false;
  /** The client once had its header table smaller than it is at first. */
  tableShrunk = false;
  private readonly sink: Sink;
  private readonly parts: OutputParts;
  private pending: Buffer[] = [];
  private isCollecting = false;
  private isHeld = false;

  constructor(sink: Sink, parts: OutputParts) {
    this.sink = sink;
    this.parts = parts;
  }

  put(bytes: Buffer): void {
    this.pending.push(bytes);
  }

  putHeaders(flags: number, id: number, block: Buffer): void {
    // RFC 7541, 4.2: a client that made its table smaller waits for a block that says so. No block of either uses a table,
    // so that each may say it.
    this.put(headersFrames(flags, id, this.tableShrunk ? Buffer.concat([TABLE_EMPTIED, block]) : block));
  }

  /** A piece of the slab right behind the last, so that answers that go together stand together. */
  reserve(bytes: number): { slab: Buffer; start: number } {
    if (slab.length - slabAt < bytes) {
      slab = Buffer.allocUnsafeSlow(Math.max(SLAB_BYTES, bytes));
      slabAt = 0;
    }
    const start = slabAt;
    slabAt += bytes;
    const last = this.pending.at(-1);
    if (last !== undefined && last.buffer === slab.buffer && last.byteOffset + last.length === start) {
      this.pending[this.pending.length - 1] = slab.subarray(last.byteOffset, slabAt);
    } else this.pending.push(slab.subarray(start, slabAt));
    return { slab, start };
  }

  /** Bytes that are put from now on stay here until `release`. */
  hold(): void {
    this.flush();
    this.isHeld = true;
  }

  release(): void {
    if (!this.isHeld) return;
    this.isHeld = false;
    this.flush();
  }

  /** At once, before what is put or held. For frames of the connection alone: those of a stream would overtake its own. */
  putFirst(bytes: Buffer): void {
    if (!this.sink.isClosed) this.sink.write([bytes]);
  }

  /** Until the next `flush`, which is sure to come, `flushSoon` need do nothing. */
  collect(): void {
    this.isCollecting = true;
  }

  flush(): void {
    this.isCollecting = false;
    if (this.isHeld) return;
    this.parts.beforeFlush();
    const { pending, sink } = this;
    if (pending.length === 0) return;
    this.pending = [];
    if (sink.isClosed) return;
    // A client that does not read its answers is not read from.
    if (!sink.write(pending) && !this.isFull) {
      this.isFull = true;
      sink.pause();
      sink.whenTaken(() => {
        this.isFull = false;
        this.parts.drained();
      });
    }
  }

  /** Writes outside of a chunk that is being read: together with all others of this turn. */
  flushSoon(): void {
    if (this.isCollecting) return;
    this.isCollecting = true;
    process.nextTick(() => this.flush());
  }
}

/** HPACK: the table's size from here on is 0. */
const TABLE_EMPTIED = Buffer.of(0x20);
const SLAB_BYTES = 64 * 1024;
let slab = Buffer.allocUnsafeSlow(SLAB_BYTES);
let slabAt = 0;
