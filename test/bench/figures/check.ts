import { type Arm, interleave, sameCallArm, verifyArm } from "../arms.ts";
import type { Lab } from "../lab.ts";
import { CHECK_PATH, checkRequest, enveloped, expectAllowed, headersOf } from "../messages.ts";
import type { ServerProcess } from "../processes.ts";
import { ratioRow } from "../rows.ts";
import type { Figure } from "./figure.ts";

/** What a gateway asks about each request, beside the question alone. */
export const check: Figure = {
  name: "check",
  title: "Envoy's Check beside Verify",
  async take(lab) {
    const server = await lab.startService();
    const key = lab.keys[0]!;
    const arms = [
      await verifyArm(lab, { name: "Verify, gRPC", server, wire: "grpc", key }),
      await checkArm(lab, server, "Check, as Envoy asks"),
    ];
    const [verify, asked] = await interleave(lab, arms);
    return { series: [verify!, asked!], rows: [ratioRow("Check ÷ warm Verify, gRPC", asked!, verify!, 0.75)] };
  },
};

export function checkArm(lab: Lab, server: ServerProcess, name: string): Promise<Arm> {
  const body = enveloped(checkRequest(lab.keys[0]!));
  return sameCallArm(lab, {
    ...{ name, server, expect: expectAllowed },
    call: { path: CHECK_PATH, headers: headersOf("grpc"), body },
  });
}
