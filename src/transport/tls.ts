import { readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { createSecureContext, type SecureContext, TLSSocket } from "node:tls";
import { StartupError } from "../startup-error.ts";

export interface TlsFiles {
  /** PEM: the certificate, then those between it and its root. */
  certFile: string;
  /** PEM, without a passphrase. */
  keyFile: string;
}

/** Throws a StartupError that names the variable to mend. */
export function loadTls({ certFile, keyFile }: TlsFiles): SecureContext {
  const cert = readPem("LATCHKEY_TLS_CERT_FILE", certFile);
  const key = readPem("LATCHKEY_TLS_KEY_FILE", keyFile);
  try {
    return createSecureContext({ cert, key, minVersion: "TLSv1.2" });
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

/**
 * Calls `decide` when the handshake is done; a client that offers no protocol speaks HTTP/1.1. A socket that does not get
 * so far within `timeoutMs` is destroyed.
 */
export function handshake(
  socket: Socket,
  secureContext: SecureContext,
  timeoutMs: number,
  decide: (secure: TLSSocket, isHttp2: boolean) => void,
): void {
  const timer = setTimeout(() => socket.destroy(), timeoutMs);
  socket.once("close", () => clearTimeout(timer));
  const secure = new TLSSocket(socket, { isServer: true, secureContext, ALPNProtocols: ["h2", "http/1.1"] });
  secure.on("error", () => socket.destroy());
  secure.once("secure", () => {
    clearTimeout(timer);
    decide(secure, secure.alpnProtocol === "h2");
  });
}
