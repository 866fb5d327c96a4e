import { beforeEach, expect, test } from "@jest/globals";
import fc from "fast-check";
import type { KeyRecord } from "../../src/keys/record.ts";
import { createView, stateAt, type View, type ViewWindow } from "../../src/keys/verify/view.ts";
import { recordOf } from "../support/records.ts";

let view: View;
beforeEach(() => {
  view = createView({ maxKeys: 100 });
  view.restart();
});

const fill = (record: KeyRecord, into = view) => {
  const window = into.open();
  window.keep(record);
  window.close();
};
const fillUnknown = (id: string) => {
  const window = view.open();
  window.keepUnknown(id);
  window.close();
};
const revOf = (id: string) => view.get(id)?.rev;

test("nothing is kept before events are followed, and a read under way then is not kept either", () => {
  const early = createView({ maxKeys: 100 });
  const window = early.open();
  expect(window.keep(recordOf("a"))?.id).toBe("a");
  expect(early.get("a")).toBeUndefined();
  early.restart();
  window.keep(recordOf("a"));
  window.keepUnknown("b");
  expect([early.get("a"), early.isUnknown("b")]).toEqual([undefined, false]);
  fill(recordOf("a"), early);
  expect(early.get("a")?.rev).toBe(1);
});

test("an event drops the older record; an event that comes late, about what is already known, changes nothing", () => {
  fill(recordOf("a", 2));
  view.changed("a", 1);
  view.changed("a", 2);
  expect(revOf("a")).toBe(2);
  view.changed("a", 3);
  expect(view.get("a")).toBeUndefined();
});

test("a read that an event overtook is neither kept nor answered from", () => {
  const window = view.open();
  view.changed("a", 2);
  expect(window.keep(recordOf("a", 1))).toBeUndefined();
  expect(view.get("a")).toBeUndefined();
  expect(window.keep(recordOf("a", 2))?.rev).toBe(2);
  expect(revOf("a")).toBe(2);
});

test("a read that found nothing, overtaken by the insert, is not believed", () => {
  const window = view.open();
  view.changed("a", 1);
  expect(window.keepUnknown("a")).toBe(false);
  expect(view.isUnknown("a")).toBe(false);
});

test("a read that the end of the record overtook is not kept, whatever it found", () => {
  const window = view.open();
  view.changed("a", Number.POSITIVE_INFINITY);
  expect(window.keep(recordOf("a", 7))).toBeUndefined();
  fill(recordOf("b", 7));
  view.changed("b", Number.POSITIVE_INFINITY);
  expect([view.get("a"), view.get("b")]).toEqual([undefined, undefined]);
});

test("an older read leaves the newer record where it is, and is answered with it", () => {
  const window = view.open();
  fill(recordOf("a", 2));
  const held = view.get("a");
  expect(held?.rev).toBe(2);
  for (const rev of [1, 2]) expect(window.keep(recordOf("a", rev))).toBe(held);
});

test("a process's own write that raced a later event does not undo it", () => {
  fill(recordOf("a", 1));
  const write = view.open();
  view.changed("a", 2);
  view.changed("a", 3);
  expect(write.keep(recordOf("a", 2))).toBeUndefined();
  expect(view.get("a")).toBeUndefined();
});

test("a read that began before an own write does not bring the old record back, even where the new one made room since", () => {
  const small = createView({ maxKeys: 1 });
  small.restart();
  const read = small.open();
  fill(recordOf("a", 2, { state: "revoked" }), small);
  fill(recordOf("b"), small);
  expect(small.get("a")).toBeUndefined();
  expect(read.keep(recordOf("a", 1))).toBeUndefined();
  expect(small.get("a")).toBeUndefined();
});

test("a read that began before an own insert does not make the new key unknown", () => {
  const read = view.open();
  fill(recordOf("a"));
  expect(read.keepUnknown("a")).toBe(false);
  expect([revOf("a"), view.isUnknown("a")]).toEqual([1, false]);
});

test("an unknown id is remembered until its insert, by an event or by this process", () => {
  fillUnknown("a");
  fillUnknown("b");
  expect([view.isUnknown("a"), view.isUnknown("b")]).toEqual([true, true]);
  view.changed("a", 1);
  fill(recordOf("b"));
  expect([view.isUnknown("a"), view.isUnknown("b")]).toEqual([false, false]);
});

test("a record that turns out to be gone is forgotten", () => {
  fill(recordOf("a"));
  fillUnknown("a");
  expect([view.get("a"), view.isUnknown("a")]).toEqual([undefined, true]);
});

