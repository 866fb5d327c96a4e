import { type Arm, interleave } from "../arms.ts";
import { measureProgram } from "../loads.ts";
import { round } from "../rows.ts";
import { median, perSecond } from "../statistics.ts";
import type { Figure } from "./figure.ts";

/** What a Verify would cost without fingerprints. */
export const argon2: Figure = {
  name: "argon2",
  title: "argon2id alone",
  async take(lab) {
    const program = await lab.startProgram("programs/argon2.js", { inFlight: 2 });
    const arms: Arm[] = [
      {
        name: "argon2id, 19 MiB, t=2, p=1",
        measure: (seconds) => measureProgram(program, seconds),
        check: async () => {},
      },
    ];
    const series = await interleave(lab, arms);
    const rate = median(series[0]!.samples.map(perSecond));
    return {
      series,
      rows: [{ label: "argon2id on one core", reach: "–", found: `${round(rate)}/s` }],
    };
  },
};
