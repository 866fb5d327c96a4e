import { randomBytes } from "node:crypto";
import { availableParallelism } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import type { Db } from "mongodb";
import { Authorization, file_envoy_service_auth_v3_external_auth } from "#gen/envoy/service/auth/v3/external_auth_pb";
import { file_google_rpc_error_details } from "#gen/google/rpc/error_details_pb";
import { file_grpc_reflection_v1_reflection } from "#gen/grpc/reflection/v1/reflection_pb";
import { file_grpc_reflection_v1alpha_reflection } from "#gen/grpc/reflection/v1alpha/reflection_pb";
import { file_health_v1_health } from "#gen/health/v1/health_pb";
import { AdminService, file_latchkey_v1_admin_service } from "#gen/latchkey/v1/admin_service_pb";
import { ApiKeyService, file_latchkey_v1_api_key_service } from "#gen/latchkey/v1/api_key_service_pb";
import { file_latchkey_v1_error_reason } from "#gen/latchkey/v1/error_reason_pb";
import { createCallLog } from "../edge/call-log.ts";
import { MAX_KEPT_ANSWERS } from "../edge/codec/check.ts";
import { createRequestHandler } from "../edge/connect/adapter.ts";
import { createHealth } from "../edge/connect/health.ts";
import { createInterceptors } from "../edge/connect/interceptors.ts";
import { reflectionRoutes } from "../edge/connect/reflection.ts";
import { createAdminService } from "../edge/doors/admin.ts";
import { createApiKeyService } from "../edge/doors/api-keys.ts";
import { createFastBatchVerify, createFastVerifyStream } from "../edge/doors/fast-verify-many.ts";
import { createFastVerify } from "../edge/doors/verify.ts";
import { createVerifyMany, MAX_BATCH_BYTES } from "../edge/doors/verify-many.ts";
import { createWatch } from "../edge/doors/watch.ts";
import { TRANSPORT_REFUSALS } from "../edge/errors.ts";
import { createExtAuthz, MAX_CHECK_BYTES } from "../edge/gateway/ext-authz.ts";
import { createForwardAuth } from "../edge/gateway/forward-auth.ts";
import { createAuthenticator, type TokenKey, type VerifyAuth } from "../edge/tokens.ts";
import { type DevSecrets, ensureDevSecrets } from "../embedded/dev-secrets.ts";
import { namingFullDisk } from "../embedded/disk.ts";
import { startMongod } from "../embedded/mongod.ts";
import { HeldBytes, MAX_HELD_BYTES } from "../fastpath/held-bytes.ts";
import { type Listener, listen, type TlsIdentity } from "../fastpath/listen.ts";
import { createKeyAdmin } from "../keys/admin.ts";
import { createAuditLog } from "../keys/audit/log.ts";
import { type ChangeKind, createChanges } from "../keys/changes.ts";
import { createHashGate } from "../keys/hash-gate.ts";
import { createKeyManager } from "../keys/manage.ts";
import { createRequestSecrets, type RequestKey } from "../keys/request-id.ts";
import { createSecretKeeper, type Pepper } from "../keys/secret.ts";
import { createFreshness } from "../keys/verify/freshness.ts";
import { createLookup } from "../keys/verify/lookup.ts";
import { createUsage } from "../keys/verify/usage.ts";
import { createKeyVerifier } from "../keys/verify/verify.ts";
import { createView } from "../keys/verify/view.ts";
import { createAuditStore } from "../mongo/audit-store.ts";
import { type KeyEvent, watchKeys } from "../mongo/change-stream.ts";
import { createClusterTime } from "../mongo/cluster-time.ts";
import { type Connection, connect, openVerifyClient, patiently } from "../mongo/connection.ts";
import { judgeUri } from "../mongo/connection-string.ts";
import { createKeyStore } from "../mongo/key-store.ts";
import { readLineage } from "../mongo/lineage.ts";
import { newUser } from "../mongo/new-user.ts";
import { startPurge } from "../mongo/purge.ts";
import { createRecordSource } from "../mongo/records.ts";
import { ensureSchema } from "../mongo/schema.ts";
import { type SchemaWatch, watchSchema } from "../mongo/schema-watch.ts";
import { createSecretChecks } from "../mongo/secret-checks.ts";
import type { Logger } from "../observe/logger.ts";
import { createMetrics, type Metrics } from "../observe/metrics.ts";
import {
  createReadiness,
  type Readiness,
  type ReadinessReport,
  STARTING,
  STOPPING,
  shown,
  WHOLE,
} from "../observe/readiness.ts";
import type { StartupError } from "../observe/startup-error.ts";
import { type CleanUps, createCleanUps } from "./clean-ups.ts";
import type { Config } from "./config.ts";
import { checkDatabase } from "./database-checks.ts";
import { checkAddresses, namingAddress } from "./free-address.ts";
import { listenOps } from "./ops.ts";
import { endOfCertificate, loadTls, type TlsFiles, watchTls, whatEnded } from "./tls-files.ts";

