import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import {
  type ChangeStream,
  type Collection,
  type Db,
  type Document,
  MongoClient,
  type Timestamp,
  type UpdateFilter,
} from "mongodb";
import { UNIQUE_INDEXES } from "../../src/mongo/schema.ts";
import type { Member, ReplicaSet } from "../support/replica-set.ts";
import type { Weather } from "../support/tcp-proxy.ts";
import { nowUs } from "./operation.ts";
import type { Absence } from "./promises.ts";
import type { Random } from "./random.ts";

export interface FaultScene {
  set: ReplicaSet;
  /** The names by which the set knows the replicas. */
  replicas: readonly string[];
  /** The name of the database of the replicas. */
  database: string;
  /** Is told of a time in which there were no records. */
  onAbsence: (absence: Absence) => void;
  random: Random;
}

export interface Fault {
  name: string;
  /** A majority of the set lives, and every replica reaches it: no Verify of a good key may fail. */
  sparesVerify: boolean;
  /** What the replicas rest on in the database is taken away: meanwhile changes are refused as DB_INCOMPLETE. */
  takesBase?: boolean;
  /** Does it, and lets it last until the set and the replicas have had to act; the network is healed afterwards. */
  strike(scene: FaultScene): Promise<void>;
}

/** Longer than a primary without a majority takes to notice, and than a replica takes to miss a proof. */
const LASTS_MS = 3_500;

const othersThan = (set: ReplicaSet, member: Member) => set.members.filter((other) => other !== member);

async function memberFor(set: ReplicaSet, role: "primary" | "secondary", random: Random): Promise<Member> {
  const primary = await set.primary();
  return role === "primary" ? primary : random.pick(othersThan(set, primary));
}

function killed(role: "primary" | "secondary"): Fault {
  return {
    name: `kill -9 of ${the(role)}`,
    sparesVerify: true,
    async strike({ set, random }) {
      const member = await memberFor(set, role, random);
      const gone = once(member.process, "exit");
      member.process.kill("SIGKILL");
      await gone;
      await set.primary(member);
      await sleep(LASTS_MS / 2);
      await set.revive(member);
    },
  };
}

function frozen(role: "primary" | "secondary"): Fault {
  return {
    name: `SIGSTOP of ${the(role)}`,
    sparesVerify: true,
    async strike({ set, random }) {
      const member = await memberFor(set, role, random);
      member.process.kill("SIGSTOP");
      try {
        await set.primary(member);
        await sleep(LASTS_MS / 2);
      } finally {
        member.process.kill("SIGCONT");
      }
    },
  };
}

const steppedDown: Fault = {
  name: "the primary steps down",
  sparesVerify: true,
  async strike({ set }) {
    const old = await set.primary();
    await set.stepDown(old);
    await set.primary(old);
    await sleep(LASTS_MS / 2);
  },
};

/** A primary without its majority, which clients reach as before: what it acknowledges then would be lost. */
function isolated(how: string, weather: Weather): Fault {
  return {
    name: `the primary cut off from the other members (${how})`,
    sparesVerify: false,
    async strike({ set }) {
      const old = await set.primary();
      set.between(old, othersThan(set, old), weather);
      await set.primary(old);
      await sleep(LASTS_MS / 2);
    },
  };
}

/** A primary that hears nobody, though its own words arrive. */
const deaf: Fault = {
  name: "the primary hears no other member, and is heard",
  sparesVerify: false,
  async strike({ set }) {
    const old = await set.primary();
    for (const other of othersThan(set, old)) {
      other.proxy.set({ blackHole: "toClient" }, old.name);
      old.proxy.set({ blackHole: "toServer" }, other.name);
    }
    await set.primary(old);
    await sleep(LASTS_MS / 2);
  },
};

const slowMembers: Fault = {
  name: "the network between members slow (150 ms each way)",
  sparesVerify: true,
  async strike({ set }) {
    for (const member of set.members)
      set.between(member, othersThan(set, member), { delayMs: { toServer: 75, toClient: 75 } });
    await sleep(LASTS_MS);
  },
};

function fromMembers(
  what: string,
  weather: Weather,
  { which, from }: { which: "one replica" | "all replicas"; from: "the primary" | "all members" },
  sparesVerify: boolean,
): Fault {
  return {
    name: `${which} ${what} ${from}`,
    sparesVerify,
    async strike({ set, replicas, random }) {
      const primary = await set.primary();
      const concerned = which === "one replica" ? [random.pick(replicas)] : replicas;
      for (const name of concerned)
        for (const member of from === "the primary" ? [primary] : set.members) set.toProcess(name, member, weather);
      await sleep(LASTS_MS);
    },
  };
}

/** One replica on the side of the old primary, and all else on the other. */
const split: Fault = {
  name: "the primary and one replica on the side of the minority",
  sparesVerify: false,
  async strike({ set, replicas, random }) {
    const old = await set.primary();
    const alone = random.pick(replicas);
    set.between(old, othersThan(set, old), { blackHole: "both" });
    for (const member of othersThan(set, old)) set.toProcess(alone, member, { cut: true });
    for (const name of replicas) if (name !== alone) set.toProcess(name, old, { cut: true });
    await set.primary(old);
    await sleep(LASTS_MS / 2);
  },
};

const KEYS = "api_keys";
/** Long enough for every replica to notice, and too short for one to make an empty collection in the place of the records. */
const AWAY_MS = 1_500;
const ACTIVE = "one_active_key_per_user";

function ofBase(name: string, sparesVerify: boolean, act: (db: Db, scene: FaultScene) => Promise<void>): Fault {
  return {
    ...{ name, sparesVerify, takesBase: true },
    async strike(scene) {
      const { directUri } = await scene.set.primary();
      const client = await MongoClient.connect(directUri);
      try {
        await act(client.db(scene.database), scene);
      } finally {
        await client.close();
      }
    },
  };
}

