import cluster from "node:cluster";
import { setTimeout as sleep } from "node:timers/promises";
import { createLogger, type Logger } from "../observe/logger.ts";
import { StartupError } from "../observe/startup-error.ts";
import { readConfig } from "./config.ts";
import { type Server, startServer } from "./server.ts";
import { releaseStartMemory } from "./start-memory.ts";
import { welcome } from "./welcome.ts";
import { serveAsWorker } from "./worker.ts";
import { startWorkers } from "./workers.ts";

const STOP_SIGNALS = ["SIGINT", "SIGTERM"] as const;
/** Under npm one Ctrl-C arrives twice, from the terminal and from npm, which passes its own on. */
const SAME_SIGNAL_MS = 2_000;
/** `timeout` and its like send a signal to a process and to its group. Less than a person takes to send another. */
const ECHO_MS = 200;

/** Runs the service until SIGINT or SIGTERM. Returns the exit code. */
export async function serve(): Promise<number> {
  // Nobody may be left to read what is said.
  process.stderr.on("error", () => {});
  if (cluster.isWorker) return serveAsWorker();
  let log: Logger | undefined;
  const fail = (error: unknown): number => {
    if (!(error instanceof StartupError)) throw error;
    process.stderr.write(`latchkey: ${error.message}\n`);
    return 1;
  };
  let end: (code: number) => void = () => {};
  const ended = new Promise<number>((resolve) => {
    end = resolve;
  });
  try {
    const config = readConfig();
    log = createLogger({ level: config.logLevel, output: process.stdout });
    const start = config.workers > 1 ? startWorkers : startServer;
    const starting = start(config, {
      log,
      say: (line) => process.stderr.write(`${line}\n`),
      terminal: process.stderr.isTTY ? process.stderr : undefined,
      onFatal: (error) => end(fail(error)),
    });
    // A signal during the start waits for it: half a start can't be undone cleanly.
    const signals = onSignals((signal) => {
      log?.info({ event: "stopping", signal }, "stopping: finishing the calls under way");
      end(0);
    });
    const server = await starting;
    releaseStartMemory();
    announce(log, server);
    if (server.newUser !== undefined) {
      const { address, opsAddress, newUser: user } = server;
      process.stderr.write(welcome(config, { address, opsAddress, user, cwd: process.cwd() }));
    }
    const code = await ended;
    server.drain();
    if (code === 0) await signals.another(config.drainDelayMs);
    await server.stop();
    log.info({ event: "stopped" }, "stopped");
    return code;
  } catch (error) {
    return fail(error);
  }
}

interface Signals {
  /** Resolves at a signal after the first, and after `withinMs` without one. */
  another(withinMs: number): Promise<void>;
}

/** Repeats are taken for echoes for a while; a later one ends the process at once, as it does by default. */
function onSignals(first: (signal: NodeJS.Signals) => void): Signals {
  let lastMs: number | undefined;
  let next = () => {};
  let timer: NodeJS.Timeout | undefined;
  const listener = (signal: NodeJS.Signals) => {
    const beforeMs = lastMs;
    lastMs = performance.now();
    if (beforeMs !== undefined) {
      if (lastMs - beforeMs >= ECHO_MS) next();
      return;
    }
    letGoLater();
    first(signal);
  };
  const letGoLater = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      for (const name of STOP_SIGNALS) process.off(name, listener);
    }, SAME_SIGNAL_MS).unref();
  };
  for (const name of STOP_SIGNALS) process.on(name, listener);
  return {
    async another(withinMs) {
      if (withinMs === 0) return;
      clearTimeout(timer);
      const waiting = new AbortController();
      next = () => waiting.abort();
      await sleep(withinMs, undefined, { signal: waiting.signal }).catch(() => {});
      letGoLater();
    },
  };
}

function announce(log: Logger, server: Server): void {
  const ops = server.opsAddress === undefined ? {} : { ops: server.opsAddress };
  log.info({ event: "ready", listen: server.address, ...ops }, `listening on ${server.address}`);
}
