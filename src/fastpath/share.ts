/** Units of work (some 4 µs each) that a connection may have done before others have their turn. A warm call takes two. */
const UNITS_A_TURN = 128;
/** Connections that go on with what they hold, in one round of the event loop: what bounds the wait of all others. */
const TURNS_A_ROUND = 4;
/** The cost of a call that node:http2 and Connect serve. */
export const NODE_UNITS = 64;
/** A call that has to look further than the memory. */
export const ASYNC_UNITS = 16;

let round = 0;
let isArmed = false;
/** In the order in which they came. */
const waiting = new Set<() => void>();

/**
 * A connection's share of the event loop. One read of 64 KiB may hold a thousand calls, and a client that sends without
 * waiting for answers has as many more ready; served as they come, they would hold everyone else up for seconds. So a
 * connection holds what goes beyond its turn, reads no more, and goes on in a later round, after those who waited before
 * it. Who asks for less than a turn's worth is never held.
 */
export class Share {
  private readonly goOn: () => void;
  private round = -1;
  private left = 0;

  /** `goOn`: called when it is this connection's turn again. */
  constructor(goOn: () => void) {
    this.goOn = goOn;
  }

  hasLeft(): boolean {
    if (this.round !== round) {
      this.round = round;
      this.left = UNITS_A_TURN;
    }
    return this.left > 0;
  }

  spend(units: number): void {
    this.left -= units;
  }

  /** No more in this round. */
  stop(): void {
    this.round = round;
    this.left = 0;
  }

  /** For who holds something. */
  wait(): void {
    waiting.add(this.goOn);
    arm();
  }

  /** For who holds nothing: rounds are only counted while somebody has used up a turn. */
  renew(): void {
    if (this.left <= 0) arm();
  }

  leave(): void {
    waiting.delete(this.goOn);
  }
}

/**
 * The cost of a message beyond its frame or request, an answer too: so a turn ends, and it is seen whether the client takes
 * its answers, at 32 KiB of them.
 */
export function unitsOf(bytes: number): number {
  return bytes >>> 8;
}

function arm() {
  if (isArmed) return;
  isArmed = true;
  setImmediate(takeTurns);
}

function takeTurns() {
  isArmed = false;
  round += 1;
  let turns = Math.min(waiting.size, TURNS_A_ROUND);
  for (const goOn of waiting) {
    if (turns === 0) break;
    turns -= 1;
    waiting.delete(goOn);
    goOn();
  }
  if (waiting.size > 0) arm();
}
