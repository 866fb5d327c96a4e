import { readFileSync } from "node:fs";
import { createSecureContext } from "node:tls";
import { StartupError } from "../observe/startup-error.ts";
import type { ClientTlsFiles } from "../service/config.ts";

/** As `node:tls` takes it. */
export interface ClientTls {
  ca?: Buffer;
  cert?: Buffer;
  key?: Buffer;
}

/** Throws a StartupError that names the setting at fault. */
export function loadClientTls({ caFile, certFile, keyFile }: ClientTlsFiles): ClientTls {
  const tls: ClientTls = {};
  if (caFile !== undefined) tls.ca = read("LATCHKEY_CA_FILE", caFile);
  if (certFile !== undefined) tls.cert = read("LATCHKEY_CLIENT_CERT_FILE", certFile);
  if (keyFile !== undefined) tls.key = read("LATCHKEY_CLIENT_KEY_FILE", keyFile);
  if (tls.ca !== undefined && !tls.ca.includes("-----BEGIN CERTIFICATE-----"))
    throw new StartupError(`LATCHKEY_CA_FILE=${caFile} holds no certificate in PEM.`);
  try {
    createSecureContext({ ...tls });
  } catch (error) {
    const files =
      certFile === undefined
        ? `LATCHKEY_CA_FILE=${caFile}`
        : `LATCHKEY_CLIENT_CERT_FILE=${certFile} and LATCHKEY_CLIENT_KEY_FILE=${keyFile}`;
    throw new StartupError(
      `${files} can't be used (${(error as Error).message}): they must be PEM, without a passphrase, and the key the one that the certificate was made for.`,
    );
  }
  return tls;
}

function read(setting: string, file: string): Buffer {
  try {
    return readFileSync(file);
  } catch (error) {
    throw new StartupError(`${setting}=${file} can't be read (${(error as NodeJS.ErrnoException).code}).`);
  }
}
