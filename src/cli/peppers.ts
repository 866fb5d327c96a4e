import { readConfig } from "../config.ts";
import { formatPeppers, reportPeppers } from "../peppers.ts";
import { print } from "./output.ts";

export async function peppers({ json }: { json?: boolean }): Promise<void> {
  const report = await reportPeppers(readConfig());
  print(json ? JSON.stringify(report) : formatPeppers(report));
}
