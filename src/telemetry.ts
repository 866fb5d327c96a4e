import { type Logger, pino } from "pino";
import pretty from "pino-pretty";
import { AggregatorRegistry, Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

export type { Logger } from "pino";

export interface LogOptions {
  level: string;
  /** Where lines go; a terminal gets text, anything else JSON. */
  output: NodeJS.WritableStream & { isTTY?: boolean; fd?: number };
}

// Nothing here logs a request, a header or a database command in the first place; this is the second line of defence.
const REDACT = ["key", "secret", "token", "authorization", "secretHash", "fingerprint", "password", "uri", "pepper"];

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
    ? pino(
        options,
        pretty({
          colorize: true,
          translateTime: "SYS:HH:MM:ss.l",
          ignore: "event",
          sync: true,
          destination: output as NodeJS.WriteStream,
        }),
      )
    : pino(options, output);
}

/** What the log may hold of an error: never its enumerable fields, which in driver errors include whole commands. */
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
    stack: error.stack
      ?.split("\n")
      .filter((line) => /^\s+at /.test(line))
      .slice(0, 12),
    ...(error.cause !== undefined && { cause: describeError(error.cause) }),
  };
}

export interface Metrics {
  /** `code` is the canonical code in lower case, `ok` included. */
  rpc(method: string, code: string, durationMs: number): void;
  streamOpened(method: string): void;
  streamEnded(method: string, code: string): void;
  verified(outcome: string): void;
  /** Called at each scrape. `ofAll`: what several workers' values come to together; default: their sum. */
  gauge(name: string, help: string, read: () => number, ofAll?: "sum" | "min" | "max"): void;
  contentType: string;
  text(): Promise<string>;
  /** For `mergedMetrics` in another process. */
  values(): Promise<MetricValues>;
}

/** Plain data that can be sent between processes. */
export type MetricValues = object[];

export function createMetrics(): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const durations = new Histogram({
    name: "latchkey_rpc_duration_seconds",
    help: "Time from the decoded request to the answer, by method and canonical code",
    labelNames: ["method", "code"],
    buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
    registers: [registry],
  });
  const outcomes = new Counter({
    name: "latchkey_verify_total",
    help: "Answers of Verify by outcome",
    labelNames: ["outcome"],
    registers: [registry],
  });
  const streams = new Gauge({
    name: "latchkey_streams_open",
    help: "Open streams, by method",
    labelNames: ["method"],
    registers: [registry],
  });
  const ended = new Counter({
    name: "latchkey_streams_ended_total",
    help: "Streams that ended, by method and canonical code",
    labelNames: ["method", "code"],
    registers: [registry],
  });
  return {
    streamOpened: (method) => streams.inc({ method }),
    streamEnded: (method, code) => {
      streams.dec({ method });
      ended.inc({ method, code });
    },
    rpc: (method, code, durationMs) => durations.observe({ method, code }, durationMs / 1_000),
    verified: (outcome) => outcomes.inc({ outcome }),
    gauge: (name, help, read, ofAll = "sum") => {
      new Gauge({
        name,
        help,
        aggregator: ofAll,
        registers: [registry],
        collect() {
          this.set(read());
        },
      });
    },
    contentType: registry.contentType,
    text: () => registry.metrics(),
    values: () => registry.getMetricsAsJSON(),
  };
}

/** The metrics of several processes as one text. */
export async function mergedMetrics(all: MetricValues[]): Promise<string> {
  return AggregatorRegistry.aggregate(all).metrics();
}
