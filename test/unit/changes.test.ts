import { getEventListeners } from "node:events";
import { expect, test } from "@jest/globals";
import { array, assert, asyncProperty, constantFrom, integer, oneof, record } from "fast-check";
import { type Changes, createChanges, type WatchMessage } from "../../src/keys/changes.ts";

const open = (changes: Changes, from?: bigint | "unknown") => {
  const controller = new AbortController();
  const stream = changes.watch(from, controller.signal);
  return {
    next: async (): Promise<WatchMessage | undefined> => (await stream.next()).value ?? undefined,
    leave: async () => {
      controller.abort();
      await stream.return();
    },
  };
};
const change = (id: string, clusterTime: bigint) => ({ id, kind: "revoked" as const, clusterTime });
const following = (options = {}) => {
  const changes = createChanges(options);
  changes.restarted(10n);
  changes.proven(1_000, 11n);
  return changes;
};
const shown = (message: WatchMessage | undefined) =>
  message === undefined ? "end" : message.event === "change" ? message.change.id : `${message.event} ${message.asOfMs}`;

test("a watch begins with a heartbeat, and then tells each change and each proof in order", async () => {
  const changes = following();
  const watch = open(changes);
  expect(shown(await watch.next())).toBe("heartbeat 1000");
  const waiting = watch.next();
  changes.changed(change("a", 12n));
  changes.proven(1_250, 13n);
  changes.changed(change("b", 14n));
  expect(shown(await waiting)).toBe("a");
  expect(shown(await watch.next())).toBe("heartbeat 1250");
  expect(shown(await watch.next())).toBe("b");
  await watch.leave();
  expect(changes.watchers).toBe(0);
});

test("before the first proof nothing is told: there is no time that could be claimed", async () => {
  const changes = createChanges();
  const watch = open(changes);
  const first = watch.next();
  changes.restarted(1n);
  changes.changed(change("a", 2n));
  const early = await Promise.race([first, new Promise((resolve) => setImmediate(resolve, "nothing"))]);
  expect(early).toBe("nothing");
  changes.proven(5, 3n);
  expect(shown(await first)).toBe("restart 5");
});

test("heartbeats are told together to who reads slowly, and never before the changes that they cover", async () => {
  const changes = following();
  const watch = open(changes);
  await watch.next();
  changes.proven(2_000, 12n);
  changes.changed(change("a", 13n));
  changes.proven(3_000, 14n);
  changes.proven(4_000, 15n);
  expect(shown(await watch.next())).toBe("a");
  expect(shown(await watch.next())).toBe("heartbeat 4000");
});

test("changes of one transaction are not split by a resumption: all of them are told again", async () => {
  const changes = following();
  const first = open(changes);
  await first.next();
  changes.changed(change("before", 19n));
  changes.changed(change("old", 20n));
  changes.changed(change("new", 20n));
  await first.next();
  const { position } = (await first.next())!;
  const resumed = open(changes, position);
  const message = [await resumed.next(), await resumed.next(), await resumed.next()];
  expect(message.map(shown)).toEqual(["heartbeat 1000", "old", "new"]);
});

test("a token from after a proof does not step over changes that were not told yet", async () => {
  const changes = following();
  changes.proven(2_000, 12n);
  changes.changed(change("a", 13n));
  changes.changed(change("b", 14n));
  const resumed = open(changes, 12n);
  const heartbeat = await resumed.next();
  expect(shown(heartbeat)).toBe("heartbeat 2000");
  const again = open(changes, heartbeat!.position);
  await again.next();
  expect([shown(await again.next()), shown(await again.next())]).toEqual(["a", "b"]);
});

test("who asks for more than is held, or sends an unknown token, is told to start again", async () => {
  const changes = following({ maxHeld: 2 });
  for (const [id, time] of [
    ["a", 20n],
    ["b", 21n],
    ["c", 22n],
  ] as const)
    changes.changed(change(id, time));
  for (const from of [9n, 20n, "unknown"] as const)
    expect(shown(await open(changes, from).next())).toBe("restart 1000");
  const resumed = open(changes, 21n);
  expect([shown(await resumed.next()), shown(await resumed.next())]).toEqual(["heartbeat 1000", "b"]);
  expect(changes.restarts).toBe(3);
});

test("a token that this process can't read is a restart even where nothing has happened yet", async () => {
  expect(shown(await open(following(), "unknown").next())).toBe("restart 1000");
});

test("who resumes from the very moment that changes are followed from has missed nothing", async () => {
  const changes = following();
  changes.changed(change("a", 12n));
  const resumed = open(changes, 10n);
  expect([shown(await resumed.next()), shown(await resumed.next())]).toEqual(["heartbeat 1000", "a"]);
});

test("a heartbeat's position is the proof's, and never before what the watcher was told by another process", async () => {
  const changes = following();
  expect((await open(changes).next())?.position).toBe(11n);
  const behind = open(changes, 10n);
  expect((await behind.next())?.position).toBe(11n);
  const ahead = open(changes, 40n);
  expect((await ahead.next())?.position).toBe(40n);
  changes.proven(2_000, 30n);
  expect((await ahead.next())?.position).toBe(40n);
  expect((await behind.next())?.position).toBe(30n);
});

