import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { VARIABLES } from "../../../src/service/settings.ts";
import { type Arm, interleave } from "../arms.ts";
import { compiled } from "../lab.ts";
import { goodManyKeysLoad, writeMessages } from "../loads.ts";
import { residentBytesOf } from "../machine.ts";
import { VERIFY_PATH, verifyRequest } from "../messages.ts";
import type { ServerProcess } from "../processes.ts";
import { atMostRow, ratioRow, round, skippedRow } from "../rows.ts";
import { median } from "../statistics.ts";
import type { Figure } from "./figure.ts";

const SMALL = 1_000;
const STARTS = 5;

/** Many keys stored, a fifth of them asked for in turn, beside a thousand. */
export const large: Figure = {
  name: "large",
  title: "Many keys stored and in rotation",
  async take(lab) {
    const { largeKeys } = lab.options;
    const rotation = Math.floor(largeKeys / 5);
    const cache = { LATCHKEY_CACHE_KEYS: String(Math.ceil(rotation * 1.25)) };
    const labels = {
      rate: `warm, ${count(rotation)} of ${count(largeKeys)} keys in rotation ÷ ${count(SMALL)} keys`,
      memory: "resident memory a cached key",
      start: `start with ${count(largeKeys)} keys stored ÷ with ${count(SMALL)}`,
    };
    if (lab.manyKeys === undefined) {
      const why = "its load needs Go";
      return {
        series: [],
        rows: [skippedRow(labels.rate, "≥ 0.9 ×", why), skippedRow(labels.memory, "≤ 1 KiB", why)],
      };
    }
    const binary = lab.manyKeys;
    lab.say(`  storing ${count(largeKeys)} keys`);
    const startedMs = performance.now();
    const keys = await lab.storeKeys("bench_large", largeKeys, rotation);
    lab.say(`  stored in ${round((performance.now() - startedMs) / 1_000)} s`);
    const few = await lab.storeKeys("bench_small", SMALL);
    const inLarge = { ...cache, MONGODB_DATABASE: "bench_large" };
    const inSmall = { ...cache, MONGODB_DATABASE: "bench_small" };

    const startMs = async (env: Record<string, string>) => {
      const { readyMs, stop } = await lab.startService(env);
      await stop();
      return readyMs;
    };
    const starts: number[] = [];
    for (let index = 0; index < (lab.options.quick ? 1 : STARTS); index += 1) {
      starts.push((await startMs(inLarge)) / (await startMs(inSmall)));
    }

    const all = writeMessages(join(lab.dir, "large.messages"), keys.map(verifyRequest));
    const first = writeMessages(join(lab.dir, "first.messages"), keys.slice(0, SMALL).map(verifyRequest));
    const small = writeMessages(join(lab.dir, "small.messages"), few.map(verifyRequest));
    const load = (server: ServerProcess, messagesFile: string, how: { once?: boolean; seconds: number }) =>
      goodManyKeysLoad({
        ...{ binary, serverPid: server.pid, address: server.address, path: VERIFY_PATH, messagesFile, ...how },
        expect: "0801",
      });

    const collector = pathToFileURL(compiled("programs/collect-on-signal.js")).href;
    const server = await lab.startService(inLarge, ["--expose-gc", "--import", collector]);
    const resident = async () => {
      for (let time = 0; time < 3; time += 1) {
        process.kill(server.pid, "SIGUSR2");
        await sleep(1_000);
      }
      return residentBytesOf(server.pid);
    };
    // As many calls before as after, so that what calls alone leave behind is in both.
    const passes = Math.max(1, Math.floor(rotation / SMALL / 10));
    for (let pass = 0; pass < passes; pass += 1) await load(server, first, { once: true, seconds: 0 });
    await load(server, first, { seconds: lab.options.warmUpSeconds * 2 });
    const before = await resident();
    for (let pass = 0; pass < 2; pass += 1) await load(server, all, { once: true, seconds: 0 });
    const perKey = ((await resident()) - before) / (rotation - SMALL);

    const other = await lab.startService(inSmall);
    const check = async () => {};
    const arms: Arm[] = [
      { name: labels.rate.split(" ÷ ")[0]!, measure: (seconds) => load(server, all, { seconds }), check },
      { name: `warm, ${count(SMALL)} keys`, measure: (seconds) => load(other, small, { seconds }), check },
    ];
    const [many, thousand] = await interleave(lab, arms);
    const bounded = "LATCHKEY_CACHE_KEYS" in VARIABLES;
    return {
      series: [many!, thousand!],
      rows: [
        ratioRow(labels.rate, many!, thousand!, 0.9),
        bounded
          ? atMostRow(labels.memory, perKey / 1_024, 1, "KiB")
          : skippedRow(labels.memory, "≤ 1 KiB", "the service keeps no records in memory yet"),
        { ...atMostRow(labels.start, median(starts), 1.1, "×"), note: `median of ${starts.length}` },
      ],
    };
  },
};

function count(value: number): string {
  return value.toLocaleString("en");
}
