import { setTimeout as sleep } from "node:timers/promises";
import {
  ask,
  askAboutAll,
  callersOf,
  createUser,
  keepAsking,
  keepChanging,
  type Loop,
  record,
  refresh,
  type User,
} from "./clients.ts";
import type { Fault } from "./fault.ts";
import { changes, isIndeterminate, nowUs, type Operation } from "./operation.ts";
import { type Absence, brokenPromises, isOfAbsence } from "./promises.ts";
import { createRandom, type Random } from "./random.ts";
import type { Stage } from "./stage.ts";

/** Users whose keys stay good: those of the first few are in every memory, those of the others hardly ever. */
export interface Steady {
  hot: User[];
  cold: User[];
  /** The making of their keys. */
  history: Operation[];
}

export interface Pace {
  users: number;
  /** Each user's clients, of either kind. */
  changers: number;
  strongAskers: number;
  askers: number;
  /** Mean pauses between calls of one client. */
  changePauseMs: number;
  askPauseMs: number;
}

/** As much as leaves two cores, shared with others, time to breathe. */
export const PACE: Pace = { users: 4, changers: 2, strongAskers: 1, askers: 2, changePauseMs: 250, askPauseMs: 25 };

export interface Round {
  fault: string;
  history: Operation[];
  /** What was found broken, other than by the checker of all orders. */
  broken: string[];
  figures: Figures;
}

export interface Figures {
  operations: number;
  indeterminate: number;
  /** Verifies of good keys, in memory and not, by the replica with a grace, and those that were not answered by VALID. */
  goodAsked: number;
  goodFailed: number;
  /** The longest that one of them took. */
  goodSlowestMs: number;
  /** The longest time in which no change was acknowledged. */
  writePauseMs: number;
  /** From the end of the fault until both replicas had answered a strong Verify and a Refresh again. */
  recoveryMs: number;
}

const HOT = 6;
/** More than a replica of the stage keeps in memory. */
const COLD = 80;
const STEADY_PAUSE_MS = 15;
const LEAD_MS = 1_000;
const PROBE = 9_000;

/** For rounds in which nobody asks about keys that stay good. */
export const NOBODY: Steady = { hot: [], cold: [], history: [] };

/** By the second replica: what the first has not made, it has not in memory. */
export async function makeSteady(stage: Stage, name: string): Promise<Steady> {
  const callers = callersOf(stage.replicas.map(({ url }) => url));
  const history: Operation[] = [];
  const users: User[] = [];
  let begun = 0;
  const make = async (): Promise<void> => {
    while (begun < HOT + COLD) {
      begun += 1;
      const user = await createUser(`${name}-steady-${begun}`);
      const call = { client: 0, replica: 1, call: "refresh" as const };
      while (user.known.length === 0) history.push(await record(callers, user, call, {}, refresh(user, false)));
      users.push(user);
    }
  };
  await Promise.all([make(), make()]);
  return { hot: users.slice(0, HOT), cold: users.slice(HOT), history };
}

/** One fault under load, from fair weather to fair weather, and what came of it. */
export async function playRound(
  stage: Stage,
  fault: Fault,
  options: { name: string; seed: number; steady: Steady; pace?: Pace },
): Promise<Round> {
  const { name, seed, steady, pace = PACE } = options;
  const { set, replicas, database } = stage;
  const callers = callersOf(replicas.map(({ url }) => url));
  const users = await Promise.all(Array.from({ length: pace.users }, (_, index) => createUser(`${name}-${index}`)));
  const history: Operation[] = [];
  const good: Operation[] = [];
  const push = (operation: Operation) => void history.push(operation);
  const pushGood = (operation: Operation) => void good.push(operation);
  let over = false;
  const done = () => over;
  const loop = (client: number, into: Loop["push"]): Loop => ({
    ...{ callers, client, done, push: into },
    random: createRandom(seed, name, client),
  });
  const { changers, strongAskers, askers, changePauseMs, askPauseMs } = pace;
  const clients = users.flatMap((user, index) =>
    Array.from({ length: changers + strongAskers + askers }, (_, n) => {
      const mine = loop(index * 100 + n, push);
      return n < changers
        ? keepChanging(user, mine, changePauseMs)
        : keepAsking(user, mine, askPauseMs, n < changers + strongAskers);
    }),
  );
  clients.push(keepTrusting(steady.hot, loop(-1, pushGood)), keepTrusting(steady.cold, loop(-2, pushGood)));

  await sleep(LEAD_MS);
  const struckUs = nowUs();
  let endedUs: number;
  let absence: Absence | undefined;
  try {
    const names = replicas.map((replica) => replica.name);
    const onAbsence = (when: Absence) => {
      absence = when;
    };
    await fault.strike({ set, replicas: names, database, onAbsence, random: createRandom(seed, name) });
  } finally {
    endedUs = nowUs();
    await set.heal();
  }
  const prober = await createUser(`${name}-prober`);
  await Promise.all(replicas.map((_, replica) => recover(prober, replica, { callers, push })));
  const recoveredUs = nowUs();
  over = true;
  await Promise.all(clients);
  await Promise.all(users.map((user, index) => askAboutAll(user, { callers, client: PROBE + index, push })));

  const all = [...steady.history, ...good, ...history].filter((operation) => !isOfAbsence(operation, absence));
  const failed = good.filter(({ outcome }) => outcome !== "VALID");
  const broken = [...brokenPromises(all, replicas, fault), ...(await lostOrDoubled(stage, [...users, prober]))];
  if (fault.sparesVerify)
    for (const operation of failed) broken.push(`a good key was not accepted: ${JSON.stringify(operation)}`);
  return {
    fault: fault.name,
    history: all,
    broken,
    figures: {
      operations: history.length + good.length,
      indeterminate: history.filter(isIndeterminate).length,
      goodAsked: good.length,
      goodFailed: failed.length,
      goodSlowestMs: Math.max(0, ...good.map((operation) => (operation.endedUs - operation.beganUs) / 1_000)),
      writePauseMs: longestPauseMs(history, struckUs, recoveredUs),
      recoveryMs: (recoveredUs - endedUs) / 1_000,
    },
  };
}

