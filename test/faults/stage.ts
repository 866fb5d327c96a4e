import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { MongoClient } from "mongodb";
import { type ServiceProcess, serve } from "../support/process.ts";
import type { ReplicaSet } from "../support/replica-set.ts";
import { JWT_SECRET, PEPPER } from "../support/service.ts";
import type { Bound } from "./promises.ts";

export interface Replica extends Bound {
  name: string;
  url: string;
  process: ServiceProcess;
}

export interface Stage {
  set: ReplicaSet;
  /** The name of the database of the replicas. */
  database: string;
  replicas: Replica[];
  /** Keys by id as they are stored, read past the proxies. */
  stored(users: readonly string[]): Promise<{ id: string; userId: string; state: string }[]>;
  stop(): Promise<void>;
}

const MAX_STALENESS_MS = 1_000;
/** Records in memory: few, so that some of the good keys are never there. */
const CACHE_KEYS = 64;

/**
 * Two replicas in processes of their own, on a replica set of three, in a database of their own. The first may answer from
 * memory for 30 s while it reaches no database, and must; the second may not at all, so that it never accepts a key more than
 * a second after its end.
 */
const GRACES_MS = [30_000, 0];

export interface StageOptions {
  set: ReplicaSet;
  /** Where the build lies. Default: here. */
  root?: string;
  /** LATCHKEY_OUTAGE_GRACE of each replica. */
  gracesMs?: readonly number[];
}

export async function openStage({ set, root = ".", gracesMs = GRACES_MS }: StageOptions): Promise<Stage> {
  const database = `faults-${randomUUID()}`;
  const replicas = await Promise.all(
    gracesMs.map(async (outageGraceMs, index): Promise<Replica> => {
      const env = {
        MONGODB_URI: set.uri,
        MONGODB_DATABASE: database,
        LATCHKEY_JWT_SECRET: JWT_SECRET,
        LATCHKEY_PEPPERS: `p1:${PEPPER}`,
        LATCHKEY_MAX_STALENESS: `${MAX_STALENESS_MS}ms`,
        LATCHKEY_OUTAGE_GRACE: `${outageGraceMs}ms`,
        LATCHKEY_CACHE_KEYS: String(CACHE_KEYS),
      };
      const name = `replica ${index} of ${database}`;
      const process = await serve(env, { root, onStarted: (pid) => set.nameProcess(name, pid) });
      return { name, url: process.url, process, maxStalenessMs: MAX_STALENESS_MS, outageGraceMs };
    }),
  );
  const direct = await Promise.all(set.members.map(({ directUri }) => MongoClient.connect(directUri)));
  return {
    set,
    database,
    replicas,
    async stored(users) {
      const primary = await set.primary();
      const client = direct[set.members.indexOf(primary)]!;
      const found = await client
        .db(database)
        .collection<{ _id: string; userId: string; state: string }>("api_keys")
        .find({ userId: { $in: [...users] } }, { readConcern: { level: "majority" } })
        .project<{ _id: string; userId: string; state: string }>({ userId: 1, state: 1 })
        .toArray();
      return found.map(({ _id, userId, state }) => ({ id: _id, userId, state }));
    },
    async stop() {
      await Promise.all(
        replicas.map(async ({ process: { child } }) => {
          if (child.exitCode !== null || child.signalCode !== null) return;
          const gone = once(child, "exit");
          child.kill("SIGTERM");
          await gone;
        }),
      );
      await Promise.all(direct.map((client) => client.close()));
    },
  };
}
