import type { AddressInfo, Server } from "node:net";

/** The answer that a responder gives to every call: the one sampled from the service. */
export interface FixedAnswer {
  /** Without `date` and what a connection says of itself. */
  headers: Record<string, string>;
  trailers: Record<string, string>;
  body: Buffer;
  /** Whether the service's answer has a `date` header. */
  date: boolean;
}

export function fixedAnswer(): FixedAnswer {
  const { body, ...rest } = JSON.parse(process.argv[2] ?? "");
  return { ...rest, body: Buffer.from(body, "base64") };
}

/** Listens on a free port of loopback and says so. */
export function announceOn(server: Server): void {
  server.listen(0, "127.0.0.1", () => announce((server.address() as AddressInfo).port));
}

export function announce(port: number): void {
  process.stdout.write(`${JSON.stringify({ event: "ready", listen: `127.0.0.1:${port}` })}\n`);
}
