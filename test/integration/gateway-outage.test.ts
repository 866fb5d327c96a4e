import { connect } from "node:http2";
import { fromBinary } from "@bufbuild/protobuf";
import { afterAll, beforeAll, beforeEach, expect, test } from "@jest/globals";
import { CheckResponseSchema } from "#gen/envoy/service/auth/v3/external_auth_pb";
import { callOn } from "../bench/calls.ts";
import { enveloped } from "../bench/messages.ts";
import { CHECK_PATH, callCheck, checkRequest, DOORS, toTold } from "../support/gateway-doors.ts";
import { untilGauge } from "../support/history.ts";
import { type ReplicaSet, startReplicaSet } from "../support/replica-set.ts";
import { startService, type TestService } from "../support/service.ts";
import type { Weather } from "../support/tcp-proxy.ts";

let set: ReplicaSet;
let service: TestService;
let key: string;
beforeAll(async () => {
  set = await startReplicaSet({ size: 1 });
  // Nothing in memory is good for longer than its proof.
  const env = {
    MONGODB_URI: set.uri,
    LATCHKEY_OUTAGE_GRACE: "0s",
    LATCHKEY_READ_TIMEOUT: "5s",
    LATCHKEY_GATEWAY_TIMEOUT: "10s",
  };
  service = await startService({ env });
  ({ key } = await service.client().create({ scopes: ["read"] }));
}, 120_000);
afterAll(async () => {
  weather({});
  await service.stop();
  await set.stop();
});
beforeEach(async () => {
  weather({});
  await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 1);
}, 60_000);

const weather = (now: Weather) => set.toClients(set.members[0]!, now);
const asked = () => ({ headers: [["x-api-key", key] as [string, string]] });

/** The length-delimited fields of a message, in their order. */
function fieldsOf(bytes: Buffer): { field: number; content: string }[] {
  const found = [];
  for (let at = 0; at < bytes.length; ) {
    const field = bytes[at]! >> 3;
    let length = 0;
    let shift = 0;
    do {
      at += 1;
      length |= (bytes[at]! & 0x7f) << shift;
      shift += 7;
    } while (bytes[at]! >= 0x80);
    found.push({ field, content: bytes.subarray(at + 1, at + 1 + length).toString("hex") });
    at += 1 + length;
  }
  return found;
}

test("while MongoDB is away, every door says 503 and when to come back, and never that the key is bad", async () => {
  for (const ask of Object.values(DOORS))
    expect(await ask(service.server.address, asked())).toMatchObject({ status: 200 });
  weather({ cut: true });
  await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 0);
  for (const ask of Object.values(DOORS)) {
    expect(await ask(service.server.address, asked())).toEqual({
      status: 503,
      headers: { "content-type": "application/json", "cache-control": "no-store", "retry-after": "1" },
      body: { reason: "DB_UNAVAILABLE", message: expect.any(String) },
    });
    // What needs no database is answered as ever.
    expect(await ask(service.server.address, { headers: [] })).toMatchObject({ status: 401 });
  }
}, 60_000);

test("with MongoDB away and a key not in memory, a gateway that names no time is answered, the reason included, long before who may wait", async () => {
  const brief = await startService({ env: { MONGODB_URI: set.uri } });
  try {
    const { key: unseen } = await service.client().create({ scopes: ["read"] });
    weather({ blackHole: "both" });
    await untilGauge(brief, "latchkey_view_fresh", (fresh) => fresh === 0);
    const asked = { headers: [["x-api-key", unseen] as [string, string]] };
    // The first finds the outage out, the others are in it.
    for (const ask of Object.values(DOORS)) {
      const patient = brief
        .client()
        .verify({ key: unseen })
        .catch(() => "who may wait");
      expect(await Promise.race([patient, ask(brief.server.address, asked)])).toMatchObject({
        ...{ status: 503, body: { reason: "DB_UNAVAILABLE" } },
      });
      await patient;
    }
  } finally {
    weather({});
    await brief.stop();
  }
}, 60_000);

test("an outage is an error to an Envoy that knows of errors, and the same denial to one that does not", async () => {
  weather({ cut: true });
  await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 0);
  const message = checkRequest(asked());
  const fast = await callCheck(service.server.address, message);
  // Only spelled as clients spell it is a content type served without Connect.
  const headers = { "content-type": "Application/Proto" };
  const answer = await fetch(service.baseUrl + CHECK_PATH, { method: "POST", headers, body: message });
  const node = Buffer.from(await answer.arrayBuffer());
  for (const bytes of [fast, node]) {
    // Of a oneof's fields the last that is known counts.
    const [status, denied, error, ...more] = fieldsOf(bytes);
    expect([status, denied, error].map((one) => one?.field)).toEqual([1, 2, 5]);
    expect(error!.content).toBe(denied!.content);
    expect(more).toEqual([]);
    const response = fromBinary(CheckResponseSchema, bytes);
    expect(response.status?.code).toBe(14);
    expect(response.httpResponse.case).toBe("errorResponse");
    expect(toTold(response)).toMatchObject({ status: 503, body: { reason: "DB_UNAVAILABLE" } });
  }
  const denial = fromBinary(
    CheckResponseSchema,
    await callCheck(service.server.address, checkRequest({ headers: [] })),
  );
  expect(denial.httpResponse.case).toBe("deniedResponse");
}, 60_000);

test("a Check that would be late is answered before the gateway's deadline, and not by an RPC error", async () => {
  weather({ blackHole: "both" });
  await untilGauge(service, "latchkey_view_fresh", (fresh) => fresh === 0);
  const session = connect(service.baseUrl);
  const headers = { "content-type": "application/grpc", te: "trailers", "grpc-timeout": "300m" };
  const { body, trailers } = await callOn(session, {
    path: CHECK_PATH,
    headers,
    body: enveloped(checkRequest(asked())),
  });
  session.destroy();
  expect(trailers["grpc-status"]).toBe("0");
  const response = fromBinary(CheckResponseSchema, body.subarray(5));
  expect(response.httpResponse.case).toBe("errorResponse");
  // On a busy machine the database may count as away before the time is up.
  const reason = expect.stringMatching(/^(DEADLINE_EXCEEDED|DB_UNAVAILABLE)$/);
  expect(toTold(response)).toMatchObject({ status: 503, body: { reason } });
}, 60_000);
