import { readFileSync } from "node:fs";
import { createSecureContext } from "node:tls";
import { StartupError } from "../startup-error.ts";

export interface TlsFiles {
  /** PEM: the certificate, then those between it and its root. */
  certFile: string;
  /** PEM, without a passphrase. */
  keyFile: string;
}

export interface TlsIdentity {
  cert: string | Buffer;
  key: string | Buffer;
}

/** Throws a StartupError that says what is wrong with which file. */
export function loadTls({ certFile, keyFile }: TlsFiles): TlsIdentity {
  const cert = readPem("LATCHKEY_TLS_CERT_FILE", certFile);
  const key = readPem("LATCHKEY_TLS_KEY_FILE", keyFile);
  try {
    createSecureContext({ cert, key });
    return { cert, key };
  } catch (error) {
    const { message } = error as Error;
    const why = /mismatch/i.test(message)
      ? "the key is not the one that the certificate was made for"
      : `they hold no certificate and key in PEM (${message})`;
    throw new StartupError(
      `LATCHKEY_TLS_CERT_FILE=${certFile} and LATCHKEY_TLS_KEY_FILE=${keyFile} can't be used: ${why}.`,
    );
  }
}

function readPem(variable: string, file: string): Buffer {
  try {
    return readFileSync(file);
  } catch (error) {
    throw new StartupError(`${variable}=${file} can't be read (${(error as NodeJS.ErrnoException).code}).`);
  }
}
