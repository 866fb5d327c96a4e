import { join } from "node:path";
import { Code } from "@connectrpc/connect";
import { type Arm, interleave, sameCallArm, verifyArm } from "../arms.ts";
import { callHttp2 } from "../calls.ts";
import type { Lab } from "../lab.ts";
import { goodManyKeysLoad, writeMessages } from "../loads.ts";
import { countValid, enveloped, failedWith, headersOf, messageIn, methodNamed, requestWithKeys } from "../messages.ts";
import type { ServerProcess } from "../processes.ts";
import { type Row, ratioRow, skippedRow } from "../rows.ts";
import type { Figure } from "./figure.ts";

const KEYS_A_CALL = 100;
/** How a VerifyResponse with OUTCOME_VALID begins, in hex. */
const VALID = "0801";

/** Many keys a call, counted in keys. */
export const many: Figure = {
  name: "many",
  title: "Many keys a call",
  async take(lab) {
    const server = await lab.startService();
    const batch = await batchArm(lab, server, `BatchVerify, ${KEYS_A_CALL} a call`);
    const stream = await streamArm(lab, server);
    const unary = await verifyArm(lab, {
      ...{ name: "Verify, gRPC, one key a call", server, wire: "grpc", key: lab.keys[0]! },
    });
    const series = await interleave(
      lab,
      [unary, batch, stream].filter((arm) => typeof arm !== "string"),
    );
    const row = (label: string, reach: number, arm: Arm | string): Row =>
      typeof arm === "string"
        ? skippedRow(label, `≥ ${reach} ×`, arm)
        : ratioRow(label, series.find(({ name }) => name === arm.name)!, series[0]!, reach);
    return {
      series,
      rows: [
        row(`BatchVerify, ${KEYS_A_CALL} a call ÷ unary, in keys`, 10, batch),
        row("VerifyStream ÷ unary, in keys", 6, stream),
      ],
    };
  },
};

export async function batchArm(lab: Lab, server: ServerProcess, name: string): Promise<Arm | string> {
  const method = methodNamed("BatchVerify");
  if (method === undefined) return "the service has no BatchVerify yet";
  const keys = lab.keys.slice(0, KEYS_A_CALL);
  const arm = sameCallArm(lab, {
    name,
    server,
    call: { path: method.path, headers: headersOf("grpc"), body: enveloped(requestWithKeys(method.desc, keys)) },
    keysPerCall: KEYS_A_CALL,
    expect: (answer) => {
      const valid = countValid(method.desc, messageIn(answer));
      if (valid !== KEYS_A_CALL) throw new Error(`BatchVerify: ${valid} of ${KEYS_A_CALL} keys were good`);
    },
  });
  return arm.catch(whyNotServed("BatchVerify"));
}

async function streamArm(lab: Lab, server: ServerProcess): Promise<Arm | string> {
  const method = methodNamed("VerifyStream");
  if (method === undefined) return "the service has no VerifyStream yet";
  if (lab.manyKeys === undefined) return "its load needs Go";
  const binary = lab.manyKeys;
  const messages = lab.keys.slice(0, KEYS_A_CALL).map((key) => requestWithKeys(method.desc, [key]));
  const messagesFile = writeMessages(join(lab.dir, "stream.messages"), messages);
  const ask = async () => {
    const call = { path: method.path, headers: headersOf("grpc"), body: enveloped(messages[0]!) };
    const message = messageIn(await callHttp2(server.address, call));
    if (countValid(method.desc, message) !== 1) throw new Error("VerifyStream: a good key was not good");
    return message;
  };
  const measureStream = async (): Promise<Arm> => {
    // Where a VerifyResponse that begins with OUTCOME_VALID lies in the answer; what is around it has a fixed length.
    const expectAt = (await ask()).indexOf(Buffer.from(VALID, "hex"));
    return {
      name: "VerifyStream",
      measure: (seconds) =>
        goodManyKeysLoad({
          ...{ binary, serverPid: server.pid, address: server.address, path: method.path, messagesFile },
          ...{ mode: "stream", seconds, inFlight: 256, expect: VALID, expectAt },
        }),
      check: async () => void (await ask()),
    };
  };
  return measureStream().catch(whyNotServed("VerifyStream"));
}

/** The contract may be ahead of the service: the method is unknown to it, or closed. */
function whyNotServed(method: string): (error: unknown) => string {
  return (error) => {
    if (failedWith(error, Code.Unimplemented, Code.Unauthenticated)) return `the service does not serve ${method} yet`;
    throw error;
  };
}
