import cluster, { type Worker } from "node:cluster";
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { availableParallelism } from "node:os";
import { formatAddress } from "../fastpath/listen.ts";
import { connect } from "../mongo/connection.ts";
import type { Logger } from "../observe/logger.ts";
import { createMetrics, type MetricValues, mergedMetrics } from "../observe/metrics.ts";
import { mergedReport, type ReadinessReport, STARTING, STOPPING, shown } from "../observe/readiness.ts";
import { StartupError } from "../observe/startup-error.ts";
import { createCleanUps } from "./clean-ups.ts";
import type { Config } from "./config.ts";
import { findNewUser, makeSchema, openDatabase } from "./database.ts";
import { namingAddress } from "./free-address.ts";
import { listenOps } from "./ops.ts";
import { DRAIN_MS, type Server, type ServerHooks } from "./server.ts";
import type { Address } from "./setting-types.ts";
import type { FromWorker, ToWorker } from "./worker.ts";

interface Crew {
  /** Where all of them listen. */
  readonly address: string;
  /** Those that serve calls. */
  readonly serving: number;
  /** Of all of them together. */
  readonly readiness: ReadinessReport;
  /** Workers that ended unasked, since the start. */
  readonly lost: number;
  /** Of those that answer in time. */
  metrics(): Promise<MetricValues[]>;
  /** They are not ready any more, and serve whoever comes. None is replaced. */
  drain(): void;
  stop(): Promise<void>;
}

const METRICS_MS = 2_000;
const NO_WORKER = "No worker lives. Each is replaced; the log says why it ended (worker_ended).";
const FIRST_BACKOFF_MS = 100;
const MAX_BACKOFF_MS = 10_000;
/** A worker that lived this long did not fail at its start. */
const SOUND_MS = 30_000;

/**
 * The service in several processes. This one owns the embedded database, its schema and the operators' port, and serves no
 * calls; each worker is a whole service with a view of its own, on one shared port. A worker that ends is replaced.
 */
export async function startWorkers(config: Config, hooks: ServerHooks): Promise<Server> {
  const { log } = hooks;
  const cleanUps = createCleanUps();
  try {
    const { uri } = await openDatabase(config, hooks, cleanUps);
    const database = await connect(uri);
    const db = database.client.db(config.database);
    const newUser = await makeSchema(uri, config, hooks.say)
      .then(() => findNewUser(config, hooks, db))
      .finally(() => database.close());

    let crew: Crew | undefined;
    const metrics = createMetrics();
    metrics.gauge("latchkey_workers", "Workers that serve calls", () => crew?.serving ?? 0);
    metrics.gauge("latchkey_workers_lost", "Workers that ended unasked since the start", () => crew?.lost ?? 0);
    const text = async () => mergedMetrics([await metrics.values(), ...((await crew?.metrics()) ?? [])]);
    const ops =
      config.opsListen === "off"
        ? undefined
        : await listenOps({
            ...config.opsListen,
            readiness: () => shown(crew?.readiness ?? notTaken(STARTING)),
            metrics: { contentType: metrics.contentType, text },
          });
    cleanUps.push(() => ops?.close());

    const cores = config.hashConcurrency ?? availableParallelism();
    const members = await hire(config.workers, log, {
      LATCHKEY_LISTEN: await concrete(config.listen),
      LATCHKEY_OPS_LISTEN: "off",
      LATCHKEY_HASH_CONCURRENCY: String(Math.max(1, Math.floor(cores / config.workers))),
    });
    crew = members;
    cleanUps.push(() => members.stop());

    return {
      address: members.address,
      opsAddress: ops?.address,
      newUser,
      metrics,
      drain: members.drain,
      stop: cleanUps.release,
    };
  } catch (error) {
    await cleanUps.release();
    throw error;
  }
}

