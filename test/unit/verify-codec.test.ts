import { create, equals, fromBinary, fromJsonString, toBinary, toJsonString } from "@bufbuild/protobuf";
import { expect, test } from "@jest/globals";
import fc from "fast-check";
import {
  ApiKeySchema,
  BatchVerifyRequestSchema,
  BatchVerifyResponseSchema,
  Consistency,
  VerifyErrorSchema,
  VerifyRequestSchema,
  VerifyResponseSchema,
} from "#gen/latchkey/v1/api_key_service_pb";
import { OUTCOMES, toVerifyResponse, toVerifyResult } from "../../src/edge/answer.ts";
import {
  decodeBatch,
  decodeVerify,
  decodeVerifyJson,
  encodeBatch,
  encodeVerification,
  verificationJson,
} from "../../src/edge/codec/verify.ts";
import { CODES, type ErrorReason, KeyError } from "../../src/keys/errors.ts";
import { toMetadata } from "../../src/keys/metadata.ts";
import { CAUSES, type KeyRecord, STATES } from "../../src/keys/record.ts";
import type { Outcome, Verification } from "../../src/keys/verify/verify.ts";
import { createView } from "../../src/keys/verify/view.ts";
import { recordOf } from "../support/records.ts";

const view = createView({ maxKeys: 10 });

const instant = fc.integer({ min: 0, max: 4_102_444_800_000 });
const maybe = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: undefined });
const date = instant.map((ms) => new Date(ms));
const scope = fc.stringMatching(/^[a-z0-9][a-z0-9._:/-]{0,60}$/);

const value = fc.string({ maxLength: 64 }).filter((text) => !/\p{Cc}/u.test(text));

const record: fc.Arbitrary<KeyRecord> = fc
  .record({
    id: fc.stringMatching(/^[0-9A-Za-z]{16}$/),
    userId: fc.string({ minLength: 1, maxLength: 200, unit: "grapheme" }),
    name: maybe(fc.string({ minLength: 1, maxLength: 128, unit: "grapheme" })),
    prefix: fc.stringMatching(/^[a-z]{1,32}$/),
    scopes: fc.array(scope, { minLength: 1, maxLength: 64 }),
    state: fc.constantFrom(...STATES),
    revocationCause: maybe(fc.constantFrom(...CAUSES)),
    suspended: maybe(
      fc.record({ at: date, byAdmin: fc.boolean(), reason: maybe(fc.string({ minLength: 1, maxLength: 512 })) }),
    ),
    ...{ createdAt: date, expiresAt: maybe(date), retiresAt: maybe(date), revokedAt: maybe(date) },
    metadata: maybe(
      fc.dictionary(fc.stringMatching(/^[a-z0-9]{1,64}$/), value, { minKeys: 1, maxKeys: 16 }).map(toMetadata),
    ),
    ...{ lastUsedAt: maybe(date), revocationReason: maybe(fc.string({ maxLength: 512 })) },
  })
  .map(({ id, ...fields }) => recordOf(id, 1, fields));

const verification: fc.Arbitrary<Verification> = fc
  .record({
    outcome: fc.constantFrom(...(Object.keys(OUTCOMES) as Outcome[])),
    record: maybe(record),
    missingScopes: fc.array(scope, { maxLength: 64 }),
    asOfMs: instant,
    nowMs: instant,
  })
  .map(({ record, ...rest }) => ({ ...rest, entry: record && view.open().keep(record) }));

const failure = fc
  .record({
    reason: fc.constantFrom(...(Object.keys(CODES) as ErrorReason[])),
    message: fc.string({ maxLength: 300 }),
    retryAfterMs: maybe(fc.integer({ min: 1, max: 100_000 })),
  })
  .map(({ reason, message, retryAfterMs }) => new KeyError(reason, message, { ...(retryAfterMs && { retryAfterMs }) }));

