import { create } from "@bufbuild/protobuf";
import { expect, test } from "@jest/globals";
import { ApiKeySchema, Outcome, VerifyResponseSchema } from "#gen/latchkey/v1/api_key_service_pb";
import { KeyRefused, requireKey } from "../../src/client/require-key.ts";
import { OUTCOMES } from "../../src/edge/answer.ts";

const apiKey = create(ApiKeySchema, { userId: "alice", scopes: ["read", "write"] });
const answer = (outcome: Outcome, fields: object = {}) => create(VerifyResponseSchema, { outcome, apiKey, ...fields });

async function refusalOf(call: Promise<unknown>): Promise<KeyRefused> {
  const error = await call.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof KeyRefused)) throw error ?? new Error("it was let in");
  return error;
}

test("a good key with the scopes that are needed is its record; a promise of the answer will do", async () => {
  expect(await requireKey(answer(Outcome.VALID))).toBe(apiKey);
  expect(await requireKey(Promise.resolve(answer(Outcome.VALID)), { scopes: ["write"] })).toBe(apiKey);
});

test("every other outcome throws, with the status and the reason that gateways answer by", async () => {
  for (const [name, { number, refusal }] of Object.entries(OUTCOMES)) {
    if (refusal === undefined) continue;
    const { outcome, httpStatus, reason, missingScopes } = await refusalOf(requireKey(answer(number)));
    expect({ outcome, httpStatus, reason, missingScopes }).toEqual({
      ...{ outcome: number, httpStatus: refusal.status, reason: name.toUpperCase(), missingScopes: [] },
    });
  }
});

test("an outcome of a later version, one without a record, and a key without a scope let nobody in", async () => {
  expect(await refusalOf(requireKey(answer(99 as Outcome)))).toMatchObject({
    ...{ outcome: Outcome.UNSPECIFIED, httpStatus: 401, reason: "UNSPECIFIED" },
  });
  await refusalOf(requireKey(answer(Outcome.UNSPECIFIED)));
  await expect(requireKey(create(VerifyResponseSchema, { outcome: Outcome.VALID }))).rejects.toThrow("omit_records");
  expect(await refusalOf(requireKey(answer(Outcome.VALID), { scopes: ["read", "admin"] }))).toMatchObject({
    ...{ outcome: Outcome.INSUFFICIENT_SCOPE, httpStatus: 403, missingScopes: ["admin"] },
  });
  expect(await refusalOf(requireKey(answer(Outcome.INSUFFICIENT_SCOPE, { missingScopes: ["x"] })))).toMatchObject({
    missingScopes: ["x"],
  });
});

test("a call that failed says nothing of the key: its error is passed on", async () => {
  await expect(requireKey(Promise.reject(new Error("unavailable")))).rejects.toThrow("unavailable");
});
