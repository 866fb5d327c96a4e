import { execFile } from "node:child_process";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { envoyGrpc, type RunningGateway, startGateway } from "../../gateways/gateways.ts";
import { type Arm, interleave } from "../arms.ts";
import type { Lab } from "../lab.ts";
import { parseH2load } from "../loads.ts";
import { cpuSecondsOf } from "../machine.ts";
import { atMostRow, round, skippedRow } from "../rows.ts";
import { median, quantile } from "../statistics.ts";
import type { Figure } from "./figure.ts";

const LABEL = "Check through Envoy, added to the p50 of Envoy alone";
const REACH_MS = 0.5;
/** One connection, so that calls are spread evenly: several would send theirs at the same moments, and wait for each other. */
const CALLS_A_SECOND = 500;

/** What a client of a gateway waits longer, because the gateway asks. */
export const envoy: Figure = {
  name: "envoy",
  title: "A request through Envoy, with Check and without",
  async take(lab) {
    let binary: string;
    try {
      binary = await envoyGrpc.find();
    } catch (error) {
      return { series: [], rows: [skippedRow(LABEL, `≤ ${REACH_MS} ms`, (error as Error).message)] };
    }
    const service = await lab.startService();
    const body = Buffer.from("hello").toString("base64");
    const app = await lab.startProgram("responders/bare-http1.js", { headers: {}, trailers: {}, body, date: true });
    const addresses = { latchkey: portOf(service.address), upstream: portOf(app.address) };
    const alone = await startGateway(envoyGrpc, binary, addresses, withoutCheck);
    const asking = await startGateway(envoyGrpc, binary, addresses);
    try {
      const arms = [arm(lab, "Envoy alone", alone, 200), arm(lab, "Envoy with Check", asking, 401)];
      const [without, withCheck] = await interleave(lab, arms);
      const p50 = (index: number) => [without!, withCheck!].map(({ samples }) => samples[index]!.p50Ms!);
      const added = without!.samples.map((_, index) => p50(index)[1]! - p50(index)[0]!);
      const all = [without!, withCheck!].map(({ samples }) => round(median(samples.map(({ p50Ms }) => p50Ms!))));
      const note = `at ${CALLS_A_SECOND.toLocaleString("en")}/s: ${all[0]} ms alone, ${all[1]} ms with Check`;
      return { series: [without!, withCheck!], rows: [atMostRow(LABEL, median(added), REACH_MS, "ms", note)] };
    } finally {
      await Promise.all([alone.stop(), asking.stop()]);
    }
  },
};

/** `strangerGets`: the status of a request that has no key. */
function arm(lab: Lab, name: string, gateway: RunningGateway, strangerGets: number): Arm {
  const url = `http://127.0.0.1:${gateway.port}/`;
  const authorization = `Bearer ${lab.keys[0]}`;
  return {
    name,
    async check() {
      const statuses = [await fetch(url, { headers: { authorization } }), await fetch(url)].map(({ status }) => status);
      if (statuses.join() !== `200,${strangerGets}`) throw new Error(`${name}: the answers were ${statuses}`);
    },
    async measure(seconds) {
      const log = join(lab.dir, "envoy.log");
      rmSync(log, { force: true });
      const before = cpuSecondsOf(gateway.pid);
      const { stdout } = await promisify(execFile)("h2load", [
        ...["--h1", "-c", "1", "--rps", String(CALLS_A_SECOND)],
        ...["-D", `${Math.round(seconds * 1_000)}ms`, "--log-file", log, "-H", `authorization: ${authorization}`, url],
      ]);
      const cpuSeconds = cpuSecondsOf(gateway.pid) - before;
      const { answers } = parseH2load(stdout);
      // Start, status, duration in microseconds.
      const rows = readFileSync(log, "utf8").trim().split("\n");
      const tookMs = rows.map((row) => Number(row.split("\t")[2]) / 1_000);
      return { answers, seconds, cpuSeconds, p50Ms: quantile(tookMs, 0.5), p99Ms: quantile(tookMs, 0.99) };
    },
  };
}

/** The same Envoy, asking nobody. */
function withoutCheck(text: string): string {
  const changed = text
    .replace(/ +- name: envoy\.filters\.http\.ext_authz\n[\s\S]*?(?= +- name: envoy\.filters\.http\.router)/, "")
    .replace(/ +# The scopes a key[\s\S]*?latchkey-scopes.*\n/, "");
  if (changed.includes("ext_authz.v3")) throw new Error("The configuration of Envoy asks in an unexpected place.");
  return changed;
}

function portOf(address: string): number {
  return Number(address.split(":").at(-1));
}
