import { type Arm, interleave, type Series, verifyArm } from "../arms.ts";
import { callHttp2 } from "../calls.ts";
import type { Lab } from "../lab.ts";
import type { Shape } from "../loads.ts";
import { headersOf, VERIFY_PATH, verifyBody } from "../messages.ts";
import { type ServerProcess, settled } from "../processes.ts";
import { type Row, ratioRow, round, skippedRow } from "../rows.ts";
import { checkArm } from "./check.ts";
import type { Figure, Findings } from "./figure.ts";
import { batchArm } from "./many.ts";

const SHAPES: Shape[] = [
  { connections: 4, inFlight: 32 },
  { connections: 64, inFlight: 1 },
];

/** This build beside another one, in the same minutes on the same database, and both beside a server in C. */
export const builds: Figure = {
  name: "builds",
  title: "This build beside another one",
  async take(lab) {
    const { beside } = lab.options;
    const mine = await lab.startService();
    const other = beside && (await lab.startService({}, [], beside));
    const findings: Findings = { series: [], rows: [] };
    const add = ({ series, rows }: Findings) => {
      findings.series.push(...series);
      findings.rows.push(...rows);
    };
    if (other !== undefined) findings.rows.push(await memoryAtRest(mine, other));
    for (const shape of SHAPES) add(await warm(lab, shape, mine, other));
    if (other === undefined) {
      findings.rows.push(skippedRow("this build ÷ another", "≥ 0.97 ×", "no --beside DIR was given"));
      return findings;
    }
    add(
      await pair(
        lab,
        "Check",
        await checkArm(lab, mine, "Check"),
        await checkArm(lab, other, "Check, the other build"),
      ),
    );
    const batches = [
      await batchArm(lab, mine, "BatchVerify"),
      await batchArm(lab, other, "BatchVerify, the other build"),
    ] as const;
    if (batches.every((arm) => typeof arm !== "string"))
      add(await pair(lab, "BatchVerify", ...(batches as [Arm, Arm])));
    return findings;
  },
};

async function memoryAtRest(mine: ServerProcess, other: ServerProcess): Promise<Row> {
  const [here, there] = [await settled(mine), await settled(other)];
  const mebibytes = (bytes: number) => round(bytes / 2 ** 20);
  return {
    ...{ label: "memory at rest, this build ÷ the other", reach: "≤ 1 ×", found: `${round(here / there)} ×` },
    ...{ reached: here <= there, note: `${mebibytes(here)} and ${mebibytes(there)} MiB` },
  };
}

async function warm(lab: Lab, shape: Shape, mine: ServerProcess, other: ServerProcess | undefined): Promise<Findings> {
  const title = `Verify, ${shape.connections} × ${shape.inFlight}`;
  const parts = { wire: "grpc", key: lab.keys[0]!, shape } as const;
  const arms = [await verifyArm(lab, { ...parts, server: mine, name: title })];
  if (other !== undefined)
    arms.push(await verifyArm(lab, { ...parts, server: other, name: `${title}, the other build` }));
  const call = { path: VERIFY_PATH, headers: headersOf("grpc"), body: verifyBody("grpc", parts.key) };
  const nghttpd = await lab.startNghttpd(VERIFY_PATH, (await callHttp2(mine.address, call)).body);
  if (nghttpd !== undefined) arms.push(await verifyArm(lab, { ...parts, server: nghttpd, name: `${title}, nghttpd` }));
  const series = await interleave(lab, arms);
  const [here, ...rest] = series;
  const there = other && rest.shift();
  const [inC] = rest;
  const rows: Row[] = [];
  if (there !== undefined) rows.push(ratioRow(`${title}: this build ÷ the other`, here!, there, 0.97));
  for (const [name, one] of Object.entries({ "this build": here, "the other build": there })) {
    if (one === undefined) continue;
    const label = `${title}: ${name} ÷ nghttpd`;
    rows.push(inC === undefined ? skippedRow(label, "–", "nghttpd is not installed") : ratioRow(label, one, inC));
  }
  return { series, rows };
}

async function pair(lab: Lab, title: string, mine: Arm, other: Arm): Promise<Findings> {
  const series: Series[] = await interleave(lab, [mine, other]);
  return { series, rows: [ratioRow(`${title}: this build ÷ the other`, series[0]!, series[1]!, 0.97)] };
}