test("a restart forgets records and unknown ids, and what is under way does not bring them back", () => {
  fill(recordOf("a"));
  fillUnknown("b");
  const window = view.open();
  view.restart();
  window.keep(recordOf("c"));
  window.keepUnknown("d");
  expect([view.size, view.get("a"), view.get("c")]).toEqual([0, undefined, undefined]);
  expect([view.isUnknown("b"), view.isUnknown("d")]).toEqual([false, false]);
});

test("an unknown write drops all of that user's keys, and no others; reads under way are not kept", () => {
  for (let n = 0; n < 20; n += 1) fill(recordOf(`id ${n}`, 1, { userId: n % 3 === 0 ? "alice" : "bob" }));
  const window = view.open();
  view.dropUser("alice");
  for (let n = 0; n < 20; n += 1) expect(view.get(`id ${n}`) !== undefined).toBe(n % 3 !== 0);
  expect(window.keep(recordOf("id 0", 1, { userId: "alice" }))?.rev).toBe(1);
  expect(view.get("id 0")).toBeUndefined();
});

test("a write of one user is seen at once although another user's write stayed unknown meanwhile", () => {
  fill(recordOf("a", 1));
  fillUnknown("b");
  const write = view.open();
  view.dropUser("somebody else");
  write.keep(recordOf("a", 2, { state: "revoked" }));
  write.keep(recordOf("b", 1));
  expect(view.get("a")?.state).not.toBe("active");
  expect(view.isUnknown("b")).toBe(false);
});

test("memory is bounded: the records least recently asked for make room, and a flood of unknown ids none of them", () => {
  const small = createView({ maxKeys: 3 });
  small.restart();
  for (const id of ["a", "b", "c"]) fill(recordOf(id), small);
  // Uses are noted by sample.
  for (let n = 0; n < 8; n += 1) small.get("a");
  fill(recordOf("d"), small);
  expect([small.size, small.get("b")]).toEqual([3, undefined]);
  const window = small.open();
  for (let n = 0; n < 10; n += 1) window.keepUnknown(`never seen ${n}`);
  expect(["a", "c", "d"].map((id) => small.get(id)?.id)).toEqual(["a", "c", "d"]);
  expect(Array.from({ length: 10 }, (_, n) => small.isUnknown(`never seen ${n}`)).filter(Boolean)).toHaveLength(3);
});

test("what was proven of a key stays proven when its record changes through this process", () => {
  fill(recordOf("a", 1));
  view.get("a")!.provenDigest = "digest";
  fill(recordOf("a", 2));
  expect(view.get("a")).toMatchObject({ provenDigest: "digest", rev: 2 });
});

test("it is known from the record when time alone will change its state", () => {
  const changesAtMs = (fields: Partial<KeyRecord>) => {
    const fresh = createView({ maxKeys: 1 });
    return fresh.open().keep(recordOf("a", 1, fields))?.changesAtMs;
  };
  const [sooner, later] = [new Date(1_000), new Date(2_000)];
  expect(changesAtMs({})).toBeUndefined();
  expect(changesAtMs({ expiresAt: later })).toBe(2_000);
  expect(changesAtMs({ state: "retiring", retiresAt: sooner })).toBe(1_000);
  expect(changesAtMs({ state: "retiring", expiresAt: later, retiresAt: sooner })).toBe(1_000);
  expect(changesAtMs({ state: "revoked", expiresAt: later })).toBeUndefined();
});

test("the state that holds is the stored one until the moment that time alone changes it", () => {
  const stateOf = (fields: Partial<KeyRecord>) => {
    const entry = createView({ maxKeys: 1 })
      .open()
      .keep(recordOf("a", 1, fields))!;
    return [999, 1_000].map((nowMs) => stateAt(entry, nowMs));
  };
  const [end, never] = [new Date(1_000), undefined];
  expect(stateOf({ expiresAt: never })).toEqual(["active", "active"]);
  expect(stateOf({ expiresAt: end })).toEqual(["active", "expired"]);
  expect(stateOf({ state: "retiring", retiresAt: end })).toEqual(["retiring", "revoked"]);
  expect(stateOf({ state: "retiring", retiresAt: end, expiresAt: new Date(2_000) })).toEqual(["retiring", "revoked"]);
  expect(stateOf({ state: "revoked", expiresAt: end })).toEqual(["revoked", "revoked"]);
  expect(stateOf({ state: "expired", expiresAt: end })).toEqual(["expired", "expired"]);
});