export interface ServerHooks {
  log: Logger;
  /** Progress for people while a database is fetched or started. */
  say: (line: string) => void;
  terminal?: NodeJS.WriteStream | undefined;
  /** The service can't go on; it must be stopped. */
  onFatal: (error: StartupError) => void;
  clock?: () => Date;
  /** A database that is ready, where another process looks after it. Default: opened here. */
  database?: ReadyDatabase;
  /** Called with what the service is ready for, at the start and at each change. */
  onReadiness?: (report: ReadinessReport) => void;
}

export interface ReadyDatabase {
  uri: string;
  devSecrets: DevSecrets | undefined;
}

export interface Server {
  /** host:port of the public port. */
  readonly address: string;
  readonly opsAddress: string | undefined;
  /** A user who may be made a key to try the service; undefined where nobody is at a terminal, or development tokens are refused. */
  readonly newUser: string | undefined;
  readonly metrics: Pick<Metrics, "values">;
  /** Not ready any more, for good, so that nobody is sent here; whoever comes is served until `stop`. Idempotent. */
  drain(): void;
  /** Drain → in-flight calls finish → everything is released. Idempotent. */
  stop(): Promise<void>;
}

export const DRAIN_MS = 10_000;
const FIRST_PROOF_MS = 2_000;

/** Services whose answers need no more than that keys are answered. The management half of ApiKeyService is AdminService's like. */
const ANSWERING = [WHOLE, ApiKeyService.typeName, Authorization.typeName];
const CHANGING = [AdminService.typeName];

