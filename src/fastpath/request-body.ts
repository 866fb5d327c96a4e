import type { Readable } from "node:stream";
import type { HeldBytes } from "./held-bytes.ts";
import { append } from "./wire-format.ts";

/** Takes a whole body, null when it is empty. */
type TakeBody = (body: Buffer | null) => void;

/**
 * Takes a small body as early as can be: what has come by now, and what is yet to come at its source. Node hands what
 * arrives from the network to `push`, piece by piece; standing in for it there spares the listeners and the turns of the
 * loop that reading takes, which is most of what a small call costs beyond Node's own part.
 *
 * `take` gets the body once it is whole, and may hand it on by `giveBack`. A body that grows beyond `maxBytes`, or for which `held`
 * has no room, is given back at once, and `tooLarge` called. A source that breaks off calls neither.
 */
export function readBody(
  source: Readable,
  maxBytes: number,
  held: HeldBytes,
  take: TakeBody,
  tooLarge: () => void,
): void {
  let body = (source.readableLength > 0 ? source.read() : null) as Buffer | null;
  if (hasEnded(source)) {
    if (isBroken(source)) return;
    take(body);
    // Only a body that was read to its end is over.
    if (body === null) source.read(0);
    return;
  }
  const push = source.push;
  let pieces: Buffer | undefined;
  let counted = 0;
  const giveCounted = () => {
    held.give(counted);
    counted = 0;
  };
  source.once("close", giveCounted);
  source.push = (chunk: Buffer | null): boolean => {
    if (chunk === null) {
      source.push = push;
      giveCounted();
      // A peer that breaks off ends its body too.
      if (!isBroken(source)) take(body);
      return source.push(null);
    }
    // One that comes in pieces may need more than HTTP/2's first window: to read is what opens the next.
    if (body !== null) source.read(0);
    if (body === null) body = chunk;
    else {
      pieces = append(pieces ?? append(undefined, body), chunk);
      body = pieces;
    }
    const hasRoom = pieces === undefined || held.take(body.length - counted);
    if (hasRoom && pieces !== undefined) counted = body.length;
    if (body.length <= maxBytes && hasRoom) return true;
    source.push = push;
    giveCounted();
    giveBack(source, body);
    tooLarge();
    return true;
  };
}

/** For the body's taker, before it returns: what reads the source from now on gets the body from its beginning. */
export function giveBack(source: Readable, body: Buffer | null): void {
  if (body !== null) source.unshift(body);
}

/** Whether everything was received. The public `readableEnded` is true only after the `end` event, which comes too late. */
function hasEnded(source: Readable): boolean {
  return (source as unknown as { _readableState: { ended: boolean } })._readableState.ended;
}

function isBroken(source: Readable & { closed: boolean }): boolean {
  return source.destroyed || source.closed;
}
