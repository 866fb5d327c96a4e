import { writeSync } from "node:fs";
import { createRequire } from "node:module";
import { type Logger, pino } from "pino";
import type pretty from "pino-pretty";

export type { Logger } from "pino";

interface LogOptions {
  level: string;
  /** Where lines go; a terminal gets text, anything else JSON. */
  output: NodeJS.WritableStream & { isTTY?: boolean; fd?: number };
}

// Nothing here logs a request, a header or a database command in the first place; this is the second line of defence.
const REDACT = [
  "key",
  "secret",
  "token",
  "authorization",
  "secretHash",
  "fingerprint",
  "password",
  "uri",
  "pepper",
  "requestKey",
  "requestKeys",
];

export function createLogger({ level, output }: LogOptions): Logger {
  const options = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
    serializers: { err: describeError },
    redact: { paths: REDACT.flatMap((name) => [name, `*.${name}`, `*.*.${name}`]), censor: "[redacted]" },
  };
  return output.isTTY
    ? pino(options, forTerminal(output))
    : pino(options, output.fd === undefined ? output : lines(output.fd));
}

function forTerminal(output: NodeJS.WritableStream): ReturnType<typeof pretty> {
  // Loaded here, because most services have no terminal.
  const load = createRequire(import.meta.url)("pino-pretty") as typeof pretty;
  return load({
    colorize: true,
    translateTime: "SYS:HH:MM:ss.l",
    ignore: "event",
    sync: true,
    destination: output as NodeJS.WriteStream,
  });
}

/**
 * Writes to the file itself: as a stream, standard output would end the process once the disk is full or its reader gone, or
 * be silent for ever after. What can't be written is counted, and the next line that can be is followed by how many were lost.
 */
function lines(fd: number): { write(line: string): void } {
  let unreported = 0;
  /** The last line was cut short. */
  let torn = false;
  const put = (line: string): boolean => {
    const bytes = Buffer.from(torn ? `\n${line}` : line);
    // A reader that is slow is waited for, but not again for each line.
    let patience = unreported === 0 ? MAX_BUSY : 0;
    for (let at = 0; at < bytes.length; ) {
      try {
        at += writeSync(fd, bytes, at);
      } catch (error) {
        patience -= 1;
        if ((error as NodeJS.ErrnoException).code === "EAGAIN" && patience >= 0) Atomics.wait(PAUSE, 0, 0, 1);
        else {
          torn ||= at > 0;
          return false;
        }
      }
    }
    torn = false;
    return true;
  };
  return {
    write(line) {
      if (!put(line)) {
        unreported += 1;
        lostLines += 1;
      } else if (unreported > 0 && put(lossOf(unreported))) unreported = 0;
    },
  };
}

/** Lines of this process's log that could not be written. */
let lostLines = 0;

export function lostLogLines(): number {
  return lostLines;
}

function lossOf(lines: number): string {
  const msg = "lines of this log could not be written before this one";
  return `${JSON.stringify({ level: "warn", time: new Date().toISOString(), event: "log_lines_lost", lines, msg })}\n`;
}

/** Times that a reader who is slow is waited for, a millisecond each. */
const MAX_BUSY = 100;
const PAUSE = new Int32Array(new SharedArrayBuffer(4));

/** An error as the log may hold it: never its enumerable fields, which in driver errors include whole commands. */
function describeError(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { message: "not an Error" };
  const { code, codeName } = error as { code?: unknown; codeName?: unknown };
  // "E11000 duplicate key error … dup key: { userId: … }": what comes after says nothing that is needed.
  const message = error.message.replace(/dup key:.*/s, "dup key").slice(0, 500);
  return {
    type: error.name,
    message,
    ...((typeof code === "number" || typeof code === "string") && { code }),
    ...(typeof codeName === "string" && { codeName }),
    ...(!isOfConnection(error) && {
      stack: error.stack
        ?.split("\n")
        .filter((line) => /^\s+at /.test(line))
        .slice(0, 12),
    }),
    ...(error.cause !== undefined && { cause: describeError(error.cause) }),
  };
}

/** The end of a connection, or of the attempt at one, is logged by its words: where in the driver it was noticed is noise. */
function isOfConnection(error: Error): boolean {
  return OF_CONNECTIONS.test(error.name) || isOfSocket(error);
}

const OF_CONNECTIONS =
  /^(?:Mongo(?:Network|ServerSelection|ServerClosed|NotConnected|Topology|Pool|WaitQueue)\w*|PoolCleared\w*|NoProofError)$/;

/**
 * Whether an error is one of the system about a connection, or Node's own: that the other side has ended (EPIPE, without a
 * `syscall`), or that the stream is over.
 */
export function isOfSocket(error: unknown): boolean {
  const { code, syscall } = (error ?? {}) as Partial<NodeJS.ErrnoException>;
  return syscall !== undefined || code === "EPIPE" || /^ERR_(?:STREAM|SOCKET)_/.test(String(code));
}
