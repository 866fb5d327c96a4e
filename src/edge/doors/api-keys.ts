import { Code, ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import {
  type ApiKey,
  type ApiKeyService,
  type VerifyStreamRequest,
  VerifyStreamRequestSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import { checked, invalid, KeyError } from "../../keys/errors.ts";
import type { KeyManager } from "../../keys/manage.ts";
import type { Lifetime } from "../../keys/policy.ts";
import type { RevokePresented } from "../../keys/presented.ts";
import { displayPrefix, type KeyRecord } from "../../keys/record.ts";
import type { Changed } from "../../keys/suspension.ts";
import { etagOf } from "../../keys/update.ts";
import type { VerifyKey } from "../../keys/verify/verify.ts";
import { endingOf, toApiKey, toMadeKey, toVerifyResponse, toVerifyResult } from "../answer.ts";
import { callerOf, deadlineOf, MAX_CALL_MS, note, originOf, timeoutOf, toVerifyInput } from "../call.ts";
import { fitting } from "../codec/verify.ts";
import { stopping } from "../errors.ts";
import { answerAhead } from "./answer-ahead.ts";
import { checkBatchSize, type VerifyMany, withoutRecord } from "./verify-many.ts";

interface ApiKeyServiceParts {
  keys: KeyManager;
  revokePresented: RevokePresented;
  verify: VerifyKey;
  verifyMany: VerifyMany;
  clock: () => Date;
  /** Aborted when the service stops: streams of requests end. */
  draining: AbortSignal;
}

/** Messages of one VerifyStream that are verified at once. */
const MAX_AHEAD = 64;

export function createApiKeyService({
  keys,
  revokePresented,
  verify,
  verifyMany,
  clock,
  draining,
}: ApiKeyServiceParts): Omit<ServiceImpl<typeof ApiKeyService>, "watch"> {
  const describe = (record: KeyRecord): ApiKey => toApiKey(record, clock().getTime());

  const altered = (context: HandlerContext, { active, retiring, changed }: Changed) => {
    const keyId = (active ?? retiring)?.id;
    note(context, { changed, ...(keyId !== undefined && { keyId }) });
    return { ...(active && { apiKey: describe(active) }), ...(retiring && { retiring: describe(retiring) }) };
  };

  return {
    async create(request, context) {
      const input = { ...request, lifetime: lifetimeOf(request.lifetime) };
      const created = await keys.create(callerOf(context), input, deadlineOf(context));
      note(context, { keyId: created.record.id, changed: !created.isRepeat });
      return { apiKey: describe(created.record), ...toMadeKey(created) };
    },

    async get(request, context) {
      const record = await keys.get(callerOf(context), request.userId, deadlineOf(context));
      note(context, { keyId: record.id });
      return { apiKey: describe(record), etag: etagOf(record) };
    },

    async update(request, context) {
      const { updateMask, lifetime, ...fields } = request;
      const input = { ...fields, paths: updateMask?.paths ?? [], lifetime: lifetimeOf(lifetime) };
      const { record, changed, isRepeat } = await keys.update(callerOf(context), input, deadlineOf(context));
      note(context, { keyId: record.id, changed });
      return { apiKey: describe(record), etag: etagOf(record), isRepeat };
    },

    async refresh(request, context) {
      const input = { ...request, lifetime: lifetimeOf(request.lifetime) };
      const refreshed = await keys.refresh(callerOf(context), input, deadlineOf(context));
      note(context, { keyId: refreshed.record.id, changed: !refreshed.isRepeat });
      const { record, previous, previousKeyRevoked } = refreshed;
      return {
        ...{ apiKey: describe(record), ...toMadeKey(refreshed), previousKeyRevoked },
        ...(previous && { previous: describe(previous) }),
      };
    },

    async revoke(request, context) {
      const { active, retiring, surplus } = await keys.revoke(
        callerOf(context),
        request.userId,
        endingOf(request.reason, request.cause),
        deadlineOf(context),
      );
      const first = (active ?? retiring ?? surplus[0])!;
      note(context, { keyId: first.id, changed: true });
      return {
        message: "The API key was revoked.",
        revokedKeyPrefix: displayPrefix(first),
        ...(active && { apiKey: describe(active) }),
        alsoRevoked: [...(retiring ? [retiring] : []), ...surplus].map(describe),
      };
    },

    async suspend({ userId, reason }, context) {
      return altered(context, await keys.suspend(callerOf(context), userId, reason, deadlineOf(context)));
    },

    async resume({ userId }, context) {
      return altered(context, await keys.resume(callerOf(context), userId, deadlineOf(context)));
    },

    async revokeByPresentedKey({ key, reason, cause }, context) {
      const ending = endingOf(reason, cause);
      const { record, wasLive } = await revokePresented(originOf(context), key, ending, timeoutOf(context));
      note(context, { userOfKeys: record.userId, keyId: record.id, changed: wasLive });
      // A key may end itself, and learns nothing else: this door asks for no token, as Verify's may.
      const { id, prefix, state, revokedAt, expiresAt } = describe(record);
      return {
        apiKey: { id, prefix, state, ...(revokedAt && { revokedAt }), ...(expiresAt && { expiresAt }) },
        revoked: wasLive,
      };
    },

    async verify(request, context) {
      const verification = await verify(toVerifyInput(request, timeoutOf(context)));
      const { outcome, entry } = verification;
      note(context, { outcome, ...(entry && { keyId: entry.id }) });
      return toVerifyResponse(verification);
    },

    async batchVerify({ requests, omitRecords }, context) {
      checked((violations) => checkBatchSize(requests.length, violations));
      const timeoutMs = timeoutOf(context);
      const verdicts = await verifyMany(requests.map((request) => toVerifyInput(request, timeoutMs)));
      return { results: fitting(omitRecords ? verdicts.map(withoutRecord) : verdicts).map(toVerifyResult) };
    },

    verifyStream: (requests, { signal }) =>
      answerAhead(wellFormed(until(draining, signal, requests)), MAX_AHEAD, async ({ request }) => {
        const [verdict] = await verifyMany([toVerifyInput(request, MAX_CALL_MS)]);
        return { result: toVerifyResult(verdict!) };
      }),
  };
}

/** `items`, until the call is over, or the service stops and the client is sent elsewhere. */
async function* until<T>(signal: AbortSignal, call: AbortSignal, items: AsyncIterable<T>): AsyncGenerator<T, void> {
  const source = items[Symbol.asyncIterator]();
  const left = () => stopping();
  const next = () =>
    new Promise<IteratorResult<T>>((resolve, reject) => {
      const stop = () => reject(left());
      const end = () => reject(call.reason);
      signal.addEventListener("abort", stop);
      call.addEventListener("abort", end);
      source
        .next()
        .finally(() => {
          signal.removeEventListener("abort", stop);
          call.removeEventListener("abort", end);
        })
        .then(resolve, reject);
    });
  try {
    while (!signal.aborted) {
      const { done, value } = await next();
      if (done) return;
      yield value;
    }
    throw left();
  } finally {
    // Not waited for: it may be in the middle of a read that never ends.
    void source.return?.().catch(() => {});
  }
}

/** As for a unary message: Connect says INTERNAL of what can't be decoded, and repeats what V8 says of bad JSON. */
async function* wellFormed(requests: AsyncIterable<VerifyStreamRequest>): AsyncGenerator<VerifyStreamRequest> {
  try {
    yield* requests;
  } catch (error) {
    const { code, rawMessage } = ConnectError.from(error);
    if (code === Code.ResourceExhausted) throw new KeyError("MESSAGE_TOO_LARGE", rawMessage);
    if (code !== Code.Internal && code !== Code.InvalidArgument) throw error;
    throw invalid([{ field: "", description: `a message is not a well-formed ${VerifyStreamRequestSchema.typeName}` }]);
  }
}

function lifetimeOf(
  lifetime: { case: "ttl" | "expiresAt"; value: Lifetime["value"] } | { case: undefined; value?: undefined },
) {
  return lifetime.case === undefined ? undefined : ({ case: lifetime.case, value: lifetime.value } satisfies Lifetime);
}
