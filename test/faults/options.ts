import { parseArgs } from "node:util";

export interface Options {
  minutes: number;
  seed: number;
  /** Where histories are kept; undefined: only those that broke a promise are, in the temporary directory. */
  out: string | undefined;
  /** Whether the table in docs/trust.md is written. */
  write: boolean;
  defects: boolean;
  /** What the name of each fault must contain. */
  only: string;
}

export const USAGE = `npm run faults -- [options]

  --minutes N   how long to play                                        (10)
  --seed N      the same calls and faults as a run that printed it      (any)
  --out DIR     keep every history, as JSON lines                       (broken ones, in the temporary directory)
  --only TEXT   faults alone whose names contain this                   (all)
  --defects     plant each defect too, and see it caught
  --write       write the tables of docs/trust.md
`;

/** Undefined when help was asked for. Throws what is wrong, as a sentence. */
export function readOptions(args: string[]): Options | undefined {
  const { values } = parseArgs({
    args,
    options: {
      minutes: { type: "string", default: "10" },
      seed: { type: "string" },
      out: { type: "string" },
      defects: { type: "boolean", default: false },
      only: { type: "string", default: "" },
      write: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) return undefined;
  const minutes = Number(values.minutes);
  if (!(minutes > 0)) throw new Error("--minutes must be a number above 0.");
  const seed = values.seed === undefined ? Math.floor(Math.random() * 1e9) : Number(values.seed);
  if (!Number.isSafeInteger(seed)) throw new Error("--seed must be a whole number.");
  return { minutes, seed, out: values.out, write: values.write, defects: values.defects, only: values.only };
}
