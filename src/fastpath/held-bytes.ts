/**
 * Bytes of requests that are not whole, of all connections together. Anybody may send them, before there is anything that says who it
 * is: what one request may hold is bounded, and so must be what many of them hold.
 */
export class HeldBytes {
  private held = 0;
  private readonly max: number;

  constructor(max: number) {
    this.max = max;
  }

  /** Whether there is room for so many more; then they count until `give`. */
  take(bytes: number): boolean {
    if (this.held + bytes > this.max) return false;
    this.held += bytes;
    return true;
  }

  give(bytes: number): void {
    this.held -= bytes;
  }
}

/** As many as 64 batches of the largest size: memory that a process of any size can spare. */
export const MAX_HELD_BYTES: number = 64 * 1024 * 1024;
