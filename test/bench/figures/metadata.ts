import { parseAnyKey } from "../../../src/keys/text.ts";
import { KEYS } from "../../../src/mongo/schema.ts";
import { interleave, verifyArm } from "../arms.ts";
import { ratioRow } from "../rows.ts";
import type { Figure } from "./figure.ts";

const ENTRIES = Array.from({ length: 8 }, (_, index) => `name-${index}=${"v".repeat(32 - "name-0".length)}`);

/** Warm Verify of a key with eight entries of metadata of 32 bytes, beside one without. */
export const metadata: Figure = {
  name: "metadata",
  title: "Warm Verify of a key with metadata",
  async take(lab) {
    const server = await lab.startService();
    const [without, rich] = lab.keys;
    const { id } = parseAnyKey(rich!)!;
    const records = lab.client.db(lab.database).collection<{ _id: string }>(KEYS);
    await records.updateOne({ _id: id }, { $set: { metadata: ENTRIES }, $inc: { rev: 1 } });
    const parts = { server, wire: "grpc" } as const;
    const [plain, described] = await interleave(lab, [
      await verifyArm(lab, { ...parts, key: without!, name: "Verify, no metadata" }),
      await verifyArm(lab, { ...parts, key: rich!, name: "Verify, 8 entries of metadata" }),
    ]);
    return {
      series: [plain!, described!],
      rows: [ratioRow("warm Verify, 8 entries of metadata ÷ none", described!, plain!, 0.9)],
    };
  },
};
