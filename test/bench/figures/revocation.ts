import { type ClientHttp2Session, connect } from "node:http2";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { ApiKeyService, Outcome, RevokeRequestSchema, VerifyResponseSchema } from "#gen/latchkey/v1/api_key_service_pb";
import { callOn } from "../calls.ts";
import { enveloped, headersOf, messageIn, VERIFY_PATH, verifyBody } from "../messages.ts";
import { atMostRow, round } from "../rows.ts";
import { quantile } from "../statistics.ts";
import type { Figure } from "./figure.ts";

const REVOKE_PATH = `/${ApiKeyService.typeName}/${ApiKeyService.method.revoke.name}`;
const GIVE_UP_MS = 30_000;

/** One replica revokes; another is asked all the while. From the acknowledgement to the first refusal as the asker sees it. */
export const revocation: Figure = {
  name: "revocation",
  title: "Revocation seen by another replica",
  async take(lab) {
    const { revocations } = lab.options;
    const database = "bench_revocation";
    const keys = await lab.storeKeys(database, revocations);
    const [here, there] = [
      await lab.startService({ MONGODB_DATABASE: database }),
      await lab.startService({ MONGODB_DATABASE: database }),
    ];
    const authorization = `Bearer ${await lab.adminToken()}`;
    const revoker = connect(`http://${here.address}`);
    const asker = connect(`http://${there.address}`);
    const refusedAfterMs: number[] = [];
    const acceptedAfterMs: number[] = [];
    try {
      for (const [index, key] of keys.entries()) {
        const found = await revokeWhileAsking(key, asker, () =>
          revoke(revoker, { ...headersOf("grpc"), authorization }, `user-${index}`),
        );
        refusedAfterMs.push(found.refusedAfterMs);
        acceptedAfterMs.push(found.acceptedAfterMs);
      }
    } finally {
      revoker.close();
      asker.close();
    }
    const p50 = quantile(refusedAfterMs, 0.5);
    const p99 = quantile(refusedAfterMs, 0.99);
    const late = acceptedAfterMs.filter((ms) => ms > 0).length;
    const lateNote = late > 0 ? `, the last ${round(Math.max(...acceptedAfterMs))} ms after it` : "";
    return {
      series: [],
      rows: [
        atMostRow(
          `revocation seen by another replica after the ack, p99 of ${revocations}`,
          p99,
          10,
          "ms",
          `p50 ${round(p50)} ms, max ${round(Math.max(...refusedAfterMs))} ms; ${late} calls that began after the ack were accepted${lateNote}`,
        ),
      ],
    };
  },
};

async function revokeWhileAsking(key: string, asker: ClientHttp2Session, revokeKey: () => Promise<void>) {
  const call = { path: VERIFY_PATH, headers: headersOf("grpc"), body: verifyBody("grpc", key) };
  const ask = async () => fromBinary(VerifyResponseSchema, messageIn(await callOn(asker, call))).outcome;
  if ((await ask()) !== Outcome.VALID) throw new Error("A key was not good before it was revoked.");
  let ackMs: number | undefined;
  const revoking = revokeKey().then(() => {
    ackMs = performance.now();
  });
  let lastAcceptedMs = 0;
  for (;;) {
    const startedMs = performance.now();
    const outcome = await ask();
    const answeredMs = performance.now();
    if (outcome === Outcome.REVOKED) {
      await revoking;
      return {
        refusedAfterMs: Math.max(0, answeredMs - ackMs!),
        acceptedAfterMs: Math.max(0, lastAcceptedMs - ackMs!),
      };
    }
    if (outcome !== Outcome.VALID) throw new Error(`While it was revoked, a key was ${Outcome[outcome]}.`);
    lastAcceptedMs = startedMs;
    if (ackMs !== undefined && answeredMs - ackMs > GIVE_UP_MS) throw new Error("A revoked key went on working.");
  }
}

async function revoke(session: ClientHttp2Session, headers: Record<string, string>, userId: string): Promise<void> {
  const body = enveloped(toBinary(RevokeRequestSchema, create(RevokeRequestSchema, { userId })));
  messageIn(await callOn(session, { path: REVOKE_PATH, headers, body }));
}
