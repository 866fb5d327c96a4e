import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { type GatewayKeys, gatewayCases } from "../support/gateway-cases.ts";
import { type Asked, DOORS } from "../support/gateway-doors.ts";
import { startService, type TestService } from "../support/service.ts";

let service: TestService;
let keys: GatewayKeys;
let goodId: string;
beforeAll(async () => {
  service = await startService();
  ({ keys, goodId } = await makeKeys(service));
});
afterAll(() => service.stop());

async function makeKeys({ client }: TestService) {
  const good = await client("zoë / 100%").create({ name: "build box, Köln", scopes: ["read", "write"] });
  const nameless = await client("plain").create({ scopes: ["read"] });
  const dash = await client("dash").create({ name: "-", scopes: ["read"] });
  const revoked = await client("gone").create({ scopes: ["read"] });
  await client("gone").revoke({ reason: "lost" });
  const expired = await client("late").create({ scopes: ["read"], lifetime: { case: "ttl", value: { seconds: 1n } } });
  while ((await client().verify({ key: expired.key })).outcome !== Outcome.EXPIRED) await sleep(50);
  return {
    goodId: good.apiKey!.id,
    keys: { good: good.key, nameless: nameless.key, dash: dash.key, revoked: revoked.key, expired: expired.key },
  };
}

const names = gatewayCases({ good: "", nameless: "", dash: "", revoked: "", expired: "" }).map(({ name }) => name);

describe.each(Object.entries(DOORS))("asked by %s", (_, ask) => {
  const asked = (question: Asked) => ask(service.server.address, question);

  test.each(names)("%s is answered as it must be", async (name) => {
    const { status, reason, challenge, missingScopes, ...question } = gatewayCases(keys).find(
      (one) => one.name === name,
    )!;
    const told = await asked(question);
    if (status === 200) {
      expect(told).toMatchObject({
        status,
        identity: {
          "x-latchkey-user": "zo%C3%AB%20/%20100%25",
          "x-latchkey-key-id": goodId,
          "x-latchkey-scopes": "read write",
          "x-latchkey-name": "build%20box%2C%20K%C3%B6ln",
        },
      });
      expect(Object.values(told.identity!).slice(0, 4).map(decodeURIComponent)).toContain("zoë / 100%");
      return;
    }
    expect(told).toEqual({
      status,
      headers: { "content-type": "application/json", "cache-control": "no-store", "www-authenticate": challenge },
      body: { reason, message: expect.stringMatching(/^[A-Z].*\.$/), ...(missingScopes && { missingScopes }) },
    });
  });
});
