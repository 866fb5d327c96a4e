import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Arm, interleave } from "../arms.ts";
import { goodManyKeysLoad, measureProgram, writeMessages } from "../loads.ts";
import { VERIFY_PATH, verifyRequest } from "../messages.ts";
import { COLLECTION } from "../records.ts";
import { ratioRow, skippedRow } from "../rows.ts";
import type { Figure } from "./figure.ts";

/** As many calls as the load keeps under way: 4 connections of 32. */
const IN_FLIGHT = 128;

/** Records that are not in memory: keys in turn, far more of them than the service may hold. */
export const cold: Figure = {
  name: "cold",
  title: "Cold Verify beside the driver's findOne",
  async take(lab) {
    const label = "cold Verify ÷ the driver's findOne, 128 in flight";
    if (lab.manyKeys === undefined) {
      return { series: [], rows: [skippedRow(label, "≥ 1 ×", "its load needs Go")] };
    }
    const binary = lab.manyKeys;
    const server = await lab.startService({ LATCHKEY_CACHE_KEYS: "256" });
    const messagesFile = writeMessages(join(lab.dir, "cold.messages"), lab.keys.map(verifyRequest));
    const load = (seconds: number) =>
      goodManyKeysLoad({
        ...{ binary, serverPid: server.pid, address: server.address, path: VERIFY_PATH, messagesFile, seconds },
        expect: "0801",
      });
    const ids = join(lab.dir, "ids.json");
    writeFileSync(ids, JSON.stringify(lab.keys.map((key) => key.split("_").at(-2))));
    const options = { uriFile: lab.uriFile, database: lab.database, collection: COLLECTION, ids, inFlight: IN_FLIGHT };
    const findOneProgram = await lab.startProgram("programs/find-one.js", options);
    const arms: Arm[] = [
      { name: "Verify, gRPC, cold", measure: load, check: async () => void (await load(0.1)) },
      {
        name: "the driver's findOne",
        measure: (seconds) => measureProgram(findOneProgram, seconds),
        check: async () => {},
      },
    ];
    const [verify, findOne] = await interleave(lab, arms);
    return { series: [verify!, findOne!], rows: [ratioRow(label, verify!, findOne!, 1)] };
  },
};
