import { createHash, createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createSecureContext } from "node:tls";
import type { Listener, TlsIdentity } from "../fastpath/listen.ts";
import type { Logger } from "../observe/logger.ts";
import type { Metrics } from "../observe/metrics.ts";
import { StartupError } from "../observe/startup-error.ts";

export interface TlsFiles {
  /** PEM: the certificate, then those between it and its root. */
  certFile: string;
  /** PEM, without a passphrase. */
  keyFile: string;
  /** PEM: whose certificates clients may prove themselves by. undefined: they are not asked for any. */
  clientCaFile?: string | undefined;
}

/** Throws a StartupError that says what is wrong with which file. */
export function loadTls(files: TlsFiles): TlsIdentity {
  return checkTls(
    files,
    namedFiles(files).map(({ variable, file }) => {
      try {
        return readFileSync(file);
      } catch (error) {
        throw unreadable(variable, file, error);
      }
    }),
  );
}

interface TlsWatch {
  /** Contents of the files when they were loaded. */
  current: TlsIdentity;
  /** Time between two looks. Default: 1,000. */
  everyMs?: number;
  /** The files hold another identity, and it is a good one. */
  onChanged: (identity: TlsIdentity) => void;
  /** They hold something else, which can't be used, or has ended; called once for each such state. */
  onRefused: (error: StartupError) => void;
}

/**
 * Looks at the contents, since whoever replaces files may keep their times, or swap a link to their directory. A change is
 * acted on when two looks in a row find the same: the files are seldom replaced in one instant. Returns what ends it.
 */
function watchTls(files: TlsFiles, { current, everyMs = 1_000, onChanged, onRefused }: TlsWatch): () => void {
  let timer: NodeJS.Timeout | undefined;
  let ended = false;
  let settled = digestOf([current.cert, current.key, current.ca ?? ""]);
  let last = settled;
  const look = async () => {
    const found = await Promise.all(namedFiles(files).map(readOne));
    const [cert, key, ca = ""] = found.map((content) => (content instanceof Error ? content.message : content));
    const state = digestOf([cert!, key!, ca]);
    const isSteady = state === last;
    last = state;
    if (ended || !isSteady || state === settled) return;
    settled = state;
    try {
      const identity = checkTls(files, found.map(orThrow));
      const ended = whatEnded(files, identity, Date.now());
      if (ended !== undefined) throw ended;
      onChanged(identity);
    } catch (error) {
      if (!(error instanceof StartupError)) throw error;
      onRefused(error);
    }
  };
  const next = () => {
    timer = setTimeout(() => void look().finally(() => ended || next()), everyMs).unref();
  };
  next();
  return () => {
    ended = true;
    clearTimeout(timer);
  };
}

function checkTls({ certFile, keyFile, clientCaFile }: TlsFiles, [cert, key, ca]: Buffer[]): TlsIdentity {
  try {
    createSecureContext({ cert, key });
    // OpenSSL compares keys of one kind alone, and keeps an EC key beside an RSA certificate: no handshake would come of it.
    if (!new X509Certificate(cert!).checkPrivateKey(createPrivateKey(key!))) throw new Error("key type mismatch");
  } catch (error) {
    const { message } = error as Error;
    const why = /mismatch/i.test(message)
      ? "the key is not the one that the certificate was made for"
      : `they hold no certificate and key in PEM, without a passphrase (${message})`;
    throw new StartupError(
      `LATCHKEY_TLS_CERT_FILE=${certFile} and LATCHKEY_TLS_KEY_FILE=${keyFile} can't be used: ${why}.`,
    );
  }
  if (ca === undefined) return { cert: cert!, key: key! };
  try {
    // Node takes any text for a list of no certificates, and the beginning of a list for all of it: whom the others signed
    // could not prove itself.
    if (certificatesIn(ca).length === 0) throw new Error("there is none in it");
    createSecureContext({ cert, key, ca });
  } catch (error) {
    throw new StartupError(
      `LATCHKEY_TLS_CLIENT_CA_FILE=${clientCaFile} can't be used: it holds no certificate in PEM, or one that is cut short (${(error as Error).message}).`,
    );
  }
  return { cert: cert!, key: key!, ca };
}