/** Puts the service together and starts it. What was acquired is released in reverse, at a failed start as at `stop`. */
export async function startServer(config: Config, hooks: ServerHooks): Promise<Server> {
  const { log, clock = () => new Date() } = hooks;
  const cleanUps = createCleanUps();
  try {
    const tls = config.tls && loadTls(config.tls);
    const { uri, devSecrets } = hooks.database ?? (await openDatabase(config, hooks, cleanUps));
    const database = await connect(uri);
    cleanUps.push(() => database.close());
    const db = database.client.db(config.database);
    if (hooks.database === undefined) await makeSchema(uri, config, hooks.say);
    const triedBy = await findNewUser(config, hooks, db);

    const metrics = createMetrics();
    const readiness = createReadiness([ApiKeyService.typeName, AdminService.typeName, Authorization.typeName]);
    const taken = readiness.condition("calls", readiness.services, STARTING);
    const schema = await keepSchema(config, uri, db, { readiness, log, metrics });
    cleanUps.push(() => schema.stop());
    const peppers = config.peppers ?? [developmentPepper(devSecrets!)];
    const requestKeys = requestKeysOf(config, devSecrets);
    const secretChecks = createSecretChecks(
      db,
      [
        ...peppers.map((pepper) => ({ kind: "pepper" as const, ...pepper })),
        ...(requestKeys ?? []).map((key) => ({ kind: "request key" as const, ...key })),
      ],
      clock,
    );
    await secretChecks.ensure();
    const gate = createHashGate({
      concurrency: config.hashConcurrency ?? availableParallelism(),
      queue: config.hashQueue,
    });
    const secrets = createSecretKeeper(peppers, gate);
    const opened = await openView(config, uri, hooks, metrics, cleanUps, schema);
    const { view, lookup, clusterTime, changes, lineage } = opened;
    const store = createKeyStore({
      ...{ client: database.client, database: config.database, clusterTime, view, schema, secretChecks, clock },
    });
    const usage = createUsage({
      write: store.noteUses,
      onFailed: (error) =>
        log.warn({ event: "uses_not_written", err: error }, "the last uses of keys were not written"),
    });
    cleanUps.push(() => usage.stop());
    const policy = {
      scopes: config.scopes,
      memberScopes: config.memberScopes,
      maxTtlMs: config.maxTtlMs,
      maxGraceMs: config.maxGraceMs,
    };
    const audit = createAuditStore(database.client.db(config.database));
    const auditLog = createAuditLog({
      ...{ write: audit.write, clock },
      onFailed: (error) =>
        log.warn({ event: "audit_not_written", err: error }, "the audit trail waits for the database"),
    });
    cleanUps.push(() => auditLog.stop());
    metrics.counter(
      "latchkey_audit_left_out_total",
      "Denials and reads that were counted in the audit trail instead of being recorded one by one",
      () => auditLog.leftOut,
    );
    const admin = createKeyAdmin({ store, audit, secrets, prefixes: config.keyPrefixes, clock });
    if (config.purgeAfterMs !== undefined)
      cleanUps.push(purge(config.purgeAfterMs, database.client.db(config.database), clock, log, metrics));
    const requests = requestKeys && createRequestSecrets(requestKeys);
    const keys = createKeyManager({ store, secrets, requests, policy, prefix: config.keyPrefix, clock, randomBytes });
    const verify = createKeyVerifier({
      ...{ lookup, store, secrets, prefixes: config.keyPrefixes },
      wallMs: wallClock(hooks),
      onUsed: usage.note,
      onRenewalFailed: (error) =>
        log.warn({ event: "fingerprint_renewal_failed", err: error }, "a fingerprint could not be renewed"),
    });

    const authenticator = createAuthenticator(
      {
        key: config.tokenKey ?? developmentKey(devSecrets!),
        ...{ issuer: config.tokenIssuer, audience: config.tokenAudience, adminClaim: config.adminClaim, clock },
        keySet: {
          maxAgeMs: config.jwksMaxAgeMs,
          onFailed(error, ageMs) {
            const fetched = "LATCHKEY_JWKS_URL can't be fetched";
            const effect =
              ageMs === undefined
                ? "no token can be checked"
                : `tokens are checked with the keys of ${Math.round(ageMs / 1_000)} s ago, until LATCHKEY_JWKS_MAX_AGE`;
            log.error({ event: "key_set_failed", err: error }, `${fetched}: ${effect}`);
          },
          onRecovered: () => log.info({ event: "key_set_fetched" }, "LATCHKEY_JWKS_URL can be fetched again"),
        },
      },
      verifyAuth(config),
    );
    cleanUps.push(() => authenticator.stop());
    if (config.tokenKey?.kind === "jwks")
      metrics.gauge(
        "latchkey_key_set_age_seconds",
        "Age of the key set that tokens are checked with",
        () => Math.min(authenticator.keySetAgeMs! / 1_000, Number.MAX_SAFE_INTEGER),
        "max",
      );
    metrics.gauge("latchkey_hash_running", "argon2 runs under way", () => gate.running);
    metrics.counter("latchkey_hash_runs_total", "argon2 runs since the start", () => gate.runs);
    metrics.gauge("latchkey_hash_waiting", "Calls that wait for an argon2 run", () => gate.waiting);
    cleanUps.push(watchDatabase(config, database, opened, readiness, log));
    const health = createHealth(readiness);
    cleanUps.push(readiness.onChange(() => hooks.onReadiness?.(readiness.report())));
    metrics.gauge(
      "latchkey_serving",
      "1 while keys are answered, 0 past LATCHKEY_OUTAGE_GRACE without MongoDB and while the service drains",
      () => Number(readiness.isReady(WHOLE)),
      "max",
    );
    metrics.gauge(
      "latchkey_changes_served",
      "1 while keys can be changed and looked at, 0 while MongoDB is away or the service drains",
      () => Number(CHANGING.every(readiness.isReady)),
      "max",
    );
    let dismiss = () => {};
    const drain = () => {
      taken.set(STOPPING);
      dismiss();
    };

    const calls = createCallLog({ log, metrics });
    const verifyMany = createVerifyMany(verify, calls);
    const draining = new AbortController();
    const apiKeys = createApiKeyService({ keys, verify, verifyMany, clock, draining: draining.signal });
    const { batchVerify } = ApiKeyService.method;
    const gateway = { verify, authenticator, calls, answerMs: config.gatewayTimeoutMs };
    const keySources = { ...config.gatewayKeyFrom, prefixes: config.keyPrefixes.map((prefix) => `${prefix}_`) };
    const extAuthz = createExtAuthz(keySources, Math.min(config.cacheKeys, MAX_KEPT_ANSWERS), gateway);
    const held = new HeldBytes(MAX_HELD_BYTES);
    const handler = createRequestHandler({
      held,
      interceptors: createInterceptors({ calls, authenticator, audit: auditLog, clock }),
      maxMessageBytes: config.limits.maxMessageBytes,
      largerMessages: new Map([
        [`/${ApiKeyService.typeName}/${batchVerify.name}`, MAX_BATCH_BYTES],
        [extAuthz.fast.path, MAX_CHECK_BYTES],
      ]),
      answerAll: new Set([extAuthz.fast.path]),
      routes: (router) => {
        router.service(ApiKeyService, { ...apiKeys, ...createWatch({ changes, lineage }) });
        router.rpc(batchVerify, apiKeys.batchVerify, { readMaxBytes: MAX_BATCH_BYTES });
        router.service(AdminService, createAdminService(admin, clock));
        router.service(Authorization, extAuthz.service, { readMaxBytes: MAX_CHECK_BYTES });
        health.routes(router);
        reflectionRoutes(SERVED_FILES)(router);
      },
    });
    const ops =
      config.opsListen === "off"
        ? undefined
        : await listenOps({ ...config.opsListen, readiness: () => shown(readiness.report()), metrics });
    cleanUps.push(() => ops?.close());
    const many = { verifyMany, authenticator, calls };
    const listener = await namingAddress({ setting: "LATCHKEY_LISTEN", ...config.listen }, () =>
      listen({
        ...{ ...config.listen, tls, limits: config.limits, handler },
        fast: [createFastVerify({ verify, authenticator, calls }), createFastBatchVerify(many), extAuthz.fast],
        fastStreams: [createFastVerifyStream(many)],
        ...{ held, refusals: TRANSPORT_REFUSALS },
        plainHttp: createForwardAuth(keySources, gateway),
      }),
    );
    if (tls !== undefined) cleanUps.push(keepTls(config.tls!, tls, listener, log, metrics));
    dismiss = listener.dismiss;
    taken.set(undefined);
    cleanUps.push(async () => {
      drain();
      health.drain();
      changes.drain();
      draining.abort();
      await listener.close(DRAIN_MS);
    });

    return {
      address: listener.address,
      opsAddress: ops?.address,
      newUser: triedBy,
      metrics,
      drain,
      stop: cleanUps.release,
    };
  } catch (error) {
    await cleanUps.release();
    throw error;
  }
}

