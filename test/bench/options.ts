import { parseArgs } from "node:util";

export interface Options {
  /** How often each arm is measured; a ratio is the median of that many. */
  rounds: number;
  /** Measured time of an arm in a round. */
  seconds: number;
  /** Load on an arm before its first round. */
  warmUpSeconds: number;
  /** Figures to take; empty: all. */
  only: string[];
  outDir: string;
  /** Records stored for the figure `large`; a fifth of them are in rotation. */
  largeKeys: number;
  revocations: number;
  quick: boolean;
  /** Another build of the service, for the figure `builds`. */
  beside: Build | undefined;
}

export interface Build {
  /** The built checkout. */
  dir: string;
  /** The `node` that runs it. */
  node: string;
}

export const USAGE = `npm run bench -- [options]

  --rounds N        rounds, interleaved A B A B …          (5)
  --seconds S       measured time of an arm in a round     (3)
  --warm-up S       load on an arm before its first round  (3)
  --only a,b        these figures only: FIGURES
  --skip a,b        all but these
  --keys N          records stored for "large"             (1000000)
  --revocations N   revocations for "revocation"           (500)
  --out DIR         where bench.json and bench.svg go      (docs/bench)
  --beside DIR      for "builds": another built checkout of the service
  --beside-node P   the node that runs it                  (the one that runs this)
  --quick           one short round without "large": does everything work? Writes to the temporary directory unless --out is given.
`;

/** Undefined when help was asked for. Throws what is wrong, as a sentence. */
export function readOptions(args: string[], figures: string[], temporaryDir: string): Options | undefined {
  const { values } = parseArgs({
    args,
    options: {
      rounds: { type: "string" },
      seconds: { type: "string" },
      "warm-up": { type: "string" },
      only: { type: "string" },
      skip: { type: "string" },
      keys: { type: "string" },
      revocations: { type: "string" },
      out: { type: "string" },
      beside: { type: "string" },
      "beside-node": { type: "string" },
      quick: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return undefined;
  const { quick } = values;
  const skip = names(values.skip, figures);
  const only = names(values.only, figures);
  const chosen = (only.length > 0 ? only : figures).filter((name) => !skip.includes(name));
  return {
    rounds: positive("rounds", values.rounds, quick ? 1 : 5),
    seconds: positive("seconds", values.seconds, quick ? 1 : 3),
    warmUpSeconds: positive("warm-up", values["warm-up"], quick ? 0.5 : 3),
    only: quick && only.length === 0 ? chosen.filter((name) => name !== "large") : chosen,
    outDir: values.out ?? (quick ? temporaryDir : "docs/bench"),
    largeKeys: positive("keys", values.keys, quick ? 50_000 : 1_000_000),
    revocations: positive("revocations", values.revocations, quick ? 50 : 500),
    quick,
    beside:
      values.beside === undefined ? undefined : { dir: values.beside, node: values["beside-node"] ?? process.execPath },
  };
}

function names(list: string | undefined, known: string[]): string[] {
  const given = (list ?? "").split(",").filter(Boolean);
  const stranger = given.find((name) => !known.includes(name));
  if (stranger !== undefined) throw new Error(`There is no figure "${stranger}". There are: ${known.join(", ")}.`);
  return given;
}

function positive(name: string, text: string | undefined, otherwise: number): number {
  const value = text === undefined ? otherwise : Number(text);
  if (!(value > 0)) throw new Error(`--${name} must be a number above 0.`);
  return value;
}
