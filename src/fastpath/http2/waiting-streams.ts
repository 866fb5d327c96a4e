import type { Recognised } from "../unary.ts";
import type { Frame } from "./frames.ts";
import { ENTRY_OVERHEAD } from "./hpack.ts";
import { UNSWEPT } from "./sender.ts";

/** Streams of a connection that wait, and what they hold together. */
const MAX_WAITING = 1_000;
const MAX_WAITING_BYTES = 512 * 1024;

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

/** Streams beyond the limit, until one of the others ends; the oldest first. */
export class WaitingStreams {
  private readonly streams = new Map<number, WaitingStream>();
  private bytes = 0;

  get size(): number {
    return this.streams.size;
  }

  has(id: number): boolean {
    return this.streams.has(id);
  }

  ids(): Iterable<number> {
    return this.streams.keys();
  }

  /** False: there is no room. */
  add(id: number, flags: number, list: string[], recognised: Recognised | undefined): boolean {
    const bytes = list.reduce((sum, text) => sum + text.length, ENTRY_OVERHEAD);
    if (this.size >= MAX_WAITING || this.bytes + bytes > MAX_WAITING_BYTES) return false;
    this.streams.set(id, { flags, list, recognised, frames: [], bytes, sinceMs: UNSWEPT });
    this.bytes += bytes;
    return true;
  }

  /** A frame of a stream that waits. False: there is no room. */
  hold({ type, flags, id, payload }: Frame): boolean {
    const stream = this.streams.get(id)!;
    if (this.bytes + payload.length > MAX_WAITING_BYTES) return false;
    stream.bytes += payload.length;
    this.bytes += payload.length;
    stream.frames.push({ type, flags, id, payload: Buffer.from(payload) });
    return true;
  }

  /** The stream waits no longer. */
  take(id: number): WaitingStream {
    const stream = this.streams.get(id)!;
    this.streams.delete(id);
    this.bytes -= stream.bytes;
    return stream;
  }

  /** Those that have waited for `limitMs`. */
  overdue(nowMs: number, limitMs: number): number[] {
    const overdue: number[] = [];
    for (const [id, stream] of this.streams) {
      if (stream.sinceMs === UNSWEPT) stream.sinceMs = nowMs;
      else if (nowMs - stream.sinceMs >= limitMs) overdue.push(id);
    }
    return overdue;
  }

  clear(): void {
    this.streams.clear();
  }
}
