import { join } from "node:path";
import type { Config } from "./config.ts";

/**
 * Commands that a person at a terminal may try next, as lines to paste into another terminal. There is no token in it: the commands
 * find the development secret in the data directory. `user`: one who has no key yet. `address`, `opsAddress`: host:port.
 */
export function welcome(
  config: Pick<Config, "dataDir" | "tls" | "verifyAuth">,
  { address, opsAddress, user, cwd }: { address: string; opsAddress: string | undefined; user: string; cwd: string },
): string {
  const url = `${config.tls === undefined ? "http" : "https"}://${reachable(address)}`;
  const settings = [
    ...(config.dataDir === join(cwd, ".latchkey") ? [] : [`export LATCHKEY_DATA_DIR=${quoted(config.dataDir)}`]),
    ...(url === "http://127.0.0.1:8080" ? [] : [`export LATCHKEY_URL=${url}`]),
  ];
  const commands = [
    `KEY=$(npx latchkey create --user ${user} --scope read); echo "$KEY"`,
    ...(config.verifyAuth === "none" ? ['echo "$KEY" | npx latchkey verify --scope read'] : []),
    `npx latchkey rotate --user ${user}`,
    "npx latchkey admin list",
  ];
  return `
To try it, in another terminal, in ${cwd}:

${[...settings, ...commands].map((line) => `  ${line}`).join("\n")}

Data:    ${config.dataDir}
         Ctrl-C stops the service and keeps them.
${opsAddress === undefined ? "" : `Metrics: http://${reachable(opsAddress)}/metrics\n`}
`;
}

/** An address that listens everywhere is none to call. */
function reachable(address: string): string {
  return address.replace(/^0\.0\.0\.0:/, "127.0.0.1:").replace(/^\[::\]:/, "[::1]:");
}

function quoted(text: string): string {
  return /^[\w/.-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
