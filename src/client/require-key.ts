import { type ApiKey, Outcome, type VerifyResponse } from "#gen/latchkey/v1/api_key_service_pb";

/** A key that is not good, or not for what is asked. No defect, and nothing to repeat: to be answered by `httpStatus`. */
export class KeyRefused extends Error {
  override readonly name = "KeyRefused";
  /** Found by Verify. `UNSPECIFIED` stands for what this version does not know. */
  readonly outcome: Outcome;
  /** 403 where the key is known and may not do this, else 401. */
  readonly httpStatus: 401 | 403;
  /** The outcome's word, for example `REVOKED`. */
  readonly reason: string;
  /** Scopes that are needed, and that the key lacks. */
  readonly missingScopes: readonly string[];

  constructor(outcome: Outcome, missingScopes: readonly string[] = []) {
    const reason = Outcome[outcome] ?? "UNSPECIFIED";
    super(`The API key was refused: ${reason}.`);
    this.outcome = reason === "UNSPECIFIED" ? Outcome.UNSPECIFIED : outcome;
    this.httpStatus = FORBIDDEN.has(outcome) ? 403 : 401;
    this.reason = reason;
    this.missingScopes = missingScopes;
  }
}

const FORBIDDEN: ReadonlySet<Outcome> = new Set([Outcome.INSUFFICIENT_SCOPE, Outcome.SUSPENDED]);

/**
 * The record of a good key. Throws KeyRefused for any other: a revoked key is a successful call of Verify, and who looks at errors alone
 * would let it in.
 *
 * @param verification - the answer of Verify, or a promise of it, whose failure is passed on: then nothing is known of the key
 * @param options.scopes - scopes that the key must have; what was asked of Verify need not be said again
 * @example
 * const { userId } = await requireKey(latchkey.verify({ key }), { scopes: ["read"] });
 */
export async function requireKey(
  verification: VerifyResponse | Promise<VerifyResponse>,
  { scopes = [] }: { scopes?: readonly string[] } = {},
): Promise<ApiKey> {
  const { outcome, apiKey, missingScopes } = await verification;
  if (outcome !== Outcome.VALID) throw new KeyRefused(outcome, missingScopes);
  if (apiKey === undefined) throw new Error("The answer has no record: ask without omit_records.");
  const missing = scopes.filter((scope) => !apiKey.scopes.includes(scope));
  if (missing.length > 0) throw new KeyRefused(Outcome.INSUFFICIENT_SCOPE, missing);
  return apiKey;
}
