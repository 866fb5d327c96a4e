import type { TLSSocket } from "node:tls";
import type { Peer } from "./fast-method.ts";

const peers = new WeakMap<object, Peer>();

/** `connection`: a socket, or an HTTP/2 session on a part of one. */
export function notePeer(connection: object, peer: Peer | undefined): void {
  if (peer !== undefined) peers.set(connection, peer);
}

/** undefined: nobody in particular. */
export function peerOf(connection: object | undefined): Peer | undefined {
  return connection && peers.get(connection);
}

/** The peer that proved itself in the handshake. undefined: no certificate, or one that the CA did not sign. */
export function verifiedPeer(socket: TLSSocket): Peer | undefined {
  if (!socket.authorized) return undefined;
  // A session that is resumed counts as authorized though its client never had a certificate.
  const certificate = socket.getPeerCertificate();
  if (certificate?.raw === undefined) return undefined;
  const commonNames = [certificate.subject.CN].flat().filter((name) => typeof name === "string");
  return {
    names: [...alternativeNames(certificate.subjectaltname), ...commonNames.map((name) => `cn:${name}`)],
    validUntilMs: Date.parse(certificate.valid_to),
  };
}

const ALTERNATIVE_NAME = /([A-Za-z][A-Za-z ]*):("(?:[^"\\]|\\.)*"|[^",]*)(?:, |$)/y;

/**
 * URIs and DNS names of Node's list, in which a name that could be taken for several stands in quotes. What needs quotes is
 * no name of a service.
 */
function alternativeNames(list = ""): string[] {
  const names: string[] = [];
  ALTERNATIVE_NAME.lastIndex = 0;
  while (ALTERNATIVE_NAME.lastIndex < list.length) {
    const [, kind, value] = ALTERNATIVE_NAME.exec(list) ?? [];
    if (value === undefined) return [];
    if (value === "" || value.startsWith('"')) continue;
    if (kind === "URI") names.push(`uri:${value}`);
    if (kind === "DNS") names.push(`dns:${value.toLowerCase()}`);
  }
  return names;
}
