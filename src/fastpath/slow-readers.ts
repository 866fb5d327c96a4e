import type { Socket } from "node:net";

interface SlowReaders {
  watch(socket: Socket): void;
  stop(): void;
}

/**
 * Cuts connections whose client has taken nothing of what it was sent for `requestTimeoutMs`: one that goes on asking and
 * never reads would hold its place, and what it was answered, for ever. Time for an answer that is still to come does not count.
 */
export function cutSlowReaders({ requestTimeoutMs }: { requestTimeoutMs: number }): SlowReaders {
  const sockets = new Set<Socket>();
  /** Bytes taken of those that are not all taken, what the system has yet to take of a write, and since when no more. */
  const stuck = new Map<Socket, { taken: number; queued: number; sinceMs: number }>();
  const sweep = () => {
    const nowMs = performance.now();
    for (const socket of sockets) {
      const left = socket.writableLength;
      if (left === 0) {
        stuck.delete(socket);
        continue;
      }
      // Moves only when a whole write is taken, however large it is.
      const taken = socket.bytesWritten - left;
      const queued = queuedBytes(socket);
      const before = stuck.get(socket);
      if (before === undefined || before.taken !== taken || queued < before.queued) {
        stuck.set(socket, { taken, queued, sinceMs: nowMs });
      } else if (nowMs - before.sinceMs >= requestTimeoutMs) socket.destroy();
      else before.queued = queued;
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

interface Handle {
  writeQueueSize?: number;
  /** With TLS, the connection's own. */
  _parent?: Handle;
}

/** Of writes under way. Node's own timeouts of sockets look at the same. */
function queuedBytes(socket: Socket): number {
  const handle = (socket as unknown as { _handle?: Handle | null })._handle;
  return (handle?.writeQueueSize ?? 0) + (handle?._parent?.writeQueueSize ?? 0);
}
