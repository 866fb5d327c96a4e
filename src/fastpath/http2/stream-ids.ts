import { MAX_STREAM_ID } from "./frames.ts";

/** Streams that were reset, and numbers that were passed over: of as many it is known, a connection. */
const MAX_RESETS = 1_000;
const MAX_SKIPPED = 100;

/**
 * How a stream is that is not open. `skipped`: its number was passed over; `unserved`: a GOAWAY said that it is not served;
 * `closed`: in the ordinary way, or so long ago that nothing more is known.
 */
export type ClosedState = "skipped" | "unserved" | "reset by client" | "reset by server" | "closed";

/** The numbers of a connection's streams. Frames of closed ones may be on their way: RFC 9113, 5.1 and 5.1.1, judges them by how they were closed. */
export class StreamIds {
  /** The highest that the client has used. */
  last = 0;
  /** Streams above it are not served. */
  private servedTo = MAX_STREAM_ID;
  /** The oldest first. */
  private readonly resets = new Map<number, "reset by client" | "reset by server">();
  /** From and to. */
  private readonly skipped: [number, number][] = [];

  /** The client opens a stream. */
  use(id: number): void {
    if (id > this.last + 2 && this.skipped.length < MAX_SKIPPED) {
      this.skipped.push([this.last === 0 ? 1 : this.last + 2, id - 2]);
    }
    this.last = id;
  }

  /** Those that were used are the last. */
  close(): void {
    this.servedTo = this.last;
  }

  isServed(id: number): boolean {
    return id <= this.servedTo;
  }

  /** The last that was or will be served. */
  get lastServed(): number {
    return Math.min(this.last, this.servedTo);
  }

  reset(id: number, by: "client" | "server"): void {
    if (this.resets.size >= MAX_RESETS) this.resets.delete(this.resets.keys().next().value!);
    this.resets.set(id, `reset by ${by}`);
  }

  stateOf(id: number): ClosedState {
    if (!this.isServed(id)) return "unserved";
    const isSkipped = () => this.skipped.some(([from, to]) => id >= from && id <= to);
    return this.resets.get(id) ?? (isSkipped() ? "skipped" : "closed");
  }
}
