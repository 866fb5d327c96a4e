/** The process as a whole, as health checks name it. */
export const WHOLE = "";

/** The reason why no calls are taken. */
export const STARTING = "The service is starting.";
export const STOPPING = "The service is stopping. Send new calls to another.";

/** Something that services need in order to answer. */
interface Condition {
  /** Undefined: it holds. Else what is the matter and what to do about it, in a sentence or two for operators. */
  set(fault: string | undefined): void;
}

/** A condition as it is shown: `fault` is absent while it holds. Plain data that can be sent between processes. */
interface ConditionState {
  name: string;
  fault?: string;
}

export interface ReadinessReport {
  /** Whether the process as a whole should get calls. */
  ready: boolean;
  conditions: ConditionState[];
}

/** Which services can answer, from named conditions that whoever knows of one sets. */
export interface Readiness {
  /** Those that are asked about, the whole among them. */
  readonly services: readonly string[];
  /** A condition that each of `neededBy` needs. `fault`: as in `set`, to begin with. */
  condition(name: string, neededBy: readonly string[], fault?: string): Condition;
  isReady(service: string): boolean;
  report(): ReadinessReport;
  /** Called when a condition begins or ceases to hold. Returns what ends that. */
  onChange(listener: () => void): () => void;
}

export function createReadiness(services: readonly string[]): Readiness {
  const conditions: { name: string; neededBy: readonly string[]; fault: string | undefined }[] = [];
  const listeners = new Set<() => void>();
  const changed = () => {
    for (const listener of listeners) listener();
  };
  const isReady = (service: string) =>
    conditions.every(({ fault, neededBy }) => fault === undefined || !neededBy.includes(service));

  return {
    services: [WHOLE, ...services],
    condition(name, neededBy, fault) {
      const condition = { name, neededBy, fault };
      conditions.push(condition);
      changed();
      return {
        set(now) {
          const before = condition.fault;
          condition.fault = now;
          if ((before === undefined) !== (now === undefined)) changed();
        },
      };
    },
    isReady,
    report: () => ({
      ready: isReady(WHOLE),
      conditions: conditions.map(({ name, fault }) => ({ name, ...(fault !== undefined && { fault }) })),
    }),
    onChange(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
  };
}

/** Of several processes that share a port: ready while one is, and a condition fails where it fails in all of them. */
export function mergedReport(reports: readonly ReadinessReport[]): ReadinessReport {
  const names = new Set(reports.flatMap(({ conditions }) => conditions.map(({ name }) => name)));
  const conditions = [...names].map((name) => {
    const states = reports.flatMap((report) => report.conditions.filter((state) => state.name === name));
    return states.find(({ fault }) => fault === undefined) ?? states[0]!;
  });
  return { ready: reports.some(({ ready }) => ready), conditions };
}

/** As `/readyz` shows it: in words, in the manner of Kubernetes' own `/readyz?verbose`. */
export function shown({ ready, conditions }: ReadinessReport): { ready: boolean; text: string } {
  const lines = conditions.map(({ name, fault }) =>
    fault === undefined ? `[+] ${name}: ok` : `[-] ${name}: ${fault}`,
  );
  return { ready, text: `${[ready ? "ready" : "not ready", ...lines].join("\n")}\n` };
}
