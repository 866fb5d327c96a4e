import { DEFAULT_WINDOW_BYTES, MAX_WINDOW_BYTES } from "./frames.ts";

/** Bytes that one end lets the other send on a connection, RFC 9113, 5.2. */
export class SendWindow {
  left: number = DEFAULT_WINDOW_BYTES;

  sent(bytes: number): void {
    this.left -= bytes;
  }

  /** False: further than is allowed. */
  open(bytes: number): boolean {
    this.left += bytes;
    return this.left <= MAX_WINDOW_BYTES;
  }
}

/** The same of a stream, less the first size that all streams have: settings may change it while the stream is open (6.9.2). */
export interface StreamWindow {
  readonly id: number;
  credit: number;
}

/** Credit for received bytes is given in portions: of the smallest window there is room for several. */
export const PORTION_BYTES = 8_192;

/** Bytes that were received and are dealt with, so that as many may come again. */
export class Credit {
  private due = 0;

  /** The portion that is to be given now, or 0. */
  add(bytes: number): number {
    this.due += bytes;
    if (this.due < PORTION_BYTES) return 0;
    const portion = this.due;
    this.due = 0;
    return portion;
  }

  /** They were given before their time, and will be added once more. */
  takeBack(bytes: number): void {
    this.due -= bytes;
  }
}
