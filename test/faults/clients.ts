import { setTimeout as sleep } from "node:timers/promises";
import type { Client } from "@connectrpc/connect";
import {
  type ApiKeyService,
  Consistency,
  createLatchkeyClient,
  describeError,
  Outcome,
} from "../../src/client/index.ts";
import { userToken } from "../support/service.ts";
import { type Answer, nowUs, type Operation } from "./operation.ts";
import type { Random } from "./random.ts";

export type Caller = Client<typeof ApiKeyService>;

export interface KnownKey {
  id: string;
  key: string;
}

/** A user, and what its clients have been given so far, the newest last. */
export interface User {
  name: string;
  headers: Record<string, string>;
  known: KnownKey[];
}

/** Calls as a history has them. Each resolves when the call is over, whatever came of it. */
export type Call = (caller: Caller, options: { headers: Record<string, string> }) => Promise<Answer>;

/** Longer than any operation of the service may take. */
const CHANGE_MS = 8_000;
const READ_MS = 5_000;
const DAY_S = 86_400;
/** What a key is made with, and what an Update may leave of it. Every Verify asks for `write`. */
const WIDE = ["read", "write"];
const NARROW = ["read"];
const HOUR = { seconds: 3_600n, nanos: 0 };

/** HTTP/1.1 and the Connect protocol here, HTTP/2 and gRPC there: the promises don't depend on it. */
export function callersOf(urls: readonly string[]): Caller[] {
  return urls.map((baseUrl, index) =>
    createLatchkeyClient({ baseUrl, protocol: index % 2 === 0 ? "grpc" : "connect", timeoutMs: READ_MS }),
  );
}

export async function createUser(name: string): Promise<User> {
  return { name, headers: { authorization: `Bearer ${await userToken(name, { ttlS: DAY_S })}` }, known: [] };
}

export async function record(
  callers: readonly Caller[],
  user: User,
  { client, replica, call }: Pick<Operation, "client" | "replica" | "call">,
  asked: Partial<Operation>,
  ask: Call,
): Promise<Operation> {
  const beganWallMs = Date.now();
  const beganUs = nowUs();
  const answer = await ask(callers[replica]!, { headers: user.headers }).catch((error: unknown): Answer => {
    const { reason, code } = describeError(error);
    const { base } = error as { base?: string };
    // Without the name that it had, nothing was sent that could change the key.
    const isUnsent = call === "update" && base === undefined;
    return { outcome: isUnsent ? "UNSENT" : (reason ?? code), ...(base !== undefined && { base }) };
  });
  const times = { beganUs, endedUs: nowUs(), beganWallMs, endedWallMs: Date.now() };
  return { user: user.name, client, replica, call, ...asked, ...times, ...answer };
}

/** Remembers the key; its answer as a history has it. */
const given = (user: User, { apiKey, key }: { apiKey?: { id: string } | undefined; key: string }): Answer => {
  user.known.push({ id: apiKey!.id, key });
  return { outcome: "OK", made: apiKey!.id };
};

export const create =
  (user: User): Call =>
  async (caller, options) =>
    given(user, await caller.create({ scopes: WIDE }, { ...options, timeoutMs: CHANGE_MS }));

/** With a grace, the old key stays good until the next change: for longer than any run takes. */
export const refresh =
  (user: User, grace: boolean): Call =>
  async (caller, options) => {
    const request = { scopes: WIDE, ...(grace && { gracePeriod: HOUR }) };
    const answer = await caller.refresh(request, { ...options, timeoutMs: CHANGE_MS });
    return { ...given(user, answer), ...(answer.previous && { previous: answer.previous.id }) };
  };

export const revoke: Call = async (caller, options) => {
  const { apiKey, alsoRevoked } = await caller.revoke({}, { ...options, timeoutMs: CHANGE_MS });
  return {
    outcome: "OK",
    ...(apiKey && { ended: apiKey.id }),
    ...(alsoRevoked[0] && { retiring: alsoRevoked[0].id }),
  };
};

/** Of a key as it was read, `thinkMs` before: it is changed only if it is so still. */
export const update =
  ({ name, wide, thinkMs }: { name: string; wide: boolean; thinkMs: number }): Call =>
  async (caller, options) => {
    const { apiKey, etag } = await caller.get({}, options);
    const base = `${apiKey!.id} ${apiKey!.name}`;
    // Time for others to change it.
    await sleep(thinkMs);
    const change = { updateMask: { paths: ["name", "scopes"] }, name, scopes: wide ? WIDE : NARROW, etag };
    const answer = await caller.update(change, { ...options, timeoutMs: CHANGE_MS }).catch((error: unknown) => {
      throw Object.assign(error as Error, { base });
    });
    return { outcome: "OK", made: answer.apiKey!.id, base };
  };

