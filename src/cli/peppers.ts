import { readConfig } from "../config.ts";
import { forget, formatPeppers, reportPeppers } from "../peppers.ts";
import { print } from "./output.ts";

interface PeppersOptions {
  json?: boolean;
  /** Ids whose secrets are lost. */
  forget?: string;
  forgetRequestKey?: string;
}

export async function peppers({ json, forget: pepper, forgetRequestKey: requestKey }: PeppersOptions): Promise<void> {
  if (pepper !== undefined) print(await forget(readConfig(), "pepper", pepper));
  if (requestKey !== undefined) print(await forget(readConfig(), "request key", requestKey));
  if (pepper !== undefined || requestKey !== undefined) return;
  const report = await reportPeppers(readConfig());
  print(json ? JSON.stringify(report) : formatPeppers(report));
}
