import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, expect, jest, test } from "@jest/globals";
import { ApiKeyService, Outcome, RevocationCause, State } from "#gen/latchkey/v1/api_key_service_pb";
import { createLatchkeyAdminClient } from "../../src/client/index.ts";
import { formatKey, parseKey } from "../../src/keys/text.ts";
import { refusalOf } from "../support/errors.ts";
import { SERVICE_TOKEN, sha256, startService, type TestService, userToken } from "../support/service.ts";

jest.setTimeout(120_000);

let service: TestService;
/** Without a token of any kind. */
const stranger = () =>
  createClient(ApiKeyService, createConnectTransport({ baseUrl: service.baseUrl, httpVersion: "1.1" }));
const admin = () =>
  createLatchkeyAdminClient({
    baseUrl: service.baseUrl,
    token: () => userToken("root", { admin: true }),
    timeoutMs: 10_000,
  });

beforeAll(async () => {
  const tokens = `gateway:sha256:${sha256(SERVICE_TOKEN)}`;
  service = await startService({ env: { LATCHKEY_VERIFY_AUTH: "token", LATCHKEY_SERVICE_TOKENS: tokens } });
});
afterAll(() => service.stop());

const partsOf = (key: string) => parseKey(key, ["lk"])!;

test("whoever holds a key ends it, without a token of a user or a service, and the trail says why", async () => {
  const { key, apiKey } = await service.client("alice").create({ scopes: ["read"] });
  const answer = await stranger().revokeByPresentedKey({ key, reason: "in a log", cause: RevocationCause.LEAKED });
  expect(answer).toMatchObject({
    ...{
      revoked: true,
      apiKey: { id: apiKey!.id, state: State.REVOKED, userId: "", scopes: [], revocationReason: "" },
    },
  });
  expect((await admin().getKey({ keyId: apiKey!.id })).apiKey).toMatchObject({
    ...{ revocationReason: "in a log", revocationCause: RevocationCause.LEAKED },
  });
  expect(await stranger().revokeByPresentedKey({ key })).toMatchObject({ revoked: false });
  expect(await refusalOf(service.client("alice").get({}))).toMatchObject({ reason: "NO_KEY" });
  const trail = async () =>
    (await admin().listAudit({ keyId: apiKey!.id, action: "RevokeByPresentedKey" })).entries.map(
      ({ actorId, userId, statedReason, cause }) => ({ actorId, userId, statedReason, cause }),
    );
  while ((await trail()).length < 2) await new Promise((resolve) => setTimeout(resolve, 50));
  expect((await trail()).at(-1)).toEqual({
    ...{ actorId: "", userId: "alice", statedReason: "in a log", cause: RevocationCause.LEAKED },
  });
  expect((await admin().listKeys({ revocationCause: RevocationCause.LEAKED })).apiKeys).toHaveLength(1);
});

test("garbage, a foreign id and a wrong secret have one answer, and end nothing", async () => {
  const { key } = await service.client("bob").create({ scopes: ["read"] });
  const other = await service.client("carol").create({ scopes: ["read"] });
  const wrong = [
    ...["", "garbage", `${key.slice(0, -1)}${key.endsWith("0") ? "1" : "0"}`],
    formatKey({ ...partsOf(key), id: "0".repeat(16) }),
    formatKey({ ...partsOf(key), secret: partsOf(other.key).secret }),
  ];
  const refusals = await Promise.all(wrong.map((one) => refusalOf(stranger().revokeByPresentedKey({ key: one }))));
  for (const refusal of refusals) expect(refusal).toEqual(refusals[0]);
  expect(refusals[0]).toMatchObject({ reason: "KEY_NOT_FOUND" });
  expect((await service.client("bob").get({})).apiKey!.state).toBe(State.ACTIVE);
  expect(service.logs()).not.toContain(partsOf(key).secret);
});

test("it ends one key and no other, a suspended or retiring one too; a bearer is not looked at", async () => {
  const owner = service.client("dave");
  const { key: first } = await owner.create({ scopes: ["read"] });
  const { key: second } = await owner.refresh({ gracePeriod: { seconds: 60n } });
  await owner.suspend({});
  const headers = { authorization: `Bearer ${second}` };
  expect(await stranger().revokeByPresentedKey({ key: first }, { headers })).toMatchObject({ revoked: true });
  await owner.resume({});
  const verify = async (key: string) =>
    (await stranger().verify({ key }, { headers: { authorization: `Bearer ${SERVICE_TOKEN}` } })).outcome;
  expect([await verify(first), await verify(second)]).toEqual([Outcome.REVOKED, Outcome.VALID]);
});

test("a cause that is Refresh's own, or none, is refused by name", async () => {
  const { key } = await service.client("erin").create({ scopes: ["read"] });
  for (const cause of [RevocationCause.SUPERSEDED, 99 as RevocationCause])
    expect(await refusalOf(stranger().revokeByPresentedKey({ key, cause }))).toMatchObject({ fields: ["cause"] });
  const client = service.client("erin");
  expect(await refusalOf(client.revoke({ cause: RevocationCause.SUPERSEDED }))).toMatchObject({ fields: ["cause"] });
  const { apiKey } = await client.revoke({ cause: RevocationCause.NO_LONGER_USED });
  expect(apiKey!.revocationCause).toBe(RevocationCause.NO_LONGER_USED);
});

test("keys that Refresh replaced are found by their cause", async () => {
  const owner = service.client("frank");
  await owner.create({ scopes: ["read"] });
  await owner.refresh({});
  const found = await admin().listKeys({ userId: "frank", revocationCause: RevocationCause.SUPERSEDED });
  expect(found.apiKeys.map(({ revocationCause }) => revocationCause)).toEqual([RevocationCause.SUPERSEDED]);
});
