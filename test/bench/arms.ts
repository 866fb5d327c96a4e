import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Answer, type Call, callHttp1, callHttp2 } from "./calls.ts";
import type { Lab } from "./lab.ts";
import { checkByH2load, h2load, type Shape } from "./loads.ts";
import { headersOf, outcomeOf, VERIFY_PATH, verifyBody, type Wire } from "./messages.ts";
import type { ServerProcess } from "./processes.ts";
import type { Sample } from "./statistics.ts";

/** One thing that is measured. */
export interface Arm {
  name: string;
  /** Under load for `seconds`. Throws when an answer was not the expected one. */
  measure(seconds: number): Promise<Sample>;
  /** Asks once, and throws unless the decoded answer is the expected one. */
  check(): Promise<void>;
}

export interface Series {
  name: string;
  samples: Sample[];
}

/** Measures the arms in turn, A B A B …, each warmed up first and checked before and after. */
export async function interleave(lab: Lab, arms: Arm[]): Promise<Series[]> {
  const { rounds, seconds, warmUpSeconds } = lab.options;
  const series = arms.map(({ name }): Series => ({ name, samples: [] }));
  for (const { check, measure } of arms) {
    await check();
    await measure(warmUpSeconds);
  }
  for (let round = 0; round < rounds; round += 1) {
    for (const [index, { name, measure }] of arms.entries()) {
      const sample = await measure(seconds);
      series[index]!.samples.push(sample);
      lab.say(`  ${name}: ${Math.round(sample.answers / sample.seconds).toLocaleString("en")}/s (round ${round + 1})`);
    }
  }
  for (const { check } of arms) await check();
  return series;
}

export interface SameCallParts {
  name: string;
  server: ServerProcess;
  http1?: boolean;
  call: Call;
  /** Throws unless the answer is the expected one. */
  expect: (answer: Answer) => void;
  /** Keys that a call asks about. Default: 1. */
  keysPerCall?: number;
  shape?: Shape;
}

/** One call, repeated by h2load. */
export async function sameCallArm(lab: Lab, parts: SameCallParts): Promise<Arm> {
  const { name, server, http1 = false, call, expect, keysPerCall = 1, shape } = parts;
  const ask = () => (http1 ? callHttp1 : callHttp2)(server.address, call);
  const sample = await ask();
  expect(sample);
  const bodyFile = join(lab.dir, `${name.replace(/\W+/g, "-")}.body`);
  writeFileSync(bodyFile, call.body);
  const target = {
    ...{ serverPid: server.pid, address: server.address, path: call.path, headers: call.headers },
    ...{ bodyFile, http1, answerBytes: sample.body.length, shape },
  };
  return {
    name,
    async check() {
      expect(await ask());
      await checkByH2load(target);
    },
    async measure(seconds) {
      const measured = await h2load(target, seconds);
      return { ...measured, answers: measured.answers * keysPerCall };
    },
  };
}

export interface VerifyParts {
  name: string;
  server: ServerProcess;
  wire: Wire;
  http1?: boolean;
  key: string;
  headers?: Record<string, string>;
  outcome?: string;
  shape?: Shape;
}

/** Verify of one key. */
export function verifyArm(lab: Lab, parts: VerifyParts): Promise<Arm> {
  const { wire, key, headers = {}, outcome = "OUTCOME_VALID", ...rest } = parts;
  return sameCallArm(lab, {
    ...rest,
    call: { path: VERIFY_PATH, headers: { ...headersOf(wire), ...headers }, body: verifyBody(wire, key) },
    expect: (answer) => {
      const found = outcomeOf(wire, answer);
      if (found !== outcome) throw new Error(`${rest.name}: the answer was ${found}, not ${outcome}`);
    },
  });
}

/** A responder that gives the answer the service gave to the same call. */
export async function responderArm(lab: Lab, responder: string, parts: Omit<VerifyParts, "outcome">): Promise<Arm> {
  const { server: service, wire, key, http1 = false, headers = {} } = parts;
  const call = { path: VERIFY_PATH, headers: { ...headersOf(wire), ...headers }, body: verifyBody(wire, key) };
  // Twice: the first answer may come from another path than the ones that are measured.
  await (http1 ? callHttp1 : callHttp2)(service.address, call);
  const answer = await (http1 ? callHttp1 : callHttp2)(service.address, call);
  const server = await lab.startProgram(`responders/${responder}.js`, fixed(answer));
  return verifyArm(lab, { ...parts, server });
}

const CONNECTION_HEADERS = new Set(["date", "connection", "keep-alive", "transfer-encoding"]);

function fixed({ headers, trailers, body }: Answer) {
  const kept = Object.entries(headers).filter(([name]) => !CONNECTION_HEADERS.has(name));
  return { headers: Object.fromEntries(kept), trailers, body: body.toString("base64"), date: "date" in headers };
}
