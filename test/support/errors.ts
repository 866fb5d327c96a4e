import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "#gen/google/rpc/error_details_pb";

export interface Refusal {
  code: string;
  reason: string | undefined;
  message: string;
  fields: string[];
  retry: boolean;
}

/** How `call` was refused. Fails when it was not. */
export async function refusalOf(call: Promise<unknown>): Promise<Refusal> {
  const error = await call.then(
    (answer) => {
      throw new Error(
        `was not refused: ${JSON.stringify(answer, (_, value) => (typeof value === "bigint" ? String(value) : value))}`,
      );
    },
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof ConnectError)) throw error;
  const [info] = error.findDetails(ErrorInfoSchema);
  const [bad] = error.findDetails(BadRequestSchema);
  return {
    code: Code[error.code],
    reason: info?.domain === "latchkey.v1" ? info.reason : undefined,
    message: error.rawMessage,
    fields: (bad?.fieldViolations ?? []).map(({ field }) => field),
    retry: error.findDetails(RetryInfoSchema).length > 0,
  };
}