async function takeAndGiveBack(
  { onAbsence }: FaultScene,
  take: () => Promise<unknown>,
  giveBack: () => Promise<unknown>,
): Promise<void> {
  const fromUs = nowUs();
  await take();
  await sleep(AWAY_MS);
  await giveBack();
  onAbsence({ fromUs, toWallMs: Date.now() });
}

/** Again and again while the fault lasts: what was taken away is made again by the replicas. */
async function keepTaking({ random }: FaultScene, take: () => Promise<unknown>): Promise<void> {
  const endMs = performance.now() + LASTS_MS;
  while (performance.now() < endMs) {
    await take();
    await sleep(random.between(20, 600));
  }
}

const renamed = ofBase("the records renamed away and back", false, (db, scene) =>
  takeAndGiveBack(
    scene,
    () => db.renameCollection(KEYS, "elsewhere"),
    () => db.renameCollection("elsewhere", KEYS),
  ),
);

const RESTORED = "the records dropped, and restored without their indexes and validation";
const restored = ofBase(RESTORED, false, async (db, scene) => {
  const { client, databaseName } = db;
  const dump = client.db(`${databaseName}-dump`).collection<Stored>(KEYS);
  const { operationTime } = await client.db("admin").command({ ping: 1 });
  const changes = db.collection<Stored>(KEYS).watch([], { startAtOperationTime: operationTime as Timestamp });
  await takeAndGiveBack(
    scene,
    () =>
      client
        .db("admin")
        .command({ renameCollection: `${databaseName}.${KEYS}`, to: dump.namespace })
        .catch(async (error) => {
          await changes.close();
          throw error;
        }),
    async () => {
      await addChanges(dump, changes);
      const records = await dump.find().toArray();
      // In one moment: while they come back one by one, nobody could say which of them an answer may lack.
      await client.withSession((session) =>
        session.withTransaction(() => db.collection<Stored>(KEYS).insertMany(records, { session })),
      );
    },
  );
  await dump.drop();
});

/**
 * As a restore with the oplog does it: a rename into another database copies, and drops afterwards (6.0.5); what was acknowledged
 * between the two is in neither collection.
 */
async function addChanges(dump: Collection<Stored>, changes: ChangeStream<Stored>): Promise<void> {
  for await (const change of changes) {
    if (change.operationType === "drop" || change.operationType === "invalidate") break;
    if (change.operationType === "insert" || change.operationType === "replace")
      await dump.replaceOne({ _id: change.documentKey._id }, change.fullDocument, { upsert: true });
    if (change.operationType !== "update") continue;
    const { updatedFields = {}, removedFields = [] } = change.updateDescription;
    const update = {
      ...(Object.keys(updatedFields).length > 0 && { $set: updatedFields }),
      ...(removedFields.length > 0 && { $unset: Object.fromEntries(removedFields.map((field) => [field, ""])) }),
    };
    await dump.updateOne({ _id: change.documentKey._id }, update as UpdateFilter<Stored>);
  }
  await changes.close();
}

interface Stored extends Document {
  _id: string;
}

const unindexed = ofBase("all indexes dropped, again and again", true, (db, scene) =>
  keepTaking(scene, () => db.command({ dropIndexes: KEYS, index: "*" })),
);

/** It is left alone by the replicas, and so is to be taken away at the end. */
const weakened = ofBase("a weaker index in the place of a unique one", true, async (db) => {
  const { key, partialFilterExpression } = UNIQUE_INDEXES[ACTIVE];
  const weaker = { name: ACTIVE, key, partialFilterExpression };
  // A replica may be faster, and make the right one again.
  for (let made = false; !made; ) {
    await db.command({ dropIndexes: KEYS, index: [ACTIVE] }).catch(() => {});
    made = await db.command({ createIndexes: KEYS, indexes: [weaker] }).then(
      () => true,
      () => false,
    );
  }
  await sleep(LASTS_MS);
  await db.collection(KEYS).dropIndex(ACTIVE);
});

const unvalidated = ofBase("the validation taken away, again and again", true, (db, scene) =>
  keepTaking(scene, () => db.command({ collMod: KEYS, validator: {} })),
);

function the(role: "primary" | "secondary"): string {
  return role === "primary" ? "the primary" : "a secondary";
}

export const none: Fault = { name: "no fault", sparesVerify: true, strike: () => sleep(LASTS_MS / 2) };

/** How many of the first are in every run, however short. */
export const ALWAYS = 5;

export const FAULTS: readonly Fault[] = [
  killed("primary"),
  frozen("primary"),
  isolated("a black hole", { blackHole: "both" }),
  fromMembers("in a black hole to", { blackHole: "both" }, { which: "one replica", from: "all members" }, false),
  restored,
  steppedDown,
  split,
  isolated("connections reset", { cut: true }),
  deaf,
  fromMembers("cut off from", { cut: true }, { which: "one replica", from: "the primary" }, false),
  fromMembers("cut off from", { cut: true }, { which: "all replicas", from: "all members" }, false),
  fromMembers("in a black hole to", { blackHole: "toClient" }, { which: "one replica", from: "the primary" }, false),
  fromMembers(
    "slow (100 ms each way) to",
    { delayMs: { toServer: 100, toClient: 100 } },
    { which: "all replicas", from: "all members" },
    true,
  ),
  killed("secondary"),
  frozen("secondary"),
  slowMembers,
  renamed,
  unindexed,
  weakened,
  unvalidated,
];

export function named(name: string): Fault {
  const found = FAULTS.find((fault) => fault.name === name);
  if (found === undefined) throw new Error(`There is no fault "${name}".`);
  return found;
}
