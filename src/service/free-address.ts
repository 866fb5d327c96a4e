import { once } from "node:events";
import { createServer, type Server } from "node:net";
import { formatAddress } from "../fastpath/listen.ts";
import { StartupError } from "../observe/startup-error.ts";

/** An address to listen on, and the setting that it comes from. */
interface WantedAddress {
  setting: "LATCHKEY_LISTEN" | "LATCHKEY_OPS_LISTEN";
  host: string;
  port: number;
}

/** Tries all of them at once, so that two of them may not be one, and lets them go. A StartupError names each that can't be had. */
export async function checkAddresses(wanted: readonly WantedAddress[]): Promise<void> {
  const probes: Server[] = [];
  const problems: string[] = [];
  for (const address of wanted) {
    const probe = createServer();
    probes.push(probe);
    try {
      probe.listen({ host: address.host, port: address.port });
      await once(probe, "listening");
    } catch (error) {
      problems.push(whyNotListen(address, error as NodeJS.ErrnoException));
    }
  }
  await Promise.all(probes.map((probe) => new Promise((resolve) => probe.close(resolve))));
  if (problems.length > 0) throw new StartupError(problems.join("\n"));
}

function whyNotListen({ setting, host, port }: WantedAddress, { code, message }: NodeJS.ErrnoException): string {
  const address = formatAddress(host, port);
  const orOff = setting === "LATCHKEY_OPS_LISTEN" ? ", or to off" : "";
  if (code === "EADDRINUSE")
    return `${address} is in use by another program. Stop it, or set ${setting} to a free address${orOff}.`;
  if (code === "EACCES") return `${address} may not be used by this user. Set ${setting} to a port above 1023${orOff}.`;
  return `${address} can't be listened on (${code ?? message}). Set ${setting} to an address of this machine${orOff}.`;
}

/** An error of `listen` becomes a StartupError that says what to do. */
export async function namingAddress<T>(wanted: WantedAddress, listen: () => Promise<T>): Promise<T> {
  try {
    return await listen();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).syscall === undefined) throw error;
    throw new StartupError(whyNotListen(wanted, error as NodeJS.ErrnoException));
  }
}