/** Resolves when all of them listen. Where one can't start, all end, and it fails with what that one said. */
async function hire(size: number, log: Logger, environment: Record<string, string>): Promise<Crew> {
  // Connections live long and may be few: each goes to the next worker in turn. Left to the kernel, most of them would go to
  // whichever worker wakes first.
  cluster.schedulingPolicy = cluster.SCHED_RR;
  const workers = new Set<Worker>();
  const reports = new Map<Worker, ReadinessReport>();
  const answers = new Map<number, (values: MetricValues) => void>();
  let questions = 0;
  let address = "";
  let lost = 0;
  let started = false;
  let stopping = false;
  let failures = 0;
  let listening = 0;
  const timers = new Set<NodeJS.Timeout>();
  let allListen = () => {};
  let failed: (error: Error) => void = () => {};
  const start = new Promise<void>((resolve, reject) => {
    allListen = resolve;
    failed = reject;
  });

  function fork(): void {
    const bornMs = performance.now();
    const worker = cluster.fork(environment);
    workers.add(worker);
    worker.on("message", (message: FromWorker) => {
      if (message.kind === "metrics") answers.get(message.question)?.(message.values);
      else if (message.kind === "readiness") reports.set(worker, message.report);
      else if (message.kind === "failed") {
        if (started) log.error({ event: "worker_failed", worker: worker.id }, message.message);
        else failed(new StartupError(message.message));
      } else if (message.kind === "listening") {
        address = message.address;
        listening += 1;
        if (started)
          log.info({ event: "worker_started", worker: worker.id, pid: worker.process.pid }, "a worker listens");
        else if (listening === size) allListen();
      }
    });
    worker.on("error", (error) =>
      log.error({ event: "worker_error", worker: worker.id, err: error }, "a worker failed"),
    );
    worker.once("exit", (code, signal) => {
      workers.delete(worker);
      reports.delete(worker);
      if (stopping) return;
      lost += 1;
      const how = { event: "worker_ended", worker: worker.id, pid: worker.process.pid, code, signal };
      if (!started) {
        failed(
          new StartupError(`A worker ended before it listened (${signal ?? `exit code ${code}`}). See the log above.`),
        );
        return;
      }
      failures = performance.now() - bornMs >= SOUND_MS ? 0 : failures + 1;
      const backoffMs = Math.min(FIRST_BACKOFF_MS * 2 ** failures, MAX_BACKOFF_MS);
      log.error({ ...how, backoffMs }, "a worker ended and is replaced");
      const timer = setTimeout(() => {
        timers.delete(timer);
        fork();
      }, backoffMs);
      timers.add(timer);
    });
  }

  function drain(): void {
    stopping = true;
    for (const timer of timers) clearTimeout(timer);
    for (const worker of workers) say(worker, { kind: "drain" });
  }

  async function stop(): Promise<void> {
    drain();
    await Promise.all(
      [...workers].map(async (worker) => {
        const ended = new Promise((resolve) => worker.once("exit", resolve));
        const cut = setTimeout(() => worker.process.kill("SIGKILL"), DRAIN_MS + 5_000);
        say(worker, { kind: "stop" });
        await ended;
        clearTimeout(cut);
      }),
    );
  }

  for (let count = 0; count < size; count += 1) fork();
  try {
    await start;
  } catch (error) {
    await stop();
    throw error;
  }
  started = true;

  const ask = (worker: Worker) =>
    new Promise<MetricValues | undefined>((resolve) => {
      const question = questions++;
      const done = (values?: MetricValues) => {
        clearTimeout(timer);
        answers.delete(question);
        worker.off("exit", gone);
        resolve(values);
      };
      const gone = () => done();
      const timer = setTimeout(gone, METRICS_MS);
      answers.set(question, done);
      worker.once("exit", gone);
      say(worker, { kind: "metrics", question });
    });

  return {
    address,
    get serving() {
      return [...reports.values()].filter(({ ready }) => ready).length;
    },
    get readiness() {
      if (stopping) return notTaken(STOPPING);
      return reports.size === 0 ? notTaken(NO_WORKER) : mergedReport([...reports.values()]);
    },
    get lost() {
      return lost;
    },
    async metrics() {
      const all = await Promise.all([...workers].map(ask));
      return all.filter((values) => values !== undefined);
    },
    drain,
    stop,
  };
}

function notTaken(fault: string): ReadinessReport {
  return { ready: false, conditions: [{ name: "calls", fault }] };
}

/** To one that just ended, nothing needs to be said. */
function say(worker: Worker, message: ToWorker): void {
  if (worker.isConnected()) worker.send(message, () => {});
}

/** The address with a port: a worker that is replaced when no other is left must find the same one again. */
async function concrete({ host, port }: Address): Promise<string> {
  if (port !== 0) return formatAddress(host, port);
  const probe = createServer().listen({ host, port });
  try {
    await namingAddress({ setting: "LATCHKEY_LISTEN", host, port }, () => once(probe, "listening"));
    return formatAddress(host, (probe.address() as AddressInfo).port);
  } finally {
    probe.close();
  }
}
