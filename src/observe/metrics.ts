import { AggregatorRegistry, Counter, collectDefaultMetrics, Gauge, type Metric, Registry } from "prom-client";
import { lostLogLines } from "./logger.ts";

export interface Metrics {
  /** `code` is the canonical code in lower case, `ok` included. */
  rpc(method: string, code: string, durationMs: number): void;
  /** The same for one method and code, found once. */
  series(method: string, code: string): { observe(durationMs: number): void };
  streamOpened(method: string): void;
  streamEnded(method: string, code: string): void;
  verified(outcome: string): void;
  /** Called at each scrape. `ofAll`: what several workers' values come to together; default: their sum. */
  gauge(name: string, help: string, read: () => number, ofAll?: "sum" | "min" | "max"): void;
  /** As `gauge`, of what only grows. */
  counter(name: string, help: string, read: () => number): void;
  contentType: string;
  text(): Promise<string>;
  /** For `mergedMetrics` in another process. */
  values(): Promise<MetricValues>;
}

/** Upper bounds in seconds. */
const BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** Plain data that can be sent between processes. */
export type MetricValues = object[];

export function createMetrics(): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const durations = new Durations();
  registry.registerMetric(durations as unknown as Metric);
  const outcomes = new Map<string, number>();
  new Counter({
    name: "latchkey_verify_total",
    help: "Answers of Verify by outcome",
    labelNames: ["outcome"],
    registers: [registry],
    collect() {
      this.reset();
      for (const [outcome, count] of outcomes) this.inc({ outcome }, count);
    },
  });
  new Counter({
    name: "latchkey_log_lines_lost_total",
    help: "Lines of the log that could not be written: a full disk, or a reader that is gone",
    registers: [registry],
    collect() {
      this.reset();
      this.inc(lostLogLines());
    },
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
    rpc: (method, code, durationMs) => durations.of(method, code).observe(durationMs),
    series: (method, code) => durations.of(method, code),
    verified: (outcome) => outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1),
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
    counter: (name, help, read) => {
      new Counter({
        name,
        help,
        registers: [registry],
        collect() {
          this.reset();
          this.inc(read());
        },
      });
    },
    contentType: registry.contentType,
    text: () => registry.metrics(),
    values: () => registry.getMetricsAsJSON(),
  };
}

/** A histogram for the registry that observes in nanoseconds: prom-client's own takes a microsecond to find its labels. */
class Durations {
  readonly name = "latchkey_rpc_duration_seconds";
  readonly help = "Time from the decoded request to the answer, by method and canonical code";
  readonly type = "histogram";
  readonly aggregator = "sum";
  private readonly all = new Map<string, DurationSeries>();

  of(method: string, code: string): DurationSeries {
    const id = `${method} ${code}`;
    const known = this.all.get(id) ?? new DurationSeries(method, code);
    this.all.set(id, known);
    return known;
  }

  async get() {
    const values = [...this.all.values()].flatMap((series) => series.values(this.name));
    return { name: this.name, help: this.help, type: this.type, aggregator: this.aggregator, values };
  }

  reset(): void {
    this.all.clear();
  }
}

class DurationSeries {
  private readonly counts = BUCKETS.map(() => 0);
  private count = 0;
  private sumMs = 0;

  constructor(
    private readonly method: string,
    private readonly code: string,
  ) {}

  observe(durationMs: number): void {
    this.count += 1;
    this.sumMs += durationMs;
    for (let bucket = 0; bucket < BUCKETS.length; bucket += 1) {
      if (durationMs > BUCKETS[bucket]! * 1_000) continue;
      this.counts[bucket]! += 1;
      return;
    }
  }

  values(name: string) {
    const { method, code } = this;
    let below = 0;
    const buckets = BUCKETS.map((le, index) => {
      below += this.counts[index]!;
      return { metricName: `${name}_bucket`, labels: { le, method, code }, value: below };
    });
    return [
      ...buckets,
      { metricName: `${name}_bucket`, labels: { le: "+Inf", method, code }, value: this.count },
      { metricName: `${name}_sum`, labels: { method, code }, value: this.sumMs / 1_000 },
      { metricName: `${name}_count`, labels: { method, code }, value: this.count },
    ];
  }
}

/** The metrics of several processes as one text. */
export async function mergedMetrics(all: MetricValues[]): Promise<string> {
  return AggregatorRegistry.aggregate(all).metrics();
}
