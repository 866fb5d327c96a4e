import cluster from "node:cluster";
import { readDevSecrets } from "../embedded/dev-secrets.ts";
import { embeddedUri } from "../embedded/mongod.ts";
import { createLogger } from "../observe/logger.ts";
import type { MetricValues } from "../observe/metrics.ts";
import type { ReadinessReport } from "../observe/readiness.ts";
import { StartupError } from "../observe/startup-error.ts";
import { readConfig } from "./config.ts";
import type { ReadyDatabase } from "./database.ts";
import { startServer } from "./server.ts";
import { releaseStartMemory } from "./start-memory.ts";

/** Messages of a worker to the process that started it. */
export type FromWorker =
  | { kind: "listening"; address: string }
  | { kind: "readiness"; report: ReadinessReport }
  /** It can't start, and ends. */
  | { kind: "failed"; message: string }
  | { kind: "metrics"; question: number; values: MetricValues };

export type ToWorker = { kind: "drain" } | { kind: "stop" } | { kind: "metrics"; question: number };

/** Runs the service in one of several processes, until it is asked to stop. Returns the exit code. */
export async function serveAsWorker(): Promise<number> {
  // A terminal's Ctrl-C and a supervisor's SIGTERM may reach every process of the group: the first one decides what follows.
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => {});
  let stop = () => {};
  const stopped = new Promise<void>((resolve) => {
    stop = resolve;
  });
  let drain = () => {};
  let values: () => Promise<MetricValues> = async () => [];
  process.on("message", (message: ToWorker) => {
    if (message.kind === "stop") stop();
    else if (message.kind === "drain") drain();
    else if (message.kind === "metrics") {
      void values().then((all) => tell({ kind: "metrics", question: message.question, values: all }));
    }
  });
  try {
    const config = readConfig();
    const server = await startServer(config, {
      log: createLogger({ level: config.logLevel, output: process.stdout }).child({ worker: cluster.worker?.id }),
      say: () => {},
      onFatal: () => {},
      database: await findDatabase(config.mongodbUri, config.dataDir),
      onReadiness: (report) => tell({ kind: "readiness", report }),
    });
    drain = server.drain;
    values = server.metrics.values;
    releaseStartMemory();
    tell({ kind: "listening", address: server.address });
    await stopped;
    await server.stop();
    return 0;
  } catch (error) {
    if (!(error instanceof StartupError)) throw error;
    tell({ kind: "failed", message: error.message });
    return 1;
  } finally {
    cluster.worker?.disconnect();
  }
}

async function findDatabase(mongodbUri: string | undefined, dataDir: string): Promise<ReadyDatabase> {
  if (mongodbUri !== undefined) return { uri: mongodbUri, devSecrets: undefined };
  const uri = await embeddedUri(dataDir);
  if (uri === undefined) throw new StartupError(`There is no embedded MongoDB in ${dataDir}.`);
  return { uri, devSecrets: readDevSecrets(dataDir) };
}

function tell(message: FromWorker): void {
  // The other side may have ended; then this process does too.
  process.send?.(message, undefined, undefined, () => {});
}