/** A StartupError about the part of `identity` that is of no use at `nowMs`, since it has ended; undefined: none. */
function whatEnded({ certFile, clientCaFile }: TlsFiles, identity: TlsIdentity, nowMs: number) {
  const endMs = endOfCertificate(identity);
  if (endMs <= nowMs) {
    const end = new Date(endMs).toISOString();
    return new StartupError(
      `LATCHKEY_TLS_CERT_FILE=${certFile} holds a certificate that ended on ${end}: clients break off.`,
    );
  }
  const { ca } = identity;
  if (ca === undefined || certificatesIn(ca).some(({ validTo }) => Date.parse(validTo) > nowMs)) return undefined;
  return new StartupError(
    `LATCHKEY_TLS_CLIENT_CA_FILE=${clientCaFile} holds only certificates that have ended: no client can prove itself.`,
  );
}

const BEGINNING = /(?=-----BEGIN (?:\w+ )?CERTIFICATE-----)/;

function certificatesIn(pem: string | Buffer): X509Certificate[] {
  const parts = pem.toString("latin1").split(BEGINNING);
  return parts.filter((part) => BEGINNING.test(part)).map((part) => new X509Certificate(part));
}

interface NamedFile {
  variable: string;
  file: string;
}

function namedFiles({ certFile, keyFile, clientCaFile }: TlsFiles): NamedFile[] {
  return [
    { variable: "LATCHKEY_TLS_CERT_FILE", file: certFile },
    { variable: "LATCHKEY_TLS_KEY_FILE", file: keyFile },
    ...(clientCaFile === undefined ? [] : [{ variable: "LATCHKEY_TLS_CLIENT_CA_FILE", file: clientCaFile }]),
  ];
}

function digestOf(contents: readonly (string | Buffer)[]): string {
  const hash = createHash("sha256");
  for (const content of contents) hash.update(createHash("sha256").update(content).digest());
  return hash.digest("base64");
}

function readOne({ variable, file }: NamedFile): Promise<Buffer | StartupError> {
  return readFile(file).catch((error) => unreadable(variable, file, error));
}

function orThrow(content: Buffer | StartupError): Buffer {
  if (content instanceof Error) throw content;
  return content;
}

function unreadable(variable: string, file: string, error: unknown): StartupError {
  return new StartupError(`${variable}=${file} can't be read (${(error as NodeJS.ErrnoException).code}).`);
}

/** When the certificate ends, of `Date.now()`. */
function endOfCertificate({ cert }: TlsIdentity): number {
  return Date.parse(new X509Certificate(cert).validTo);
}

/** Takes up what is put in place of the certificate, its key and the clients' CA. Returns what ends it. */
export function keepTls(
  files: TlsFiles,
  first: TlsIdentity,
  listener: Listener,
  log: Logger,
  metrics: Metrics,
): () => void {
  let endMs = endOfCertificate(first);
  const ended = whatEnded(files, first, Date.now());
  if (ended !== undefined) log.error({ event: "tls_expired" }, ended.message);
  metrics.gauge(
    "latchkey_tls_certificate_expiry_seconds",
    "End of the certificate that is served, in seconds since 1970",
    () => endMs / 1_000,
    "min",
  );
  return watchTls(files, {
    current: first,
    onChanged(identity) {
      listener.renewTls(identity);
      endMs = endOfCertificate(identity);
      log.info(
        { event: "tls_renewed", until: new Date(endMs).toISOString() },
        "connections get the new certificate from now on",
      );
    },
    onRefused: ({ message }) => log.error({ event: "tls_refused" }, `${message} What was served before is served on.`),
  });
}
