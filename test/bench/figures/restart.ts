import { join } from "node:path";
import { freePort } from "../lab.ts";
import { type ManyKeysResult, manyKeysLoad, writeMessages } from "../loads.ts";
import { VERIFY_PATH, verifyRequest } from "../messages.ts";
import { atMostRow, type Row, round, skippedRow } from "../rows.ts";
import { median } from "../statistics.ts";
import type { Figure } from "./figure.ts";

const KEYS = 10_000;
const LABEL = "restart under load, 10,000 distinct keys, 128 in flight";

/** Clients that wait for the port, and ask for a new key each time from the first accepted connection on. */
export const restart: Figure = {
  name: "restart",
  title: "Restart under load",
  async take(lab) {
    if (lab.manyKeys === undefined)
      return { series: [], rows: [skippedRow(`${LABEL}: p99`, "≤ 250 ms", "its load needs Go")] };
    const messagesFile = writeMessages(join(lab.dir, "restart.messages"), lab.keys.slice(0, KEYS).map(verifyRequest));
    const results: ManyKeysResult[] = [];
    let argon2Runs: number | undefined;
    for (let round = 0; round < lab.options.rounds; round += 1) {
      const address = `127.0.0.1:${await freePort()}`;
      const loading = manyKeysLoad({
        ...{ binary: lab.manyKeys, serverPid: undefined, address, path: VERIFY_PATH, messagesFile },
        ...{ once: true, wait: true, seconds: 0, expect: "0801" },
      });
      const service = await lab.startService({ LATCHKEY_LISTEN: address });
      results.push(await loading);
      const runs = await argon2RunsOf(service.ops);
      if (runs !== undefined) argon2Runs = (argon2Runs ?? 0) + runs;
      await service.stop();
    }
    const total = (read: (result: ManyKeysResult) => number) => results.reduce((sum, result) => sum + read(result), 0);
    const unanswered = KEYS * results.length - total(({ answers }) => answers);
    const unexpected = total((result) => result.unexpected);
    const kinds = [...new Set(results.flatMap(({ errors }) => Object.keys(errors)))].join(", ");
    return {
      series: [],
      rows: [
        exactlyNone(`${LABEL}: errors`, unanswered + unexpected, kinds || undefined),
        // The stored argon2 hashes are placeholders: a run would have refused a good key.
        argon2Runs === undefined
          ? exactlyNone(`${LABEL}: argon2 runs`, unexpected, "told by the answers: a run would have refused its key")
          : exactlyNone(`${LABEL}: argon2 runs`, argon2Runs),
        atMostRow(
          `${LABEL}: p99`,
          median(results.map(({ p99Ms }) => p99Ms)),
          250,
          "ms",
          `p50 ${round(median(results.map(({ p50Ms }) => p50Ms)))} ms, max ${round(Math.max(...results.map(({ maxMs }) => maxMs)))} ms`,
        ),
      ],
    };
  },
};

function exactlyNone(label: string, found: number, note?: string): Row {
  return {
    ...{ label, reach: "0", found: String(found), reached: found === 0 },
    ...(note !== undefined && { note }),
  };
}

/** The counter of argon2 runs, where the service has one. */
async function argon2RunsOf(ops: string | undefined): Promise<number | undefined> {
  const metrics = await (await fetch(`http://${ops}/metrics`)).text();
  const runs = /^latchkey_(?:hash|argon2)\w*_total(?:\{[^}]*\})? (\d+)$/m.exec(metrics)?.[1];
  return runs === undefined ? undefined : Number(runs);
}
