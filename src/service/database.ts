import { setTimeout as sleep } from "node:timers/promises";
import type { Db } from "mongodb";
import { Authorization } from "#gen/envoy/service/auth/v3/external_auth_pb";
import { AdminService } from "#gen/latchkey/v1/admin_service_pb";
import { ApiKeyService } from "#gen/latchkey/v1/api_key_service_pb";
import { type DevSecrets, ensureDevSecrets } from "../embedded/dev-secrets.ts";
import { namingFullDisk } from "../embedded/disk.ts";
import { startMongod } from "../embedded/mongod.ts";
import { type ChangeKind, createChanges } from "../keys/changes.ts";
import { createFreshness } from "../keys/verify/freshness.ts";
import { createLookup } from "../keys/verify/lookup.ts";
import { createView } from "../keys/verify/view.ts";
import { type KeyEvent, watchKeys } from "../mongo/change-stream.ts";
import { createClusterTime } from "../mongo/cluster-time.ts";
import { type Connection, openVerifyClient, patiently } from "../mongo/connection.ts";
import { judgeUri } from "../mongo/connection-string.ts";
import { readLineage } from "../mongo/lineage.ts";
import { newUser } from "../mongo/new-user.ts";
import { startPurge } from "../mongo/purge.ts";
import { createRecordSource } from "../mongo/records.ts";
import { ensureSchema } from "../mongo/schema.ts";
import { type SchemaWatch, watchSchema } from "../mongo/schema-watch.ts";
import type { Logger } from "../observe/logger.ts";
import type { Metrics } from "../observe/metrics.ts";
import { type Readiness, WHOLE } from "../observe/readiness.ts";
import type { StartupError } from "../observe/startup-error.ts";
import type { CleanUps } from "./clean-ups.ts";
import type { Config } from "./config.ts";
import { checkDatabase } from "./database-checks.ts";
import { checkAddresses } from "./free-address.ts";

export interface DatabaseHooks {
  log: Logger;
  /** Progress for people while a database is fetched or started. */
  say: (line: string) => void;
  terminal?: NodeJS.WriteStream | undefined;
  /** The service can't go on; it must be stopped. */
  onFatal: (error: StartupError) => void;
  clock?: () => Date;
  /** A database that is ready, where another process looks after it. Default: opened here. */
  database?: ReadyDatabase;
}

export interface ReadyDatabase {
  uri: string;
  devSecrets: DevSecrets | undefined;
}

const FIRST_PROOF_MS = 2_000;

/** Services whose answers need no more than that keys are answered. The management half of ApiKeyService is AdminService's like. */
const ANSWERING = [WHOLE, ApiKeyService.typeName, Authorization.typeName];
export const CHANGING = [AdminService.typeName];

export function wallClock({ clock }: DatabaseHooks): () => number {
  return clock === undefined ? Date.now : () => clock().getTime();
}

