import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/health/v1/health_pb";

export interface HealthService {
  routes(router: ConnectRouter): void;
  /** Says whether calls are served; every watcher is told of a change. */
  set(serving: boolean): void;
  /** Not serving, for good: watchers are told, and their streams end. */
  drain(): void;
  readonly serving: boolean;
  /** Open Watch streams. */
  readonly watchers: number;
}

/** As many as the listener takes connections: clients with health checking open one watch on each. */
const MAX_WATCHERS = 10_000;

/** `grpc.health.v1.Health` for `services` and, under the empty name, for the whole process. Starts as not serving. */
export function createHealth(services: readonly string[]): HealthService {
  const known = new Set(["", ...services]);
  const watchers = new Set<() => void>();
  let serving = false;
  let draining = false;

  const status = (service: string): Status => {
    if (!known.has(service)) return Status.SERVICE_UNKNOWN;
    return serving ? Status.SERVING : Status.NOT_SERVING;
  };
  const wakeAll = () => {
    for (const wake of watchers) wake();
  };

  async function* watch(service: string, signal: AbortSignal): AsyncGenerator<{ status: Status }> {
    if (watchers.size >= MAX_WATCHERS)
      throw new ConnectError("Too many health watches are open.", Code.ResourceExhausted);
    let wake = () => {};
    const onChange = () => wake();
    watchers.add(onChange);
    signal.addEventListener("abort", onChange);
    try {
      let told: Status | undefined;
      while (!signal.aborted) {
        const changed = new Promise<void>((resolve) => {
          wake = resolve;
        });
        const current = status(service);
        if (current !== told) {
          told = current;
          yield { status: current };
          // It may have changed while that was written, and with a drain for the last time: look again before waiting.
          continue;
        }
        if (draining) return;
        await changed;
      }
    } finally {
      watchers.delete(onChange);
      signal.removeEventListener("abort", onChange);
    }
  }

  return {
    routes(router) {
      router.service(Health, {
        check({ service }) {
          if (!known.has(service)) throw new ConnectError("This service is not known here.", Code.NotFound);
          return { status: status(service) };
        },
        watch: ({ service }, { signal }) => watch(service, signal),
        list: () => ({
          statuses: Object.fromEntries([...known].map((service) => [service, { status: status(service) }])),
        }),
      });
    },
    set(value) {
      if (draining) return;
      serving = value;
      wakeAll();
    },
    drain() {
      draining = true;
      serving = false;
      wakeAll();
    },
    get serving() {
      return serving;
    },
    get watchers() {
      return watchers.size;
    },
  };
}
