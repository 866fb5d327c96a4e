import { cpSync, mkdtempSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { type Fault, named, none } from "./fault.ts";

/** A mistake that the service could have. */
export interface Defect {
  name: string;
  /** What it is made under. */
  fault: Fault;
  /** Only the order of all calls gives it away. */
  needsOrder?: boolean;
  /** Planted at each run of the tests; the others by `npm run faults -- --defects` alone. */
  inTests?: boolean;
  /** Changes of the build: each text stands there exactly once. */
  changes: { file: string; from: string; to: string }[];
}

export const DEFECTS: readonly Defect[] = [
  {
    name: "the view does not hear of changes by others",
    fault: none,
    inTests: true,
    changes: [{ file: "service/database.js", from: "view.changed(event.id, event.rev);", to: "" }],
  },
  {
    name: "Refresh revokes the old key in a transaction of its own",
    fault: none,
    needsOrder: true,
    inTests: true,
    changes: [
      {
        file: "keys/manage.js",
        from: "= accept(caller, input, { scopesNeeded: false });",
        to: `= accept(caller, input, { scopesNeeded: false });
        const first = await store.change(userId, deadlineMs, ({ active }, at) =>
          active && isLive(active, at)
            ? { update: [superseded(active, 0, at)], answer: superseded(active, 0, at) }
            : { update: [], answer: active });`,
      },
      {
        file: "keys/manage.js",
        from: "const { active, retiring } = current;",
        to: "const { retiring } = current; const active = first;",
      },
      { file: "keys/manage.js", from: "update.push(previous);", to: ";" },
    ],
  },
  {
    name: "changes are acknowledged by the primary alone",
    fault: named("the primary cut off from the other members (a black hole)"),
    changes: [{ file: "mongo/key-store.js", from: 'writeConcern: { w: "majority" },', to: "writeConcern: { w: 1 }," }],
  },
  {
    name: "a strong Verify answers from memory",
    fault: named("one replica in a black hole to all members"),
    changes: [{ file: "keys/verify/verify.js", from: "if (!strong) {", to: "if (true) {" }],
  },
  {
    name: "the silence of the stream is taken for a proof",
    fault: named("one replica in a black hole to all members"),
    changes: [
      {
        file: "keys/verify/freshness.js",
        from: "isFresh: (ofMs = provenMs) => clockMs() - ofMs <= maxStalenessMs,",
        to: "isFresh: () => true,",
      },
    ],
  },
  {
    name: "a change does not look whether the unique index is there",
    fault: named("a weaker index in the place of a unique one"),
    changes: [
      { file: "mongo/key-store.js", from: "if (missing !== undefined)", to: "if (false)" },
      { file: "mongo/key-store.js", from: "if (rests.length === 0)", to: "if (true)" },
    ],
  },
  {
    name: "Update does not look at the etag: of two, the first is lost",
    fault: none,
    needsOrder: true,
    changes: [{ file: "keys/update.js", from: "if (input.etag !== undefined &&", to: "if (false &&" }],
  },
  {
    name: "the view does not see that a key is suspended",
    fault: none,
    changes: [{ file: "keys/verify/view.js", from: "return suspended !== undefined &&", to: "return false &&" }],
  },
  {
    name: "a change that leaves the state alone is not heard: a scope survives that was taken away",
    fault: none,
    changes: [
      {
        file: "service/database.js",
        from: "view.changed(event.id, event.rev);",
        to: "if (event.state !== undefined) view.changed(event.id, event.rev);",
      },
    ],
  },
];

/** Replicas without a grace have the shortest of bounds: whichever a fault concerns, it must keep it. */
export const DEFECTIVE_GRACES_MS = [0, 0];

/** Rounds for a defect. What comes of a mistake is a matter of which calls meet: now and then, in one round, none do. */
export const ATTEMPTS = 3;

/** A copy of the build with a defect; its folder, to start the service from. */
export function plant({ name, changes }: Defect): string {
  const root = mkdtempSync(join(tmpdir(), "latchkey defect "));
  for (const part of ["package.json", "dist/src", "dist/gen"]) cpSync(part, join(root, part), { recursive: true });
  symlinkSync(resolve("node_modules"), join(root, "node_modules"));
  for (const { file, from, to } of changes) {
    const path = join(root, "dist/src", file);
    const text = readFileSync(path, "utf8");
    if (text.split(from).length !== 2) throw new Error(`"${name}" can't be planted: ${file} has changed`);
    writeFileSync(
      path,
      text.replace(from, () => to),
    );
  }
  return root;
}
