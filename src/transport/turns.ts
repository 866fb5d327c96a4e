import type { Socket } from "node:net";

/** As much as one TLS record holds; where so much came at once, more is probably waiting. */
const LARGE_BYTES = 16_384;

/**
 * Lets others have their turn after a large chunk was dealt with. Node reads up to 32 chunks of 64 KiB from one socket before
 * it looks at any other, and these may hold thousands of calls each: a client that sends without waiting for answers would
 * hold everyone up for seconds. `mayGoOn` is asked before the socket is read from again.
 */
export function takeTurns(socket: Socket, chunk: Buffer, mayGoOn: () => boolean): void {
  if (chunk.length < LARGE_BYTES || socket.isPaused()) return;
  const goOn = () => {
    if (mayGoOn()) socket.resume();
  };
  socket.pause();
  setImmediate(() => {
    // Whoever found the socket paused did not wait for what it wrote to be taken.
    if (socket.writableNeedDrain) socket.once("drain", goOn);
    else goOn();
  });
}