test("a VerifyResponse by hand is the generic codec's, in protobuf and in JSON, whatever the outcome and the record", () => {
  const seen = new Set<string>();
  fc.assert(
    fc.property(verification, fc.nat(9), (answer, room) => {
      const expected = toVerifyResponse(answer);
      const bytes = encodeVerification(answer, room).subarray(room);
      expect(equals(VerifyResponseSchema, fromBinary(VerifyResponseSchema, bytes), expected)).toBe(true);
      expect(bytes.length).toBe(toBinary(VerifyResponseSchema, expected).length);
      expect(JSON.parse(verificationJson(answer))).toEqual(JSON.parse(toJsonString(VerifyResponseSchema, expected)));
      for (const name of Object.keys(JSON.parse(verificationJson(answer)))) seen.add(name);
      for (const name of Object.keys(JSON.parse(verificationJson(answer)).apiKey ?? {})) seen.add(`apiKey.${name}`);
    }),
    { numRuns: 500 },
  );
  // A field that the proto gets is to be met here too.
  const fields = VerifyResponseSchema.fields.map(({ jsonName }) => jsonName);
  const keyFields = ApiKeySchema.fields.map(({ jsonName }) => `apiKey.${jsonName}`);
  expect([...seen].sort()).toEqual([...fields, ...keyFields].sort());
});

test("a batch's answer by hand is the generic codec's, failed items among the others", () => {
  const seen = new Set<string>();
  fc.assert(
    fc.property(fc.array(fc.oneof(verification, failure), { maxLength: 20 }), (verdicts) => {
      const expected = create(BatchVerifyResponseSchema, { results: verdicts.map(toVerifyResult) });
      const found = fromBinary(BatchVerifyResponseSchema, encodeBatch(verdicts));
      expect(equals(BatchVerifyResponseSchema, found, expected)).toBe(true);
      for (const { result } of found.results)
        if (result.case === "error") for (const name of Object.keys(result.value)) seen.add(name);
    }),
    { numRuns: 200 },
  );
  for (const { localName } of VerifyErrorSchema.fields) expect(seen).toContain(localName);
});

const request = fc.record({
  key: fc.string({ maxLength: 120 }),
  requiredScopes: fc.array(fc.string({ maxLength: 100 }), { maxLength: 8 }),
  consistency: fc.constantFrom(Consistency.UNSPECIFIED, Consistency.BOUNDED, Consistency.STRONG),
});
const asInput = ({
  key,
  requiredScopes,
  consistency,
}: {
  key: string;
  requiredScopes: string[];
  consistency: number;
}) => ({
  ...{ key, requiredScopes, strong: consistency === Consistency.STRONG, timeoutMs: 0 },
});

test("a VerifyRequest that is read by hand is read as the generic codec does, in protobuf and in JSON", () => {
  fc.assert(
    fc.property(request, (fields) => {
      const message = create(VerifyRequestSchema, fields);
      const bytes = Buffer.from(toBinary(VerifyRequestSchema, message));
      expect(decodeVerify(bytes, 0, bytes.length)).toEqual(asInput(fields));
      const json = toJsonString(VerifyRequestSchema, message);
      const decoded = decodeVerifyJson(Buffer.from(json));
      // Escapes are the generic codec's to read, and what looks like a field that comes twice.
      const names = Object.keys(JSON.parse(json)).map((name) => `"${name}"`);
      const isOdd = json.includes("\\") || names.some((name) => json.split(name).length > 2);
      if (isOdd) expect(decoded).toBeUndefined();
      else expect(decoded).toEqual(asInput(fromJsonString(VerifyRequestSchema, json)));
    }),
    { numRuns: 500 },
  );
});

test("a batch that is read by hand is read as the generic codec does", () => {
  fc.assert(
    fc.property(fc.array(request, { maxLength: 20 }), fc.boolean(), (requests, omitRecords) => {
      const bytes = Buffer.from(
        toBinary(BatchVerifyRequestSchema, create(BatchVerifyRequestSchema, { requests, omitRecords })),
      );
      expect(decodeBatch(bytes)).toEqual({ inputs: requests.map(asInput), omitRecords });
    }),
    { numRuns: 200 },
  );
});
