import { interleave, verifyArm } from "../arms.ts";
import { badChecksum, unknownKey, wrongSecret } from "../records.ts";
import { ratioRow } from "../rows.ts";
import type { Figure } from "./figure.ts";

/** Keys that are no good, beside one that is. */
export const garbage: Figure = {
  name: "garbage",
  title: "Garbage beside good keys",
  async take(lab) {
    const server = await lab.startService();
    const good = lab.keys[0]!;
    const kinds = [
      { label: "bad checksum", key: badChecksum(good), outcome: "OUTCOME_MALFORMED", reach: 1 },
      { label: "unknown id, seen before", key: unknownKey(), outcome: "OUTCOME_NOT_FOUND", reach: 0.9 },
      { label: "wrong secret of a known id", key: wrongSecret(good), outcome: "OUTCOME_NOT_FOUND", reach: 0.9 },
    ];
    const arms = [await verifyArm(lab, { name: "Verify, gRPC, good", server, wire: "grpc", key: good })];
    for (const { label, key, outcome } of kinds) {
      arms.push(await verifyArm(lab, { name: `Verify, gRPC, ${label}`, server, wire: "grpc", key, outcome }));
    }
    const series = await interleave(lab, arms);
    return {
      series,
      rows: kinds.map(({ label, reach }, index) =>
        ratioRow(`garbage, ${label} ÷ warm Verify`, series[index + 1]!, series[0]!, reach),
      ),
    };
  },
};
