import type { Client } from "@connectrpc/connect";
import {
  type ApiKeyService,
  ApiKeyServiceRevokeByPresentedKeyResponseSchema,
  type CreateResponse,
  CreateResponseSchema,
  createLatchkeyClient,
  GetResponseSchema,
  KeyWithheld,
  Outcome,
  type RefreshResponse,
  RefreshResponseSchema,
  ResumeResponseSchema,
  RevokeResponseSchema,
  State,
  SuspendResponseSchema,
  UpdateResponseSchema,
  VerifyResponseSchema,
} from "../client/index.ts";
import { StartupError } from "../observe/startup-error.ts";
import { describeKey, type EndingOptions, endingOf, printable, show, wordOf } from "./output.ts";
import { type CallOptions, developmentToken, endpointOf, readKey } from "./session.ts";

/** The exit code of `verify` for a key that is not good; all of them stand in the help. */
const NOT_GOOD = 3;

interface UserOptions extends CallOptions {
  user?: string;
}

interface KeyOptions extends UserOptions {
  name?: string;
  scope?: string[];
  /** In milliseconds, as `grace`. */
  ttl?: number;
  grace?: number;
  requestId?: string;
  metadata?: Record<string, string>;
}

export async function create(options: KeyOptions): Promise<void> {
  const { client, owner } = await sessionFor(options);
  const answer = await client.create({ ...owner, ...keyFields(options) });
  show(CreateResponseSchema, answer, options, answer.key);
  failIfWithheld(answer);
}

export async function get(options: UserOptions): Promise<void> {
  const { client, owner } = await sessionFor(options);
  const answer = await client.get(owner);
  show(GetResponseSchema, answer, options, describeKey(answer.apiKey!));
}

export async function refresh(options: KeyOptions): Promise<void> {
  const gracePeriod = options.grace === undefined ? {} : { gracePeriod: span(options.grace) };
  const { client, owner } = await sessionFor(options);
  const answer = await client.refresh({ ...owner, ...keyFields(options), ...gracePeriod });
  show(RefreshResponseSchema, answer, options, answer.key);
  failIfWithheld(answer);
}

interface RevokeOptions extends UserOptions, EndingOptions {
  presented?: boolean;
}

export async function revoke(options: RevokeOptions): Promise<void> {
  if (options.presented) return revokePresented(options);
  const { client, owner } = await sessionFor(options);
  const answer = await client.revoke({ ...owner, ...endingOf(options) });
  const ended = [answer.apiKey, ...answer.alsoRevoked].flatMap((apiKey) => apiKey?.prefix ?? []);
  show(RevokeResponseSchema, answer, options, printable([answer.message, ...ended].join(" ")));
}

async function revokePresented(options: RevokeOptions): Promise<void> {
  const { baseUrl, tls } = endpointOf(options);
  const answer = await createLatchkeyClient({ baseUrl, tls }).revokeByPresentedKey({
    ...{ key: await readKey(), ...endingOf(options) },
  });
  const what = answer.revoked ? "The API key was revoked." : "The API key had ended before.";
  show(ApiKeyServiceRevokeByPresentedKeyResponseSchema, answer, options, `${what} ${answer.apiKey!.prefix}`);
}

/** Of options that begin with `no-`: false; unset where neither was said. */
interface UpdateOptions extends UserOptions, Pick<KeyOptions, "scope" | "metadata" | "requestId"> {
  name?: string | boolean;
  ttl?: number | boolean;
  removeMetadata?: string[];
  etag?: string;
}