function wallClock({ clock }: ServerHooks): () => number {
  return clock === undefined ? Date.now : () => clock().getTime();
}

/** The memory of records, what keeps it true, and what answers where it can't. */
async function openView(
  config: Config,
  uri: string,
  hooks: ServerHooks,
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
function keepSchema(
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
function purge(
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

const SERVED_FILES = [
  file_latchkey_v1_admin_service,
  file_latchkey_v1_api_key_service,
  file_latchkey_v1_error_reason,
  file_envoy_service_auth_v3_external_auth,
  file_health_v1_health,
  file_grpc_reflection_v1_reflection,
  file_grpc_reflection_v1alpha_reflection,
  file_google_rpc_error_details,
];

/** See `Server.newUser`. */
export async function findNewUser(
  { mongodbUri, tokenKey }: Config,
  { terminal }: ServerHooks,
  db: Db,
): Promise<string | undefined> {
  return terminal !== undefined && mongodbUri === undefined && tokenKey === undefined ? newUser(db) : undefined;
}

/** The configured database, or an embedded one, which is started: not before it is known that there are addresses to listen on. */
export async function openDatabase(
  config: Config,
  { log, say, terminal, onFatal }: ServerHooks,
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
function watchDatabase(
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

/** Takes up what is put in place of the certificate, its key and the clients' CA. Returns what ends it. */
function keepTls(files: TlsFiles, first: TlsIdentity, listener: Listener, log: Logger, metrics: Metrics): () => void {
  let endMs = endOfCertificate(first);
  const ended = whatEnded(files, first, Date.now());
  if (ended !== undefined) log.error({ event: "tls_expired" }, ended.message);
  metrics.gauge(
    "latchkey_tls_certificate_expiry_seconds",
    "End of the certificate that is served, in seconds since 1970",
    () => endMs / 1_000,
    "min",
  );
  return watchTls(files, {
    current: first,
    onChanged(identity) {
      listener.renewTls(identity);
      endMs = endOfCertificate(identity);
      log.info(
        { event: "tls_renewed", until: new Date(endMs).toISOString() },
        "connections get the new certificate from now on",
      );
    },
    onRefused: ({ message }) => log.error({ event: "tls_refused" }, `${message} What was served before is served on.`),
  });
}

function developmentPepper({ pepper, pepperId }: DevSecrets): Pepper {
  return { id: pepperId, secret: Buffer.from(pepper, "base64") };
}

/** A cluster without request keys has none: each process would make keys of its own. */
function requestKeysOf({ requestKeys }: Config, devSecrets: DevSecrets | undefined): readonly RequestKey[] | undefined {
  if (requestKeys !== undefined || devSecrets === undefined) return requestKeys;
  return [{ id: devSecrets.requestKeyId, secret: Buffer.from(devSecrets.requestKey, "base64") }];
}

function developmentKey({ jwtSecret }: DevSecrets): TokenKey {
  return { kind: "secret", secret: jwtSecret };
}

function verifyAuth(config: Config): VerifyAuth {
  if (config.verifyAuth === "token") return { kind: "token", tokens: config.serviceTokens };
  if (config.verifyAuth === "mtls") return { kind: "mtls", clients: config.verifyClients };
  if (config.verifyAuth === "jwt") return { kind: "jwt", audience: config.verifyAudience! };
  return { kind: "none" };
}
