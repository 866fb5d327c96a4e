import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { MongoClient } from "mongodb";
import { MAX_HELD_CHANGES } from "../../src/keys/changes.ts";
import { KEYS } from "../../src/mongo/schema.ts";
import { type ServiceProcess, serve } from "../support/process.ts";
import { type ReplicaSet, startReplicaSet } from "../support/replica-set.ts";
import { JWT_SECRET, PEPPER } from "../support/service.ts";
import { INSPECTED, metric } from "./census.ts";

export interface SoakStage {
  service: ServiceProcess;
  /** Fills what is held of recent changes: until then each change adds one. Some key must have been made. */
  fillChanges(): Promise<void>;
  /** kill -9 of the database, and a start of it. Resolves when the service is ready again, with the time that took. */
  restartDatabase(): Promise<{ awayMs: number }>;
  stop(): Promise<void>;
}

const DATABASE = "latchkey";

/** A service in a process of its own, on a database of its own. */
export async function openSoakStage(): Promise<SoakStage> {
  const set: ReplicaSet = await startReplicaSet({ size: 1 });
  const env = {
    // What a burst left in the driver's pools goes soon.
    MONGODB_URI: `${set.uri}&maxIdleTimeMS=1000`,
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
    async fillChanges() {
      const client = new MongoClient(set.uri);
      try {
        const keys = client.db(DATABASE).collection(KEYS);
        const _id = (await keys.findOne({ state: "active" }))!._id;
        const change = { updateOne: { filter: { _id }, update: { $inc: { rev: 1 } } } };
        await keys.bulkWrite(new Array(MAX_HELD_CHANGES).fill(change));
      } finally {
        await client.close();
      }
      // A heartbeat sent after them has come back on the stream, and they before it.
      const filledMs = performance.now();
      const age = async () => (await metric(service, "latchkey_view_age_seconds")) * 1_000;
      while ((await age()) > performance.now() - filledMs) await sleep(50);
    },
    async restartDatabase() {
      const killedMs = performance.now();
      const [member] = set.members;
      const gone = once(member!.process, "exit");
      member!.process.kill("SIGKILL");
      await gone;
      while ((await ready()) !== 503) await sleep(50);
      await set.revive(member!);
      while ((await ready()) !== 200) await sleep(50);
      return { awayMs: performance.now() - killedMs };
    },
    stop: () => set.stop(),
  };
}