export async function update(options: UpdateOptions): Promise<void> {
  const { name, ttl, scope, metadata = {}, removeMetadata = [], etag, requestId } = options;
  const entries = [...Object.keys(metadata), ...removeMetadata].map((entry) => `metadata.${entry}`);
  const isSaid = (value: unknown) => value !== undefined && value !== true;
  const paths = [
    ...(isSaid(name) ? ["name"] : []),
    ...(isSaid(ttl) ? ["ttl"] : []),
    ...(scope === undefined ? [] : ["scopes"]),
    ...entries,
  ];
  if (paths.length === 0) throw new StartupError("Say what to change: latchkey update --help lists it.");
  const { client, owner } = await sessionFor(options);
  const answer = await client.update({
    ...{ ...owner, updateMask: { paths }, scopes: scope ?? [], metadata },
    ...(typeof name === "string" && { name }),
    ...(typeof ttl === "number" && { lifetime: { case: "ttl" as const, value: span(ttl) } }),
    ...(etag !== undefined && { etag }),
    ...(requestId !== undefined && { requestId }),
  });
  show(UpdateResponseSchema, answer, options, describeKey(answer.apiKey!));
}

export async function suspend(options: UserOptions & { reason?: string }): Promise<void> {
  const { client, owner } = await sessionFor(options);
  const answer = await client.suspend({ ...owner, reason: options.reason ?? "" });
  show(SuspendResponseSchema, answer, options, describeKey((answer.apiKey ?? answer.retiring)!));
}

export async function resume(options: UserOptions): Promise<void> {
  const { client, owner } = await sessionFor(options);
  const answer = await client.resume(owner);
  const [key] = [answer.apiKey, answer.retiring].filter((one) => one !== undefined);
  show(ResumeResponseSchema, answer, options, key === undefined ? "The user may make a key again." : describeKey(key));
}

export async function verify(options: KeyOptions): Promise<void> {
  const { baseUrl, token, tls } = endpointOf(options);
  const client = createLatchkeyClient({ baseUrl, tls, ...(token !== undefined && { token }) });
  const answer = await client.verify({ key: await readKey(), requiredScopes: options.scope ?? [] });
  show(VerifyResponseSchema, answer, options, Outcome[answer.outcome] ?? "");
  if (answer.outcome !== Outcome.VALID) process.exitCode = NOT_GOOD;
}

interface Session {
  client: Client<typeof ApiKeyService>;
  /** Whose key is meant, where that is not the caller's own. */
  owner: { userId?: string };
}

/** Without a token and beside an embedded service's data, the caller becomes `--user` by a development token. */
async function sessionFor({ user, ...options }: UserOptions): Promise<Session> {
  const { baseUrl, token, tls } = endpointOf(options);
  if (token !== undefined)
    return { client: createLatchkeyClient({ baseUrl, tls, token }), owner: user === undefined ? {} : { userId: user } };
  if (user === undefined)
    throw new StartupError("No token: set LATCHKEY_TOKEN, or say --user for a development token.");
  return {
    client: createLatchkeyClient({ baseUrl, tls, token: await developmentToken(baseUrl, user, false) }),
    owner: {},
  };
}

function keyFields(options: KeyOptions) {
  return {
    scopes: options.scope ?? [],
    metadata: options.metadata ?? {},
    ...(options.name !== undefined && { name: options.name }),
    ...(options.requestId !== undefined && { requestId: options.requestId }),
    ...(options.ttl !== undefined && { lifetime: { case: "ttl" as const, value: span(options.ttl) } }),
  };
}

function span(ms: number): { seconds: bigint; nanos: number } {
  return { seconds: BigInt(Math.floor(ms / 1_000)), nanos: (ms % 1_000) * 1_000_000 };
}

/** A repeat whose key is not shown again made nothing: a script that goes on with no key must notice. */
function failIfWithheld({ apiKey, key, keyWithheld }: CreateResponse | RefreshResponse): void {
  if (key !== "") return;
  const why =
    keyWithheld === KeyWithheld.ENDED
      ? `it is ${wordOf(State, apiKey?.state ?? State.UNSPECIFIED)}`
      : "the request key that its secret was derived from is no longer in LATCHKEY_REQUEST_KEYS";
  throw new StartupError(`This call made the key ${apiKey?.prefix} before. The key is not told again: ${why}.`);
}
