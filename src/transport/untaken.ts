import type { Socket } from "node:net";

export interface Untaken {
  watch(socket: Socket): void;
  stop(): void;
}

/**
 * Cuts connections whose client has taken nothing of what it was sent for `requestTimeoutMs`: one that goes on asking and
 * never reads would hold its place, and what it was answered, for ever. Time for an answer that is still to come does not count.
 */
export function cutUntaken({ requestTimeoutMs }: { requestTimeoutMs: number }): Untaken {
  const sockets = new Set<Socket>();
  /** Bytes taken of those that are not all taken, and since when no more. */
  const stuck = new Map<Socket, { taken: number; sinceMs: number }>();
  const sweep = () => {
    const nowMs = performance.now();
    for (const socket of sockets) {
      const left = socket.writableLength;
      if (left === 0) {
        stuck.delete(socket);
        continue;
      }
      const taken = socket.bytesWritten - left;
      const before = stuck.get(socket);
      if (before?.taken !== taken) stuck.set(socket, { taken, sinceMs: nowMs });
      else if (nowMs - before.sinceMs >= requestTimeoutMs) socket.destroy();
    }
  };
  const timer = setInterval(sweep, Math.min(1_000, requestTimeoutMs)).unref();
  return {
    watch(socket) {
      sockets.add(socket);
      socket.once("close", () => {
        sockets.delete(socket);
        stuck.delete(socket);
      });
    },
    stop: () => clearInterval(timer),
  };
}
