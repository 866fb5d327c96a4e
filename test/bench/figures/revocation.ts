import { type ClientHttp2Session, connect } from "node:http2";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { ApiKeyService, Outcome, RevokeRequestSchema, VerifyResponseSchema } from "#gen/latchkey/v1/api_key_service_pb";
import { callOn } from "../calls.ts";
import { enveloped, failedWith, headersOf, messageIn, VERIFY_PATH, verifyBody } from "../messages.ts";
import { atMostRow, round } from "../rows.ts";
import { quantile } from "../statistics.ts";
import type { Figure } from "./figure.ts";

const REVOKE_PATH = `/${ApiKeyService.typeName}/${ApiKeyService.method.revoke.name}`;
const GIVE_UP_MS = 30_000;
/** Of calls for one key. */
const MOST_UNANSWERED = 100;

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
    const found: Seen[] = [];
    try {
      for (const [index, key] of keys.entries()) {
        const revokeKey = () => revoke(revoker, { ...headersOf("grpc"), authorization }, `user-${index}`);
        found.push(await revokeWhileAsking(key, asker, revokeKey));
      }
    } finally {
      revoker.close();
      asker.close();
    }
    const refusedAfterMs = found.map((seen) => seen.refusedAfterMs);
    const acceptedAfterMs = found.map((seen) => seen.acceptedAfterMs);
    const unanswered = found.reduce((sum, seen) => sum + seen.unanswered, 0);
    const p50 = quantile(refusedAfterMs, 0.5);
    const p99 = quantile(refusedAfterMs, 0.99);
    const late = acceptedAfterMs.filter((ms) => ms > 0).length;
    const lateNote = late > 0 ? `, the last ${round(Math.max(...acceptedAfterMs))} ms after it` : "";
    const unansweredNote = unanswered > 0 ? `; ${unanswered} calls could not be answered` : "";
    return {
      series: [],
      rows: [
        atMostRow(
          `revocation seen by another replica after the ack, p99 of ${revocations}`,
          p99,
          10,
          "ms",
          `p50 ${round(p50)} ms, max ${round(Math.max(...refusedAfterMs))} ms; ${late} calls that began after the ack were accepted${lateNote}${unansweredNote}`,
        ),
      ],
    };
  },
};

interface Seen {
  refusedAfterMs: number;
  /** When the last accepted call began, after the acknowledgement; 0: before it. */
  acceptedAfterMs: number;
  /** Calls that failed with UNAVAILABLE. */
  unanswered: number;
}

async function revokeWhileAsking(
  key: string,
  asker: ClientHttp2Session,
  revokeKey: () => Promise<void>,
): Promise<Seen> {
  const call = { path: VERIFY_PATH, headers: headersOf("grpc"), body: verifyBody("grpc", key) };
  let unanswered = 0;
  const ask = async (): Promise<Outcome> => {
    for (;;) {
      try {
        return fromBinary(VerifyResponseSchema, messageIn(await callOn(asker, call))).outcome;
      } catch (error) {
        unanswered += 1;
        if (!failedWith(error, Code.Unavailable) || unanswered > MOST_UNANSWERED) throw error;
      }
    }
  };
  if ((await ask()) !== Outcome.VALID) throw new Error("A key was not good before it was revoked.");
  let ackMs: number | undefined;
  let failure: unknown;
  const revoking = revokeKey().then(
    () => {
      ackMs = performance.now();
    },
    (error: unknown) => {
      failure = error;
    },
  );
  let lastAcceptedMs = 0;
  for (;;) {
    const startedMs = performance.now();
    const outcome = await ask();
    const answeredMs = performance.now();
    if (outcome === Outcome.REVOKED) {
      await revoking;
      if (failure !== undefined) throw failure;
      return {
        refusedAfterMs: Math.max(0, answeredMs - ackMs!),
        acceptedAfterMs: Math.max(0, lastAcceptedMs - ackMs!),
        unanswered,
      };
    }
    if (outcome !== Outcome.VALID) throw new Error(`While it was revoked, a key was ${Outcome[outcome]}.`);
    if (failure !== undefined) throw failure;
    lastAcceptedMs = startedMs;
    if (ackMs !== undefined && answeredMs - ackMs > GIVE_UP_MS) throw new Error("A revoked key went on working.");
  }
}

async function revoke(session: ClientHttp2Session, headers: Record<string, string>, userId: string): Promise<void> {
  const body = enveloped(toBinary(RevokeRequestSchema, create(RevokeRequestSchema, { userId })));
  messageIn(await callOn(session, { path: REVOKE_PATH, headers, body }));
}
