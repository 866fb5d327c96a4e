import type { Collection, Db, MongoClient } from "mongodb";
import { type SchemaWatch, type SchemaWatchOptions, watchSchema } from "../../src/mongo/schema-watch.ts";

/** A watch of what the service rests on that notices by itself only what is there at its start, unless `options` say otherwise. */
export function watchOf(db: Db, options: Partial<SchemaWatchOptions> = {}): Promise<SchemaWatch> {
  return watchSchema({
    db,
    patiently: (mend) => mend(db),
    maxStalenessMs: 3_600_000,
    onChange: () => {},
    onMended: () => {},
    onFailed: () => {},
    ...options,
  });
}

/** For a store whose secrets are nobody's matter. */
export const noSecretChecks = { confirm: async () => {} };

/** Where in a change something else may come between: before it, after its read, before its insert, and before its commit. */
export const STEPS = ["before", "read", "insert", "written"] as const;
export type Step = (typeof STEPS)[number];

/** `client`, but what a transaction does with `collection`, and every look-up of one record, waits for `at` on its way. */
export function interposed(
  client: MongoClient,
  collection: string,
  at: (step: Step | "looked up") => Promise<void>,
): MongoClient {
  const withSteps = (real: Collection) =>
    proxied(real, {
      find: (...args: Parameters<Collection["find"]>) =>
        proxied(real.find(...args), {
          async toArray() {
            if (args[1]?.session !== undefined) await at("before");
            const found = await real.find(...args).toArray();
            if (args[1]?.session !== undefined) await at("read");
            return found;
          },
        }),
      async findOne(...args: Parameters<Collection["findOne"]>) {
        if (args[1]?.session === undefined) await at("looked up");
        return real.findOne(...args);
      },
      async insertOne(...args: Parameters<Collection["insertOne"]>) {
        await at("insert");
        const inserted = await real.insertOne(...args);
        await at("written");
        return inserted;
      },
    });
  return proxied(client, {
    db: (name: string) => {
      const db = client.db(name);
      return proxied(db, {
        collection: (of: string) => (of === collection ? withSteps(db.collection(of)) : db.collection(of)),
      });
    },
  });
}

function proxied<T extends object>(real: T, own: Record<string, unknown>): T {
  return new Proxy(real, {
    get(target, name) {
      if (name in own) return own[name as string];
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
