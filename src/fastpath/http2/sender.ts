import {
  DEFAULT_WINDOW_BYTES,
  Fault,
  Flag,
  frame,
  MAX_FRAME_BYTES,
  MAX_WINDOW_BYTES,
  number32,
  Setting,
  Type,
} from "./frames.ts";
import type { Output } from "./output.ts";
import { SendWindow, type StreamWindow } from "./windows.ts";

/** An answer, or a rest of one, that waits for the client's windows. */
export interface Sending {
  of: StreamWindow;
  body: Buffer;
  at: number;
  /** Headers, the end of an answer; undefined: the body's last byte is, unless more may follow. */
  trailers: Buffer | undefined;
  mayFollow: boolean;
  /** To be reset behind its trailers. */
  hangUp: boolean;
  sinceMs: number;
}

/** Set by sweeps alone: reading the clock for each stream would be felt. */
export const UNSWEPT = 0;

/** Sends on a connection what the client's windows have room for, and the rest when they have. */
export class Sender {
  /** The client's, those that are kept to. */
  readonly settings = new Map<number, number>();
  /** Answers whose rest waits, by stream. */
  readonly blocked = new Map<number, Sending>();
  /** Room that answers wait for may be there. */
  windowsChanged = false;
  /** Of the whole connection. */
  readonly window: SendWindow = new SendWindow();
  private readonly output: Output;

  private readonly hungUp: (id: number) => void;

  /** `hungUp`: called with a stream that is reset behind its trailers. */
  constructor(output: Output, hungUp: (id: number) => void) {
    this.output = output;
    this.hungUp = hungUp;
  }

  roomOf(credit: number): number {
    return Math.min(this.window.left, this.firstWindow() + credit);
  }

  /** The end of a stream's answer: a body, trailers, or both. */
  send(of: StreamWindow, body: Buffer, trailers: Buffer | undefined): void {
    this.finish({ of, body, at: 0, trailers, mayFollow: false, hangUp: false, sinceMs: UNSWEPT });
  }

  finish(sending: Sending): void {
    if (!this.sendOn(sending)) this.blocked.set(sending.of.id, sending);
  }

  /** Whether all has gone. */
  sendOn(sending: Sending): boolean {
    const { output } = this;
    const { of, body, trailers, mayFollow } = sending;
    while (sending.at < body.length) {
      const length = Math.min(body.length - sending.at, this.roomOf(of.credit), MAX_FRAME_BYTES);
      if (length <= 0) return false;
      const end = sending.at + length;
      const isLast = end === body.length && trailers === undefined && !mayFollow;
      output.put(frame(Type.DATA, isLast ? Flag.END_STREAM : 0, of.id, body.subarray(sending.at, end)));
      sending.at = end;
      of.credit -= length;
      this.window.sent(length);
    }
    if (trailers !== undefined) output.putHeaders(Flag.END_STREAM, of.id, trailers);
    if (sending.hangUp) {
      output.put(frame(Type.RST_STREAM, 0, of.id, number32(Fault.NO_ERROR)));
      this.hungUp(of.id);
    }
    return true;
  }

  sendBlocked(): void {
    for (const [id, sending] of this.blocked) if (this.sendOn(sending)) this.blocked.delete(id);
  }

  /** From the client. Of a stream, or without one of the connection. False: further than is allowed. */
  open(of: StreamWindow | undefined, bytes: number): boolean {
    this.windowsChanged = true;
    if (of === undefined) return this.window.open(bytes);
    of.credit += bytes;
    return this.firstWindow() + of.credit <= MAX_WINDOW_BYTES;
  }

  apply(said: readonly (readonly [number, number])[]): void {
    for (const [setting, value] of said) this.settings.set(setting, value);
    this.windowsChanged = true;
  }

  private firstWindow(): number {
    return this.settings.get(Setting.INITIAL_WINDOW_SIZE) ?? DEFAULT_WINDOW_BYTES;
  }
}