test("a restart's position is the last moment heard of", async () => {
  const changes = following();
  changes.restarted(20n);
  expect((await open(changes, 9n).next())?.position).toBe(20n);
  changes.changed(change("a", 21n));
  expect((await open(changes, 9n).next())?.position).toBe(21n);
  changes.proven(2_000, 22n);
  expect((await open(changes, 9n).next())?.position).toBe(22n);
});

test("a watch that ended leaves nothing at its caller's signal", async () => {
  const controller = new AbortController();
  const stream = following().watch(undefined, controller.signal);
  await stream.next();
  const waiting = stream.next();
  expect(getEventListeners(controller.signal, "abort")).toHaveLength(1);
  controller.abort();
  expect((await waiting).done).toBe(true);
  expect(getEventListeners(controller.signal, "abort")).toHaveLength(0);
});

test("who falls behind by more than is held is told so, and then follows again", async () => {
  const changes = following({ maxHeld: 2 });
  const watch = open(changes);
  await watch.next();
  for (let index = 0n; index < 3n; index += 1n) changes.changed(change(`lost ${index}`, 20n + index));
  expect(shown(await watch.next())).toBe("restart 1000");
  changes.changed(change("a", 30n));
  expect(shown(await watch.next())).toBe("a");
});

test("when the stream of changes begins anew, everyone is told, those who were up to date too", async () => {
  const changes = following();
  const watches = [open(changes), open(changes)];
  for (const watch of watches) await watch.next();
  changes.restarted(50n);
  for (const watch of watches) expect(shown(await watch.next())).toBe("restart 1000");
  expect(shown(await open(changes, 49n).next())).toBe("restart 1000");
});

test("watchers are bounded, and a drain ends them all", async () => {
  const changes = following({ maxWatchers: 2 });
  const watches = [open(changes), open(changes)];
  for (const watch of watches) await watch.next();
  await expect(open(changes).next()).rejects.toMatchObject({
    ...{ reason: "OVERLOADED", retryAfterMs: 1_000, message: expect.stringContaining("Too many watches") },
  });
  const ends = watches.map((watch) => watch.next());
  changes.drain();
  expect((await Promise.all(ends)).map(shown)).toEqual(["end", "end"]);
  expect(changes.watchers).toBe(0);
});

test("whatever happens and wherever a watcher resumes, no heartbeat covers a change that it was neither told nor told to have missed", async () => {
  const step = oneof(
    { weight: 4, arbitrary: record({ what: constantFrom("changed" as const), by: integer({ min: 0, max: 2 }) }) },
    { weight: 2, arbitrary: record({ what: constantFrom("proven" as const), by: integer({ min: 1, max: 2 }) }) },
    { weight: 6, arbitrary: record({ what: constantFrom("read" as const), by: integer({ min: 0, max: 1 }) }) },
    { weight: 1, arbitrary: record({ what: constantFrom("resume" as const), by: integer({ min: 0, max: 1 }) }) },
    { weight: 1, arbitrary: record({ what: constantFrom("restarted" as const), by: integer({ min: 1, max: 2 }) }) },
  );
  await assert(
    asyncProperty(array(step, { maxLength: 60 }), async (steps) => {
      // Two processes follow the same changes; the watcher moves between them.
      const processes = [following({ maxHeld: 4 }), following({ maxHeld: 4 })];
      let time = 11n;
      let wallMs = 1_000;
      const happened: { id: string; wallMs: number }[] = [];
      /** What the watcher does not know to be outdated: true answers as of the beginning of its watch. */
      const unaware = new Set<string>();
      let position: bigint | undefined;
      let watch = open(processes[0]!);
      const take = (message: WatchMessage | undefined) => {
        if (message === undefined) return;
        if (message.event === "change") unaware.delete(message.change.id);
        if (message.event === "restart") unaware.clear();
        if (message.event === "heartbeat") {
          const covered = happened.filter((one) => one.wallMs <= message.asOfMs && unaware.has(one.id));
          expect(covered).toEqual([]);
        }
        position = message.position;
      };
      take(await watch.next());
      for (const { what, by } of steps) {
        if (what === "changed") {
          time += BigInt(by);
          wallMs += 1;
          const id = `${happened.length}`;
          happened.push({ id, wallMs });
          unaware.add(id);
          for (const one of processes) one.changed(change(id, time));
        } else if (what === "proven") {
          time += BigInt(by);
          wallMs += 1;
          for (const one of processes) one.proven(wallMs, time);
        } else if (what === "restarted") {
          time += BigInt(by);
          processes[by % 2]!.restarted(time);
        } else if (what === "resume") {
          await watch.leave();
          watch = open(processes[by]!, position);
        } else {
          const pending = watch.next();
          const message = await Promise.race([
            pending,
            new Promise<undefined>((resolve) => setImmediate(resolve, undefined)),
          ]);
          if (message === undefined) {
            // Nothing to tell: leave, as a client whose connection broke would.
            await watch.leave();
            await pending;
            watch = open(processes[by]!, position);
          } else take(message);
        }
      }
      await watch.leave();
    }),
    { numRuns: 500 },
  );
});
