import type { ConnectRouter } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/health/v1/health_pb";
import { KeyError } from "../../keys/errors.ts";
import type { Readiness } from "../../observe/readiness.ts";

export interface HealthService {
  routes(router: ConnectRouter): void;
  /** Watchers get the last state, and their streams end. */
  drain(): void;
  /** Open Watch streams. */
  readonly watchers: number;
}

/** As many as the listener takes connections: clients with health checking open one watch on each. */
const MAX_WATCHERS = 10_000;

/** `grpc.health.v1.Health` for each of the services that readiness knows, the whole process among them. */
export function createHealth(readiness: Readiness): HealthService {
  const known = new Set(readiness.services);
  const watchers = new Set<() => void>();
  let draining = false;

  const status = (service: string): Status => {
    if (!known.has(service)) return Status.SERVICE_UNKNOWN;
    return readiness.isReady(service) ? Status.SERVING : Status.NOT_SERVING;
  };
  const wakeAll = () => {
    for (const wake of watchers) wake();
  };
  readiness.onChange(wakeAll);

  async function* watch(service: string, signal: AbortSignal): AsyncGenerator<{ status: Status }> {
    if (watchers.size >= MAX_WATCHERS)
      throw new KeyError("OVERLOADED", "Too many health watches are open.", { retryAfterMs: 1_000 });
    let wake = () => {};
    const onChange = () => wake();
    watchers.add(onChange);
    signal.addEventListener("abort", onChange);
    try {
      let sent: Status | undefined;
      while (!signal.aborted) {
        const changed = new Promise<void>((resolve) => {
          wake = resolve;
        });
        const current = status(service);
        if (current !== sent) {
          sent = current;
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
          if (!known.has(service)) throw new KeyError("UNKNOWN_SERVICE", "This service is not known here.");
          return { status: status(service) };
        },
        watch: ({ service }, { signal }) => watch(service, signal),
        list: () => ({
          statuses: Object.fromEntries([...known].map((service) => [service, { status: status(service) }])),
        }),
      });
    },
    drain() {
      draining = true;
      wakeAll();
    },
    get watchers() {
      return watchers.size;
    },
  };
}