/** Asks the replica with a grace about keys that are good, in turn. */
async function keepTrusting(users: readonly User[], { callers, client, done, push }: Loop): Promise<void> {
  for (let next = 0; !done() && users.length > 0; next = (next + 1) % users.length) {
    const user = users[next]!;
    const [known] = user.known;
    push(await ask(callers, user, { client, replica: 0 }, known!, false));
    await sleep(STEADY_PAUSE_MS);
  }
}

/** Until a replica makes a change and proves it, as it does in fair weather. */
async function recover(
  prober: User,
  replica: number,
  { callers, push }: Pick<Loop, "callers" | "push">,
): Promise<void> {
  const client = PROBE - 1 - replica;
  const giveUpMs = performance.now() + MAX_RECOVERY_MS;
  for (;;) {
    const made = await record(
      callers,
      prober,
      { client, replica, call: "refresh" },
      { grace: false },
      refresh(prober, false),
    );
    push(made);
    const known = prober.known.find(({ id }) => id === made.made);
    if (known !== undefined) {
      const proof = await ask(callers, prober, { client, replica }, known, true);
      push(proof);
      // Revoked: by the other replica's turn.
      if (proof.outcome === "VALID" || proof.outcome === "REVOKED") return;
    }
    if (performance.now() > giveUpMs) throw new Error(`replica ${replica} did not recover: ${JSON.stringify(made)}`);
    await sleep(50);
  }
}

/** What lasts longer is no recovery. */
const MAX_RECOVERY_MS = 300_000;

/** What the database itself holds: every key that was given out, and one active key a user. */
async function lostOrDoubled(stage: Stage, users: readonly User[]): Promise<string[]> {
  const stored = await stage.stored(users.map(({ name }) => name));
  const ids = new Set(stored.map(({ id }) => id));
  return users.flatMap(({ name, known }) => {
    const active = stored.filter(({ userId, state }) => userId === name && state === "active");
    return [
      ...known.filter(({ id }) => !ids.has(id)).map(({ id }) => `${id} of ${name} was given out and is not stored`),
      ...(active.length > 1 ? [`${name} has ${active.length} active keys`] : []),
    ];
  });
}

function longestPauseMs(history: readonly Operation[], fromUs: number, toUs: number): number {
  const acknowledged = history
    .filter((operation) => changes(operation) && operation.outcome === "OK")
    .map(({ endedUs }) => endedUs)
    .filter((atUs) => atUs > fromUs && atUs < toUs)
    .sort((a, b) => a - b);
  const moments = [fromUs, ...acknowledged, toUs];
  return Math.max(...moments.slice(1).map((atUs, index) => atUs - moments[index]!)) / 1_000;
}

/** The faults of a run: the same for the same seed; each comes once before any comes again, the first few first. */
export function* faultsInOrder(faults: readonly Fault[], random: Random, first: number): Generator<Fault> {
  yield* random.shuffled(faults.slice(0, first));
  yield* random.shuffled(faults.slice(first));
  for (;;) yield* random.shuffled(faults);
}
