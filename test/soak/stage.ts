import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { type ServiceProcess, serve } from "../support/process.ts";
import { type ReplicaSet, startReplicaSet } from "../support/replica-set.ts";
import { JWT_SECRET, PEPPER } from "../support/service.ts";
import { INSPECTED } from "./census.ts";

export interface SoakStage {
  service: ServiceProcess;
  /** kill -9 of the database, and a start of it; resolves when the service is ready again. */
  restartDatabase(): Promise<void>;
  stop(): Promise<void>;
}

/** A service in a process of its own, on a database of its own. */
export async function openSoakStage(): Promise<SoakStage> {
  const set: ReplicaSet = await startReplicaSet({ size: 1 });
  const env = {
    MONGODB_URI: set.uri,
    LATCHKEY_JWT_SECRET: JWT_SECRET,
    LATCHKEY_PEPPERS: `p1:${PEPPER}`,
    // Soon full: what grows after that grows for ever.
    LATCHKEY_CACHE_KEYS: "64",
    LATCHKEY_LOG_LEVEL: "info",
  };
  const service = await serve(env, { nodeOptions: INSPECTED });
  const ready = async () => (await fetch(`${service.opsUrl}/readyz`, { headers: { connection: "close" } })).status;
  return {
    service,
    async restartDatabase() {
      const [member] = set.members;
      const gone = once(member!.process, "exit");
      member!.process.kill("SIGKILL");
      await gone;
      while ((await ready()) !== 503) await sleep(50);
      await set.revive(member!);
      while ((await ready()) !== 200) await sleep(50);
    },
    stop: () => set.stop(),
  };
}