test("an entry is its record, with times as Unix milliseconds, and what proves the secret set apart", () => {
  const fingerprint = { pepper: "p1", mac: new Uint8Array(32) };
  const told = { id: "a", userId: "alice", name: "laptop", prefix: "acme_live", scopes: ["read", "write"], rev: 7 };
  const end = { state: "revoked", revocationReason: "leaked" } as const;
  const times = { createdAt: 1, expiresAt: 2, retiresAt: 3, revokedAt: 4, lastUsedAt: 5_999 };
  const dates = Object.fromEntries(Object.entries(times).map(([name, ms]) => [name, new Date(ms)]));
  const keep = (record: KeyRecord) => view.open().keep(record);
  expect(keep({ ...told, ...end, ...(dates as { createdAt: Date }), secretHash: "$argon2id$", fingerprint })).toEqual({
    ...{ ...told, ...end, ...times, usedS: 5, digests: { secretHash: "$argon2id$", fingerprint } },
  });
  expect(keep(recordOf("b"))).toMatchObject({ usedS: 0, lastUsedAt: undefined, revokedAt: undefined });
});

test("equal scopes are held once, and others are not taken for them", () => {
  const scopes = [["a", "bc"], ["a", "bc"], ["ab", "c"], []];
  for (const [index, list] of scopes.entries()) fill(recordOf(`id ${index}`, 1, { scopes: list }));
  const held = scopes.map((_, index) => view.get(`id ${index}`)!.scopes);
  expect(held).toEqual(scopes);
  expect(held[1]).toBe(held[0]);
});

test("who finds nothing is believed though nothing is kept: before events are followed, and after a restart", () => {
  const window = createView({ maxKeys: 1 }).open();
  expect(window.keepUnknown("a")).toBe(true);
  fill(recordOf("b"));
  const late = view.open();
  view.dropUser("alice");
  expect([late.keepUnknown("b"), view.isUnknown("b"), revOf("b")]).toEqual([true, false, 1]);
  expect(view.open().keepUnknown("c")).toBe(true);
});

test("a closed window is let go: it hears of no more events", () => {
  const [closed, open] = [view.open(), view.open()];
  closed.close();
  view.changed("a", 2);
  expect([closed.keepUnknown("a"), open.keepUnknown("a")]).toEqual([true, false]);
});

test("of two events about one record under a read, the later one counts, in whichever order they come", () => {
  const window = view.open();
  view.changed("a", 3);
  view.changed("a", 2);
  expect(window.keep(recordOf("a", 2))).toBeUndefined();
});

/**
 * The database, the change stream and the reads of a process, one step at a time. Reads take time, and answer with
 * whatever state the database had between the newest that the process knew when they began and now.
 */
class Model {
  readonly view = createView({ maxKeys: 3 });
  /** Every write ever made: the record's rev after it, 0 where the record went. */
  private readonly log: { id: string; rev: number }[] = [];
  private readonly owner = new Map<string, string>();
  private delivered = 0;
  /** Position in the log up to which this process knows that it must be shown. */
  private known = 0;
  private readonly reads: { ids: string[]; window: ViewWindow; from: number }[] = [];
  private readonly writes: { id: string; window: ViewWindow; rev: number; position: number }[] = [];
  /** The least rev that may be shown. */
  private readonly floor = new Map<string, number>();

  private revAt(id: string, position = this.log.length): number {
    for (let at = position - 1; at >= 0; at -= 1) if (this.log[at]!.id === id) return this.log[at]!.rev;
    return 0;
  }
  private record(id: string, rev: number): KeyRecord {
    return recordOf(id, rev, { userId: this.owner.get(id)! });
  }
  private saw(id: string, rev: number, position: number): void {
    this.floor.set(id, Math.max(rev, this.floor.get(id) ?? 0));
    this.known = Math.max(this.known, position);
  }
  private commit(id: string): number {
    // An id that went is never given again.
    if (this.log.some((entry) => entry.id === id && entry.rev === 0)) return 0;
    this.owner.set(id, Number(id) % 2 === 0 ? "even" : "odd");
    const rev = this.revAt(id) + 1;
    this.log.push({ id, rev });
    return rev;
  }