/** The memory of records, what keeps it true, and what answers where it can't. */
export async function openView(
  config: Config,
  uri: string,
  hooks: DatabaseHooks,
  metrics: Metrics,
  cleanUps: CleanUps,
  schema: SchemaWatch,
) {
  const { maxStalenessMs, outageGraceMs, readTimeoutMs, cacheKeys } = config;
  const wallMs = wallClock(hooks);
  const client = openVerifyClient(uri);
  cleanUps.push(() => client.close());
  const db = client.db(config.database);
  const clusterTime = createClusterTime();
  const view = createView({ maxKeys: cacheKeys });
  const freshness = createFreshness({ maxStalenessMs, outageGraceMs });
  const source = createRecordSource(db, clusterTime, schema);
  const changes = createChanges();
  const lineage = await readLineage(db);
  const lookup = createLookup({ view, freshness, source, readTimeoutMs, wallMs });

  let isFollowing = true;
  let firstProof = () => {};
  const proven = new Promise<void>((resolve) => {
    firstProof = resolve;
  });
  const watch = watchKeys({
    ...{ db, clusterTime, maxStalenessMs, wallMs },
    sink: {
      restarted: (time) => {
        view.restart();
        changes.restarted(time);
      },
      changed: (event) => {
        view.changed(event.id, event.rev);
        changes.changed({ id: event.id, kind: kindOf(event), clusterTime: event.clusterTime });
      },
      proven: (moment, time) => {
        freshness.prove(moment);
        changes.proven(moment.wallMs, time);
        isFollowing = true;
        firstProof();
      },
    },
    // One line until it follows again: it is tried several times a second.
    onInterrupted: (error) => {
      if (isFollowing) hooks.log.warn({ event: "watch_interrupted", err: error }, "the change stream is opened again");
      isFollowing = false;
      // Perhaps because the records were dropped or renamed.
      schema.look();
    },
  });
  cleanUps.push(() => watch.stop());
  metrics.gauge("latchkey_view_keys", "Records in memory", () => view.size);
  metrics.gauge("latchkey_view_fresh", "1 while Verify answers from memory", () => Number(freshness.isFresh()), "min");
  metrics.gauge(
    "latchkey_view_age_seconds",
    "Age of the last proof of freshness",
    () => Math.min((performance.now() - freshness.provenMs) / 1_000, Number.MAX_SAFE_INTEGER),
    "max",
  );
  metrics.gauge("latchkey_outage", "1 while reads of Verify fail", () => Number(lookup.outage), "max");
  metrics.gauge("latchkey_watch_opened", "Change streams opened since the start", () => watch.opened);
  metrics.gauge("latchkey_watchers", "Open calls of Watch", () => changes.watchers);
  metrics.gauge("latchkey_watch_restarts", "Restarts sent to watchers since the start", () => changes.restarts);
  // Better to be listening late than to answer the first calls slowly; but without a proof, reads answer too.
  await Promise.race([proven, sleep(FIRST_PROOF_MS, undefined, { ref: false })]);
  return { view, freshness, source, lookup, clusterTime, changes, lineage };
}

const SLOW_START_MS = 3_000;

/** Makes what the service rests on in the database. To build an index of many records takes long: then it is said. */
export async function makeSchema(uri: string, config: Config, say: (line: string) => void): Promise<void> {
  const timer = setTimeout(() => {
    say(
      `Making the indexes of the database "${config.database}" takes a while where there are many records. To be seen in mongosh: db.currentOp({"command.createIndexes": {$exists: true}}).`,
    );
  }, SLOW_START_MS);
  await patiently(uri, (client) => ensureSchema(client.db(config.database), config)).finally(() => clearTimeout(timer));
}

/** Notices when what changes rest on in the database is lost or altered, and makes it again where that is safe. */
export function keepSchema(
  config: Config,
  uri: string,
  db: Db,
  { readiness, log, metrics }: { readiness: Readiness; log: Logger; metrics: Metrics },
): Promise<SchemaWatch> {
  const { auditRetentionMs, purgeAfterMs, maxStalenessMs } = config;
  const condition = readiness.condition("schema", CHANGING);
  let complete = true;
  metrics.gauge(
    "latchkey_schema_complete",
    "1 while the database has all that changes of keys rest on, 0 while they are refused for the lack of it",
    () => Number(complete),
    "min",
  );
  return watchSchema({
    ...{ db, auditRetentionMs, purgeAfterMs, maxStalenessMs },
    patiently: (mend, signal) => patiently(uri, (client) => mend(client.db(config.database)), signal),
    onChange(missing, surplus) {
      complete = missing === undefined;
      condition.set(missing);
      if (missing === undefined) log.info({ event: "schema_complete" }, "the database has all that keys rest on again");
      else
        log.error(
          { event: "schema_incomplete", missing, surplus },
          "no key is made until the database is as it must be",
        );
    },
    onMended({ what, empty }) {
      if (empty)
        log.error({ event: "schema_mended", what }, "the collection of keys was gone, and was made again, empty");
      else log.warn({ event: "schema_mended", what }, "what was missing in the database was made again");
    },
    onFailed: (error) =>
      log.error({ event: "schema_not_mended", err: error }, "what is missing in the database could not be made"),
  });
}

function kindOf({ rev, state }: KeyEvent): ChangeKind {
  if (state === undefined) return rev === Number.POSITIVE_INFINITY ? "removed" : "updated";
  if (state === "active") return rev === 1 ? "created" : "updated";
  return state;
}

