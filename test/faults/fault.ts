import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import type { Member, ReplicaSet } from "../support/replica-set.ts";
import type { Weather } from "../support/tcp-proxy.ts";
import type { Random } from "./random.ts";

export interface FaultScene {
  set: ReplicaSet;
  /** The names by which the set knows the replicas. */
  replicas: readonly string[];
  random: Random;
}

export interface Fault {
  name: string;
  /** A majority of the set lives, and every replica reaches it: no Verify of a good key may fail. */
  sparesVerify: boolean;
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

function the(role: "primary" | "secondary"): string {
  return role === "primary" ? "the primary" : "a secondary";
}

export const none: Fault = { name: "no fault", sparesVerify: true, strike: () => sleep(LASTS_MS / 2) };

/** The first four are in every run, however short. */
export const FAULTS: readonly Fault[] = [
  killed("primary"),
  frozen("primary"),
  isolated("a black hole", { blackHole: "both" }),
  fromMembers("in a black hole to", { blackHole: "both" }, { which: "one replica", from: "all members" }, false),
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
];

export function named(name: string): Fault {
  const found = FAULTS.find((fault) => fault.name === name);
  if (found === undefined) throw new Error(`There is no fault "${name}".`);
  return found;
}