  start(): void {
    this.view.restart();
  }
  /** By another process. */
  write(id: string): void {
    this.commit(id);
  }
  remove(id: string): void {
    if (this.revAt(id) > 0) this.log.push({ id, rev: 0 });
  }
  deliver(): void {
    const event = this.log[this.delivered];
    if (event === undefined) return;
    this.delivered += 1;
    const rev = event.rev === 0 ? Number.POSITIVE_INFINITY : event.rev;
    this.view.changed(event.id, rev);
    this.saw(event.id, rev, this.delivered);
  }
  beginRead(ids: string[]): void {
    this.reads.push({ ids, window: this.view.open(), from: this.known });
  }
  endRead(pick: number, lag: number): void {
    const [read] = this.reads.splice(pick % Math.max(this.reads.length, 1), 1);
    if (read === undefined) return;
    const position = Math.max(read.from, this.log.length - lag);
    for (const id of read.ids) {
      const rev = this.revAt(id, position);
      if (rev === 0) read.window.keepUnknown(id);
      else read.window.keep(this.record(id, rev));
    }
    read.window.close();
  }
  beginOwnWrite(id: string): void {
    const window = this.view.open();
    const rev = this.commit(id);
    this.writes.push({ id, window, rev, position: this.log.length });
  }
  endOwnWrite(pick: number, lost: boolean): void {
    const [write] = this.writes.splice(pick % Math.max(this.writes.length, 1), 1);
    if (write === undefined) return;
    if (lost) this.view.dropUser(this.owner.get(write.id) ?? "nobody");
    else if (write.rev > 0) {
      write.window.keep(this.record(write.id, write.rev));
      this.saw(write.id, write.rev, write.position);
    }
    write.window.close();
  }
  /** The stream's history is gone: events up to now never come. */
  restart(): void {
    this.delivered = this.log.length;
    this.known = this.log.length;
    this.view.restart();
  }
  check(ids: string[]): void {
    for (const id of ids) {
      const held = this.view.get(id)?.rev;
      const floor = this.floor.get(id) ?? 0;
      if (held !== undefined && held < floor) throw new Error(`${id}: rev ${held} is shown after ${floor} was seen`);
      if (this.view.isUnknown(id) && floor > 0 && this.revAt(id) > 0) {
        throw new Error(`${id}: unknown is shown after rev ${floor} was seen`);
      }
      if (held !== undefined && this.view.isUnknown(id)) throw new Error(`${id}: held and unknown`);
    }
    if (this.view.size > 3) throw new Error("more records than fit");
  }
  settle(ids: string[]): void {
    while (this.writes.length > 0) this.endOwnWrite(0, false);
    while (this.reads.length > 0) this.endRead(0, 5);
    while (this.delivered < this.log.length) this.deliver();
    for (const id of ids) {
      const held = this.view.get(id)?.rev;
      if (held !== undefined && held !== this.revAt(id)) throw new Error(`${id}: rev ${held} is not the record's`);
      if (this.view.isUnknown(id) && this.revAt(id) !== 0) throw new Error(`${id}: unknown, but there is a record`);
    }
  }
}

test("whatever the order of writes, events, reads, evictions and restarts, the view never goes back, and ends true", () => {
  const ids = ["0", "1", "2", "3", "4"];
  const id = fc.constantFrom(...ids);
  const small = fc.nat({ max: 4 });
  const step: fc.Arbitrary<(model: Model) => void> = fc.oneof(
    { weight: 4, arbitrary: id.map((which) => (m: Model) => m.write(which)) },
    { weight: 6, arbitrary: fc.constant((m: Model) => m.deliver()) },
    { weight: 4, arbitrary: fc.uniqueArray(id, { minLength: 1 }).map((which) => (m: Model) => m.beginRead(which)) },
    {
      weight: 5,
      arbitrary: fc.tuple(small, small).map(
        ([pick, lag]) =>
          (m: Model) =>
            m.endRead(pick, lag),
      ),
    },
    { weight: 3, arbitrary: id.map((which) => (m: Model) => m.beginOwnWrite(which)) },
    {
      weight: 3,
      arbitrary: fc.tuple(small, fc.boolean()).map(
        ([pick, lost]) =>
          (m: Model) =>
            m.endOwnWrite(pick, lost),
      ),
    },
    { weight: 1, arbitrary: id.map((which) => (m: Model) => m.remove(which)) },
    { weight: 1, arbitrary: fc.constant((m: Model) => m.restart()) },
  );
  // A failure prints its seed; `{ seed, path }` here repeats it.
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 60, size: "max" }), (steps) => {
      const model = new Model();
      model.start();
      for (const run of steps) {
        run(model);
        model.check(ids);
      }
      model.settle(ids);
    }),
    // Fewer where it is run for each mutant of the view.
    { numRuns: Number(process.env.PROPERTY_RUNS ?? 3_000) },
  );
});
