import type { Duplex } from "node:stream";

/** The far end of a connection, as the logic of one needs it. */
export interface Sink {
  readonly isClosed: boolean;
  /** All in one go. False: the client does not take it at once; `whenTaken` says when it has. */
  write(pieces: readonly Buffer[]): boolean;
  /** Calls back at once where the client has taken all. */
  whenTaken(then: () => void): void;
  pause(): void;
  resume(): void;
  /** Closes when all is sent. */
  end(): void;
  /** As `endReading` below. */
  endReading(): void;
}

/** In which a client should have closed its end after ours. */
const LINGER_MS = 1_000;

export function sinkOf(connection: Duplex): Sink {
  return {
    get isClosed() {
      return connection.destroyed || connection.writableEnded;
    },
    write(pieces) {
      if (pieces.length > 1) connection.cork();
      for (const bytes of pieces) connection.write(bytes);
      if (pieces.length > 1) connection.uncork();
      return !connection.writableNeedDrain;
    },
    whenTaken(then) {
      if (connection.writableNeedDrain) connection.once("drain", then);
      else then();
    },
    pause: () => void connection.pause(),
    resume: () => {
      if (connection.isPaused()) connection.resume();
    },
    end: () => endSoon(connection),
    endReading: () => endReading(connection),
  };
}

/**
 * Ends, and goes on reading what the client still sends, for LINGER_MS at most: a socket that is closed on unread bytes takes
 * its last answers back.
 */
export function endReading(connection: Duplex): void {
  connection.end(() => setTimeout(() => connection.destroy(), LINGER_MS).unref());
  connection.resume();
}

function endSoon(connection: Duplex): void {
  if (connection.writable) connection.end();
  if (connection.writableFinished) connection.destroy();
  else connection.once("finish", () => connection.destroy());
}
