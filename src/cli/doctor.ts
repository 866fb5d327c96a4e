import { runDoctor } from "../doctor.ts";
import { print } from "./output.ts";

/** Exit code 1: something is wrong. */
export async function doctor({ json }: { json?: boolean }): Promise<void> {
  const findings = await runDoctor();
  const lines = findings.map(({ what, ok, detail }) => `${ok ? "ok  " : "FAIL"}  ${what}: ${detail}`);
  print(json ? JSON.stringify(findings) : lines.join("\n"));
  if (findings.some(({ ok }) => !ok)) process.exitCode = 1;
}
