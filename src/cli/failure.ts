import { ConnectError } from "@connectrpc/connect";
import { describeError } from "../client/index.ts";
import { StartupError } from "../observe/startup-error.ts";
import { whyNoAnswer } from "./no-answer.ts";
import { printable } from "./output.ts";
import { type CallOptions, endpointOf } from "./session.ts";

/** The sentence about a command that failed; a defect is thrown on. `options`: the command's. */
export function whatFailed(error: unknown, options: CallOptions): string {
  if (error instanceof StartupError) return error.message;
  if (!(error instanceof ConnectError)) throw error;
  const { reason, code, message } = describeError(error);
  // Whatever comes from Latchkey has a reason; what this side refused to send has none, and is no matter of the service.
  if (reason === undefined && code !== "InvalidArgument") return whyNoAnswer(endpointOf(options).baseUrl, error);
  return printable(`${message} (${reason ?? code})`);
}