export const stop =
  (call: "suspend" | "resume"): Call =>
  async (caller, options) => {
    const { apiKey, retiring } = await caller[call]({}, { ...options, timeoutMs: CHANGE_MS });
    return { outcome: "OK", ...(apiKey && { made: apiKey.id }), ...(retiring && { retiring: retiring.id }) };
  };

export const get: Call = async (caller, options) => ({
  outcome: "OK",
  made: (await caller.get({}, options)).apiKey!.id,
});

const verify =
  ({ key }: KnownKey, strong: boolean): Call =>
  async (caller) => {
    const consistency = strong ? Consistency.STRONG : Consistency.UNSPECIFIED;
    const { outcome, asOf } = await caller.verify({ key, consistency, requiredScopes: ["write"] });
    return { outcome: Outcome[outcome], asOfMs: Number(asOf!.seconds) * 1_000 + asOf!.nanos / 1_000_000 };
  };

/** Outcomes that tell how things are. */
const ANSWERS = [
  ...["OK", "KEY_EXISTS", "NO_KEY", "KEY_SUSPENDED", "ETAG_MISMATCH"],
  ...["VALID", "REVOKED", "NOT_FOUND", "SUSPENDED", "INSUFFICIENT_SCOPE"],
];

export interface Loop {
  callers: readonly Caller[];
  client: number;
  random: Random;
  done: () => boolean;
  push: (operation: Operation) => void;
}

/** Changes a user's keys, one call after the other. */
export async function keepChanging(
  user: User,
  { callers, client, random, done, push }: Loop,
  pauseMs: number,
): Promise<void> {
  while (!done()) {
    const what = random.next();
    const grace = random.next() < 0.3;
    const replica = random.below(callers.length);
    const at = { client, replica };
    const renamed = { name: `n${client}-${nowUs()}`, wide: random.next() < 0.5 };
    const thinkMs = random.between(0, pauseMs);
    const operation =
      what < 0.2
        ? await record(callers, user, { ...at, call: "create" }, {}, create(user))
        : what < 0.55
          ? await record(callers, user, { ...at, call: "refresh" }, { grace }, refresh(user, grace))
          : what < 0.67
            ? await record(callers, user, { ...at, call: "revoke" }, {}, revoke)
            : what < 0.74
              ? await record(callers, user, { ...at, call: "suspend" }, {}, stop("suspend"))
              : what < 0.85
                ? await record(callers, user, { ...at, call: "resume" }, {}, stop("resume"))
                : await record(callers, user, { ...at, call: "update" }, renamed, update({ ...renamed, thinkMs }));
    if (operation.outcome === "UNSENT") continue;
    push(operation);
    // Each change without an answer may come at any later time: a checker's work doubles with every one.
    const failed = ![...ANSWERS, "CONFLICT"].includes(operation.outcome);
    await sleep(random.between(0.5, 1.5) * (failed ? 8 * pauseMs : pauseMs));
  }
}

/** Asks about a user's keys, the newest most of all; strongly, or never so: a call that waits for the database holds others up. */
export async function keepAsking(user: User, loop: Loop, pauseMs: number, strong: boolean): Promise<void> {
  const { callers, client, random, done, push } = loop;
  while (!done()) {
    const replica = random.below(callers.length);
    const what = random.next();
    const back = what < 0.5 ? 0 : what < 0.8 ? 1 : random.below(user.known.length || 1);
    const known = user.known.at(-1 - back) ?? user.known.at(-1);
    if (strong && (known === undefined || random.next() < 0.3))
      push(await record(callers, user, { client, replica, call: "get" }, {}, get));
    else if (known !== undefined) push(await ask(callers, user, { client, replica }, known, strong));
    await sleep(random.between(0.5, 1.5) * pauseMs);
  }
}

/** One Verify as a history has it. */
export function ask(
  callers: readonly Caller[],
  user: User,
  by: Pick<Operation, "client" | "replica">,
  known: KnownKey,
  strong: boolean,
): Promise<Operation> {
  return record(callers, user, { ...by, call: "verify" }, { key: known.id, strong }, verify(known, strong));
}

/** Asks every replica about all that a user was ever given, in either way, once there is an answer. */
export async function askAboutAll(
  user: User,
  { callers, client, push }: Pick<Loop, "callers" | "client" | "push">,
): Promise<void> {
  const insist = async (call: () => Promise<Operation>) => {
    for (;;) {
      const operation = await call();
      push(operation);
      if (ANSWERS.includes(operation.outcome)) return;
      await sleep(100);
    }
  };
  for (const replica of callers.keys()) {
    const by = { client, replica };
    await insist(() => record(callers, user, { ...by, call: "get" }, {}, get));
    for (const strong of [false, true])
      await Promise.all(user.known.map((known) => insist(() => ask(callers, user, by, known, strong))));
  }
}
