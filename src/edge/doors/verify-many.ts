import { type FieldViolation, KeyError } from "../../keys/errors.ts";
import type { Verification, VerifyInput, VerifyKey } from "../../keys/verify/verify.ts";
import type { CallLog } from "../call-log.ts";
import { asKeyError } from "../errors.ts";

/** The result of one of many requests. */
export type Verdict = Verification | KeyError;

const MAX_BATCH = 1_000;
/** Of BatchVerify's message: as many keys with some scopes each. */
export const MAX_BATCH_BYTES = 1024 * 1024;

/** The largest message that clients of gRPC take by default. */
export const MAX_BATCH_ANSWER_BYTES = 4 * 1024 * 1024;
/** Of an item for which there is no room in the answer. */
export const ANSWER_TOO_LARGE = new KeyError(
  "ANSWER_TOO_LARGE",
  "With this key too the answer would be larger than 4 MiB. Ask for it in a smaller batch.",
);

export function withoutRecord(verdict: Verdict): Verdict {
  return verdict instanceof KeyError ? verdict : { ...verdict, entry: undefined };
}

/** Gives one verdict for each input, in order, and never fails. Without a promise when nothing has to be waited for. */
export type VerifyMany = (inputs: readonly VerifyInput[]) => Verdict[] | Promise<Verdict[]>;

export function createVerifyMany(verify: VerifyKey, calls: CallLog): VerifyMany {
  const refusal = (error: unknown): KeyError => {
    const refused = asKeyError(error);
    calls.itemFailed(refused);
    return refused;
  };
  const attempt = (input: VerifyInput): Verdict | Promise<Verdict> => {
    try {
      const verdict = verify(input);
      return verdict instanceof Promise ? verdict.catch(refusal) : verdict;
    } catch (error) {
      return refusal(error);
    }
  };
  const counted = (verdicts: Verdict[]) => {
    for (const verdict of verdicts) if (!(verdict instanceof KeyError)) calls.itemAnswered(verdict.outcome);
    return verdicts;
  };
  return (inputs) => {
    const verdicts = inputs.map(attempt);
    const settled = verdicts.every((verdict) => !(verdict instanceof Promise));
    return settled ? counted(verdicts as Verdict[]) : Promise.all(verdicts).then(counted);
  };
}

export function checkBatchSize(size: number, violations: FieldViolation[]): void {
  if (size >= 1 && size <= MAX_BATCH) return;
  violations.push({ field: "requests", description: `must hold 1 to ${MAX_BATCH} requests, and holds ${size}` });
}
