import { join } from "node:path";
import { type Arm, interleave, sameCallArm, verifyArm } from "../arms.ts";
import type { Lab } from "../lab.ts";
import { goodManyKeysLoad, writeMessages } from "../loads.ts";
import { countValid, enveloped, headersOf, messageIn, methodNamed, requestWithKeys } from "../messages.ts";
import type { ServerProcess } from "../processes.ts";
import { type Row, ratioRow, skippedRow } from "../rows.ts";
import type { Figure } from "./figure.ts";

const KEYS_A_CALL = 100;

/** Many keys a call, counted in keys. */
export const many: Figure = {
  name: "many",
  title: "Many keys a call",
  async take(lab) {
    const server = await lab.startService();
    const batch = await batchArm(lab, server);
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

async function batchArm(lab: Lab, server: ServerProcess): Promise<Arm | string> {
  const method = methodNamed("BatchVerify");
  if (method === undefined) return "the service has no BatchVerify yet";
  const keys = lab.keys.slice(0, KEYS_A_CALL);
  return sameCallArm(lab, {
    name: `BatchVerify, ${KEYS_A_CALL} a call`,
    server,
    call: { path: method.path, headers: headersOf("grpc"), body: enveloped(requestWithKeys(method.desc, keys)) },
    keysPerCall: KEYS_A_CALL,
    expect: (answer) => {
      const valid = countValid(method.desc, messageIn(answer));
      if (valid !== KEYS_A_CALL) throw new Error(`BatchVerify: ${valid} of ${KEYS_A_CALL} keys were good`);
    },
  });
}

async function streamArm(lab: Lab, server: ServerProcess): Promise<Arm | string> {
  const method = methodNamed("VerifyStream");
  if (method === undefined) return "the service has no VerifyStream yet";
  if (lab.manyKeys === undefined) return "its load needs Go";
  const binary = lab.manyKeys;
  const keys = lab.keys.slice(0, KEYS_A_CALL);
  const messagesFile = writeMessages(
    join(lab.dir, "stream.messages"),
    keys.map((key) => requestWithKeys(method.desc, [key])),
  );
  // The answer is one VerifyResponse a message, which begins with its outcome, or something around it.
  const expect = method.desc.output.field.outcome?.number === 1 ? { expect: "0801" } : {};
  const load = (seconds: number) =>
    goodManyKeysLoad({
      ...{ binary, serverPid: server.pid, address: server.address, path: method.path, messagesFile },
      ...{ mode: "stream", seconds, inFlight: 256, ...expect },
    });
  return {
    name: "VerifyStream",
    measure: load,
    check: async () => void (await load(0.1)),
  };
}
