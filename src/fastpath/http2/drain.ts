import { Fault, frame, goawayFrame, MAX_STREAM_ID, Type } from "./frames.ts";
import type { Output } from "./output.ts";

interface DrainParts {
  output: Output;
  /** No stream after those that have begun is served: sends the GOAWAY that says so. */
  leave(): void;
}

/**
 * The end of a connection that loses no call. RFC 9113, 6.8: a first GOAWAY names no stream, and streams that the client opens
 * before it knows of it are served; then comes the one that names the last. But libraries fail calls by themselves that their
 * program makes while they read a GOAWAY (nghttp2, and with it Node: REFUSED_STREAM), and answers are what makes programs call
 * again. So answers wait, for as long as the client answers pings in HOLD_MS, from before the GOAWAY until it knows.
 */
export class Drain {
  /** `holding`: pings go around; `asked`: the first GOAWAY was sent; `left`: the second, or the connection is over. */
  private state: "open" | "holding" | "asked" | "left" = "open";
  private answeredPings = 0;
  private holdTimer: NodeJS.Timeout | undefined;
  private patience: NodeJS.Timeout | undefined;

  constructor(private readonly parts: DrainParts) {}

  begin(): void {
    if (this.state !== "open") return;
    const { output } = this.parts;
    this.state = "holding";
    output.hold();
    this.ping();
    this.holdTimer = setTimeout(() => {
      this.ask();
      output.release();
    }, HOLD_MS);
    this.patience = setTimeout(() => this.leave(), ROUND_TRIP_MS);
  }

  /** Takes the answer to a ping; any but the one that is waited for changes nothing. */
  takeAnswer(payload: Buffer): void {
    const isUnderWay = this.state === "holding" || this.state === "asked";
    if (!isUnderWay || !payload.equals(pingOf(this.answeredPings))) return;
    this.answeredPings += 1;
    // The first answer says that the client's library has read all answers; the second, that its program had a turn since.
    if (this.answeredPings === 2) this.ask();
    // Likewise the library has read the GOAWAY, and its program knows.
    if (this.answeredPings === 3) this.parts.output.release();
    if (this.answeredPings === 4) this.leave();
    else this.ping();
  }

  /** The connection is over. */
  stop(): void {
    this.state = "left";
    clearTimeout(this.holdTimer);
    clearTimeout(this.patience);
  }

  private ping() {
    this.parts.output.putFirst(frame(Type.PING, 0, 0, pingOf(this.answeredPings)));
  }

  private ask() {
    if (this.state !== "holding") return;
    this.state = "asked";
    this.parts.output.putFirst(goawayFrame(MAX_STREAM_ID, Fault.NO_ERROR));
  }

  private leave() {
    if (this.state === "left") return;
    this.ask();
    this.stop();
    this.parts.output.release();
    this.parts.leave();
  }
}

const pingOf = (number: number): Buffer => Buffer.from(`drain ${number} `);
/** For which answers wait at most: less than gateways do. */
const HOLD_MS = 100;
/** In which a client should have answered all pings; they are not waited for longer. */
const ROUND_TRIP_MS = 2_000;
