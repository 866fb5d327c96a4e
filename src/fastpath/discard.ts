import type { Readable } from "node:stream";

/** Bytes of a body that was answered without it; read and thrown away, so that its connection can be used again. */
const MAX_DRAINED_BYTES = 4 * 1024 * 1024;

/** Nothing waits for the body. One that goes on is broken off. */
export function discard(body: Readable, breakOff: () => void): void {
  let drained = 0;
  body.on("error", () => {});
  body.on("data", (chunk: Buffer) => {
    drained += chunk.length;
    if (drained <= MAX_DRAINED_BYTES) return;
    body.pause();
    breakOff();
  });
}
