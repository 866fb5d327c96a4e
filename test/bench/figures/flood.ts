import { join } from "node:path";
import { type Arm, interleave } from "../arms.ts";
import { goodManyKeysLoad, manyKeysLoad, writeMessages } from "../loads.ts";
import { VERIFY_PATH, verifyRequest } from "../messages.ts";
import { ratioRow, skippedRow } from "../rows.ts";
import type { Figure } from "./figure.ts";

const LABEL = "good keys beside a flood of unknown ids ÷ beside good keys";
const GOOD_KEYS = 1_000;

/** What a client of good keys gets beside an equal one that asks for ids nobody has seen. */
export const flood: Figure = {
  name: "flood",
  title: "A client of good keys beside a flood",
  async take(lab) {
    if (lab.manyKeys === undefined) return { series: [], rows: [skippedRow(LABEL, "≥ 0.8 ×", "its load needs Go")] };
    const server = await lab.startService();
    const messagesFile = writeMessages(
      join(lab.dir, "flood.messages"),
      lab.keys.slice(0, GOOD_KEYS).map(verifyRequest),
    );
    const client = {
      ...{ binary: lab.manyKeys, serverPid: server.pid, address: server.address, path: VERIFY_PATH },
      ...{ connections: 2, warmUpSeconds: 0.5 },
    };
    const good = (seconds: number) => goodManyKeysLoad({ ...client, messagesFile, seconds, expect: "0801" });
    // The neighbour starts with the client and stays until after it, so that all that is measured is beside it.
    const neighbour = (mode: "unary" | "flood", seconds: number) =>
      manyKeysLoad({ ...client, mode, seconds: seconds + 0.3, ...(mode === "unary" && { messagesFile }) });
    const beside = (mode: "unary" | "flood") => async (seconds: number) => {
      const [sample, other] = await Promise.all([good(seconds), neighbour(mode, seconds)]);
      // A flood may be refused, but it has to be there.
      const refused = Object.values(other.errors).reduce((sum, count) => sum + count, 0);
      if (other.answers + refused === 0) throw new Error("The neighbour got no answers: it was not there.");
      return sample;
    };
    const check = async () => void (await good(1));
    const arms: Arm[] = [
      { name: "a client of good keys beside a flood", measure: beside("flood"), check },
      { name: "a client of good keys beside its equal", measure: beside("unary"), check },
    ];
    const [flooded, calm] = await interleave(lab, arms);
    // By the clock: the server's CPU time is the neighbour's too.
    return { series: [flooded!, calm!], rows: [ratioRow(LABEL, flooded!, calm!, 0.8, "answers/s")] };
  },
};
