import { randomBytes } from "node:crypto";
import { availableParallelism } from "node:os";
import { Authorization, file_envoy_service_auth_v3_external_auth } from "#gen/envoy/service/auth/v3/external_auth_pb";
import { file_google_rpc_error_details } from "#gen/google/rpc/error_details_pb";
import { file_grpc_reflection_v1_reflection } from "#gen/grpc/reflection/v1/reflection_pb";
import { file_grpc_reflection_v1alpha_reflection } from "#gen/grpc/reflection/v1alpha/reflection_pb";
import { file_health_v1_health } from "#gen/health/v1/health_pb";
import { AdminService, file_latchkey_v1_admin_service } from "#gen/latchkey/v1/admin_service_pb";
import { ApiKeyService, file_latchkey_v1_api_key_service } from "#gen/latchkey/v1/api_key_service_pb";
import { file_latchkey_v1_error_reason } from "#gen/latchkey/v1/error_reason_pb";
import { createIdentity } from "../edge/answer.ts";
import { createCallLog } from "../edge/call-log.ts";
import { MAX_KEPT_ANSWERS } from "../edge/codec/check.ts";
import { createRequestHandler } from "../edge/connect/adapter.ts";
import { withCors } from "../edge/connect/cors.ts";
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
import type { DevSecrets } from "../embedded/dev-secrets.ts";
import { HeldBytes, MAX_HELD_BYTES } from "../fastpath/held-bytes.ts";
import { listen } from "../fastpath/listen.ts";
import { createKeyAdmin } from "../keys/admin.ts";
import { createAuditLog } from "../keys/audit/log.ts";
import { createHashGate } from "../keys/hash-gate.ts";
import { createKeyManager } from "../keys/manage.ts";
import { createRevokePresented } from "../keys/presented.ts";
import { createRequestSecrets, type RequestKey } from "../keys/request-id.ts";
import { createSecretKeeper, type Pepper } from "../keys/secret.ts";
import { createUsage } from "../keys/verify/usage.ts";
import { createKeyVerifier } from "../keys/verify/verify.ts";
import { createAuditStore } from "../mongo/audit-store.ts";
import { connect } from "../mongo/connection.ts";
import { createKeyStore } from "../mongo/key-store.ts";
import { createSecretChecks } from "../mongo/secret-checks.ts";
import { createMetrics, type Metrics } from "../observe/metrics.ts";
import { createReadiness, type ReadinessReport, STARTING, STOPPING, shown, WHOLE } from "../observe/readiness.ts";
import { createCleanUps } from "./clean-ups.ts";
import type { Config } from "./config.ts";
import {
  CHANGING,
  type DatabaseHooks,
  findNewUser,
  keepSchema,
  makeSchema,
  openDatabase,
  openView,
  purge,
  wallClock,
  watchDatabase,
} from "./database.ts";
import { namingAddress } from "./free-address.ts";
import { listenOps } from "./ops.ts";
import { keepTls, loadTls } from "./tls-files.ts";

export interface ServerHooks extends DatabaseHooks {
  /** Called with what the service is ready for, at the start and at each change. */
  onReadiness?: (report: ReadinessReport) => void;
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
      memberMetadata: config.memberMetadata,
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
    const revokePresented = createRevokePresented(verify, store);
    const apiKeys = createApiKeyService({
      keys,
      revokePresented,
      verify,
      verifyMany,
      clock,
      draining: draining.signal,
    });
    const { batchVerify } = ApiKeyService.method;
    const gateway = {
      verify,
      authenticator,
      calls,
      answerMs: config.gatewayTimeoutMs,
      anonymous: config.gatewayAnonymous,
    };
    const keySources = {
      ...config.gatewayKeyFrom,
      prefixes: config.keyPrefixes.map((prefix) => `${prefix}_`),
      identity: createIdentity(config.gatewayMetadata),
    };
    const extAuthz = createExtAuthz(keySources, Math.min(config.cacheKeys, MAX_KEPT_ANSWERS), gateway);
    const held = new HeldBytes(MAX_HELD_BYTES);
    const requestHandler = createRequestHandler({
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
    const handler = withCors(requestHandler, config.corsOrigins);
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
        // Of browsers, whose answers need more headers.
        unusual: config.corsOrigins.length > 0 ? ["origin"] : [],
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