/** Returns what ends it. */
export function purge(
  purgeAfterMs: number,
  db: Parameters<typeof startPurge>[0]["db"],
  clock: () => Date,
  log: Logger,
  metrics: Metrics,
): () => Promise<void> {
  let purged = 0;
  metrics.counter("latchkey_purged_total", "Records of ended keys that were removed", () => purged);
  return startPurge({
    ...{ db, purgeAfterMs, clock },
    onPurged: (records) => {
      purged += records;
      log.info({ event: "purged", records }, "records of keys that ended long ago were removed");
    },
    onFailed: (error) => log.warn({ event: "purge_failed", err: error }, "records of ended keys were not removed"),
  });
}

/** A user who may be made a key to try the service; undefined where nobody is at a terminal, or development tokens are refused. */
export async function findNewUser(
  { mongodbUri, tokenKey }: Config,
  { terminal }: DatabaseHooks,
  db: Db,
): Promise<string | undefined> {
  return terminal !== undefined && mongodbUri === undefined && tokenKey === undefined ? newUser(db) : undefined;
}

/** The configured database, or an embedded one, which is started: not before it is known that there are addresses to listen on. */
export async function openDatabase(
  config: Config,
  { log, say, terminal, onFatal }: DatabaseHooks,
  cleanUps: CleanUps,
): Promise<ReadyDatabase> {
  if (config.mongodbUri !== undefined) {
    const options = judgeUri(config.mongodbUri)?.overridden ?? [];
    if (options.length > 0)
      log.info({ event: "mongodb_options_left_out", options }, "options of MONGODB_URI that Latchkey sets itself");
    return { uri: config.mongodbUri, devSecrets: undefined };
  }
  // Only here: a port that is tried takes connections for a moment, and they are reset. Clients of a service of many processes come again at once.
  await checkAddresses([
    { setting: "LATCHKEY_LISTEN", ...config.listen },
    ...(config.opsListen === "off" ? [] : [{ setting: "LATCHKEY_OPS_LISTEN" as const, ...config.opsListen }]),
  ]);
  const mongod = await startMongod({
    ...{ dataDir: config.dataDir, cacheDir: config.cacheDir, binary: config.mongodBinary, path: config.path },
    ...{ say, terminal, onLost: onFatal },
    onEnded: (why) => log.error({ event: "mongod_ended" }, why),
  });
  cleanUps.push(() => mongod.stop());
  log.debug({ event: "mongod_started", pid: mongod.pid }, "embedded MongoDB started");
  const needed = [config.tokenKey, config.peppers, config.requestKeys].includes(undefined);
  return {
    uri: mongod.uri,
    devSecrets: needed ? await namingFullDisk(config.dataDir, () => ensureDevSecrets(config.dataDir)) : undefined,
  };
}

/** Keeps what readiness says of the database true. Returns what ends it. */
export function watchDatabase(
  { outageGraceMs }: Config,
  database: Connection,
  { freshness, source }: Pick<Awaited<ReturnType<typeof openView>>, "freshness" | "source">,
  readiness: Readiness,
  log: Logger,
): () => Promise<void> {
  const keys = readiness.condition("keys", ANSWERING, UNPROVEN);
  const changes = readiness.condition("database", CHANGING);
  const silent = `MongoDB has not answered for longer than LATCHKEY_OUTAGE_GRACE (${outageGraceMs / 1_000}s), so no key can be checked. Bring it back: the log says when it does not answer (database_down).`;
  return checkDatabase({
    ...{ database, freshness, source },
    onKeys: ({ answered, proven }) => keys.set(answered ? undefined : proven ? silent : UNPROVEN),
    onDatabase(up) {
      const text = up ? "MongoDB answers again" : "MongoDB does not answer";
      log[up ? "info" : "error"]({ event: up ? "database_up" : "database_down" }, text);
      changes.set(
        up ? undefined : "MongoDB does not answer, so keys can't be made, changed or looked at. Bring it back.",
      );
    },
  });
}

const UNPROVEN =
  "MongoDB has not yet shown that its change stream works, which takes a moment after the start. If it lasts, the log says why (watch_interrupted).";
