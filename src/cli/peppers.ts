import { DEV_ID, readDevSecrets } from "../embedded/dev-secrets.ts";
import { embeddedUri } from "../embedded/mongod.ts";
import { connect, patiently } from "../mongo/connection.ts";
import { countFingerprints, type FingerprintCount } from "../mongo/fingerprints.ts";
import { forgetSecret, type SecretKind } from "../mongo/secret-checks.ts";
import { StartupError } from "../observe/startup-error.ts";
import { type Config, readConfig } from "../service/config.ts";
import { print } from "./output.ts";

interface PeppersOptions {
  json?: boolean;
  /** Ids whose secrets are lost. */
  forget?: string;
  forgetRequestKey?: string;
}

export async function peppers({ json, forget: pepper, forgetRequestKey: requestKey }: PeppersOptions): Promise<void> {
  if (pepper !== undefined) print(await forget(readConfig(), "pepper", pepper));
  if (requestKey !== undefined) print(await forget(readConfig(), "request key", requestKey));
  if (pepper !== undefined || requestKey !== undefined) return;
  const report = await reportPeppers(readConfig());
  print(json ? JSON.stringify(report) : formatPeppers(report));
}

interface PepperReport {
  /** The pepper of new fingerprints. */
  newest: string;
  /** Keys that are good, and have no fingerprint under it. */
  outdated: number;
  peppers: PepperLine[];
}

interface PepperLine {
  /** Its id; null: records without a fingerprint. */
  pepper: string | null;
  /** Whether it stands in the ring. */
  known: boolean;
  /** Active and retiring keys that have not run out. */
  good: number;
  /** Records in any state. */
  all: number;
  advice: string;
}

/** Counts records by the pepper of their fingerprint. Changes nothing. */
async function reportPeppers(config: Config): Promise<PepperReport> {
  const connection = await connect(await uriOf(config));
  try {
    const counts = await countFingerprints(connection.client.db(config.database), new Date());
    return describe(
      config.peppers?.map(({ id }) => id) ?? [readDevSecrets(config.dataDir)?.pepperId ?? DEV_ID],
      counts,
    );
  } finally {
    await connection.close();
  }
}

/** Has the database forget the secret that it knows by `id`. Returns what came of it, for people. Fails with a StartupError where there is none. */
export async function forget(config: Config, kind: SecretKind, id: string): Promise<string> {
  const { known, records } = await patiently(await uriOf(config), (client) =>
    forgetSecret(client.db(config.database), kind, id),
  );
  if (!known && records === 0) throw new StartupError(`The database knows no ${kind} "${id}". Nothing was changed.`);
  const loss =
    kind === "pepper"
      ? `${records} record(s) lost the fingerprint made with it: each of these keys costs one argon2 at its next use.`
      : "Repeats of calls whose secrets were derived from it are answered without the key.";
  return `Forgotten: the ${kind} "${id}". ${loss} The next start with a ${kind} of this id makes its secret the known one.`;
}

export function formatPeppers({ newest, outdated, peppers }: PepperReport): string {
  const width = Math.max(6, ...peppers.map(({ pepper }) => pepper?.length ?? 0));
  const line = (pepper: string, good: string, all: string, advice: string) =>
    `${pepper.padEnd(width)}  ${good.padStart(9)}  ${all.padStart(9)}  ${advice}`.trimEnd();
  return [
    line("pepper", "good keys", "records", ""),
    ...peppers.map(({ pepper, good, all, advice }) => line(pepper ?? "(none)", String(good), String(all), advice)),
    outdated === 0
      ? `Every good key is under ${newest}, the newest pepper.`
      : `${outdated} good key(s) are not under ${newest}, the newest pepper. Each moves to it when it is next used.`,
  ].join("\n");
}

/** `ring`: newest first. */
export function describe(ring: readonly string[], counts: readonly FingerprintCount[]): PepperReport {
  const newest = ring[0]!;
  const strangers = counts
    .map(({ pepper }) => pepper)
    .filter((pepper) => pepper === undefined || !ring.includes(pepper));
  const lines = [...ring, ...strangers].map((pepper): PepperLine => {
    const { good, all } = counts.find((count) => count.pepper === pepper) ?? { good: 0, all: 0 };
    const known = pepper !== undefined && ring.includes(pepper);
    const advice = pepper === newest ? "newest" : adviceOn(known, good);
    return { pepper: pepper ?? null, known, good, all, advice };
  });
  const outdated = lines.reduce((sum, { pepper, good }) => (pepper === newest ? sum : sum + good), 0);
  return { newest, outdated, peppers: lines };
}

function adviceOn(known: boolean, good: number): string {
  if (!known) return good === 0 ? "* not in the ring" : "* not in the ring: each costs one argon2 at its next use";
  if (good === 0) return "* may be taken out of the ring";
  return "* keep it in the ring until no good key is left under it, or each costs one argon2 at its next use";
}

async function uriOf({ mongodbUri, dataDir }: Config): Promise<string> {
  if (mongodbUri !== undefined) return mongodbUri;
  const uri = await embeddedUri(dataDir);
  const answers =
    uri !== undefined &&
    (await connect(uri).then(
      (connection) => connection.close().then(() => true),
      () => false,
    ));
  if (answers) return uri;
  throw new StartupError(
    `The embedded MongoDB in ${dataDir} does not answer. Start the service there, or set LATCHKEY_DATA_DIR or MONGODB_URI.`,
  );
}
