import { createHmac, timingSafeEqual } from "node:crypto";
import { Binary, type Db } from "mongodb";
import { KeyError } from "../keys/errors.ts";
import { StartupError } from "../observe/startup-error.ts";
import { OPERATION_TIMEOUT_MS } from "./connection.ts";
import { atStart, KEYS } from "./schema.ts";

/** One document an id of a pepper or request key: by it another secret under the same id is noticed. */
const SECRET_CHECKS = "secret_checks";

export type SecretKind = "pepper" | "request key";

interface NamedSecret {
  kind: SecretKind;
  id: string;
  secret: Uint8Array;
}

export interface SecretChecks {
  /** For the start: fails with a StartupError that names each id under which the database knows another secret. */
  ensure(): Promise<void>;
  /**
   * Before a secret is first used for something new: fails with INTERNAL_ERROR where the database knows another under its id.
   * Asks the database until it has once agreed.
   */
  confirm(kind: SecretKind, id: string): Promise<void>;
}

interface CheckDocument {
  _id: string;
  check: Binary;
  at: Date;
}

/** The first secret that the database sees under an id is the right one from then on. */
export function createSecretChecks(db: Db, secrets: readonly NamedSecret[], clock: () => Date): SecretChecks {
  const checks = db.collection<CheckDocument>(SECRET_CHECKS);
  const agreed = new Set<NamedSecret>();

  async function agrees(named: NamedSecret): Promise<boolean> {
    const value = checkValue(named);
    const known = await checks.findOneAndUpdate(
      { _id: idOf(named) },
      { $setOnInsert: { check: new Binary(value), at: clock() } },
      { upsert: true, returnDocument: "after", maxTimeMS: OPERATION_TIMEOUT_MS },
    );
    const stored = known!.check.buffer;
    return stored.length === value.length && timingSafeEqual(stored, value);
  }

  return {
    async ensure() {
      const others: NamedSecret[] = [];
      await atStart(db, async () => {
        for (const named of secrets) if (!(await agrees(named))) others.push(named);
      });
      if (others.length > 0) throw new StartupError(others.map(({ kind, id }) => MISMATCH[kind](id)).join(" "));
    },
    async confirm(kind, id) {
      const named = secrets.find((secret) => secret.kind === kind && secret.id === id);
      if (named === undefined || agreed.has(named)) return;
      if (!(await agrees(named)))
        throw new KeyError("INTERNAL_ERROR", "Something went wrong inside the service.", {
          cause: new Error(MISMATCH[kind](id)),
        });
      agreed.add(named);
    },
  };
}

const WAYS_OUT =
  "Put the right one back, or give the new one an id of its own (embedded: delete secrets.json, and new ones are made).";

const MISMATCH: Record<SecretKind, (id: string) => string> = {
  pepper: (id) =>
    `The pepper "${id}" (LATCHKEY_PEPPERS, or secrets.json in LATCHKEY_DATA_DIR) is another than the one that this database knows by this id: good keys would be refused. ` +
    `${WAYS_OUT} If the right one is lost: latchkey peppers --forget ${id}`,
  "request key": (id) =>
    `The request key "${id}" (LATCHKEY_REQUEST_KEYS, or secrets.json in LATCHKEY_DATA_DIR) is another than the one that this database knows by this id: repeated calls would get no key. ` +
    `${WAYS_OUT} If the right one is lost: latchkey peppers --forget-request-key ${id}`,
};

/**
 * HMAC-SHA-256 under the secret of a text that is neither a fingerprint's, which has no space in it, nor what secrets of
 * requests are derived with.
 */
export function checkValue({ kind, id, secret }: NamedSecret): Buffer {
  return createHmac("sha256", secret).update(`latchkey check of the ${kind} ${id}`).digest();
}

function idOf({ kind, id }: Omit<NamedSecret, "secret">): string {
  return `${kind} ${id}`;
}

export interface Forgotten {
  /** Whether a secret was known by this id. */
  known: boolean;
  /** Records that lost their fingerprint. */
  records: number;
}

/**
 * Has the database forget a secret, so that the next under its id is the right one. What was fingerprinted with a pepper loses
 * its fingerprint: under another secret it would be taken for a wrong one. No process may still run with the secret.
 */
export async function forgetSecret(db: Db, kind: SecretKind, id: string): Promise<Forgotten> {
  const { deletedCount } = await db.collection<CheckDocument>(SECRET_CHECKS).deleteOne({ _id: idOf({ kind, id }) });
  if (kind !== "pepper") return { known: deletedCount > 0, records: 0 };
  const { modifiedCount } = await db
    .collection(KEYS)
    .updateMany({ "fingerprint.pepper": id }, { $unset: { fingerprint: "" }, $inc: { rev: 1 } });
  return { known: deletedCount > 0, records: modifiedCount };
}
