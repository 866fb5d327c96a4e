import { createHash } from "node:crypto";
import { type Arm, interleave, responderArm, type VerifyParts, verifyArm } from "../arms.ts";
import { type Lab, SERVICE_TOKEN } from "../lab.ts";
import type { ServerProcess } from "../processes.ts";
import { ratioRow } from "../rows.ts";
import type { Figure, Findings } from "./figure.ts";

/** Warm Verify over gRPC, beside what bounds it and what one would write without a transport of one's own. */
export const grpc: Figure = {
  name: "grpc",
  title: "Warm Verify, gRPC over HTTP/2",
  async take(lab) {
    const server = await lab.startService();
    const parts = { server, wire: "grpc", key: lab.keys[0]! } as const;
    const arms = [
      await verifyArm(lab, { ...parts, name: "Verify, gRPC" }),
      await responderArm(lab, "bare-http2", { ...parts, name: "bare node:http2" }),
      await responderArm(lab, "stock-connect", { ...parts, name: "stock connect-node" }),
      await responderArm(lab, "grpc-js", { ...parts, name: "empty grpc-js" }),
    ];
    const [verify, bare, stock, grpcJs] = await interleave(lab, arms);
    return {
      series: [verify!, bare!, stock!, grpcJs!],
      rows: [
        ratioRow("warm Verify, gRPC ÷ bare node:http2", verify!, bare!, 0.95),
        ratioRow("warm Verify, gRPC ÷ stock connect-node", verify!, stock!, 10),
        ratioRow("warm Verify, gRPC ÷ empty grpc-js", verify!, grpcJs!, 1.2),
      ],
    };
  },
};

/** The same with what real callers send, and a service that checks their token. */
export const headers: Figure = {
  name: "headers",
  title: "Warm Verify, gRPC, with the headers real callers send",
  async take(lab) {
    const digest = createHash("sha256").update(SERVICE_TOKEN).digest("hex");
    const server = await lab.startService({
      LATCHKEY_VERIFY_AUTH: "token",
      LATCHKEY_SERVICE_TOKENS: `bench:sha256:${digest}`,
    });
    const sent = {
      authorization: `Bearer ${SERVICE_TOKEN}`,
      "grpc-timeout": "200m",
      traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
      "user-agent": "grpc-go/1.76.0",
    };
    const parts = { server, wire: "grpc", key: lab.keys[0]!, headers: sent } as const;
    return pair(lab, server, "warm Verify with real headers", 0.9, "bare-http2", {
      ...parts,
      name: "Verify, gRPC, real headers",
    });
  },
};

export const http1: Figure = {
  name: "http1",
  title: "Warm Verify, Connect proto over HTTP/1.1",
  async take(lab) {
    const server = await lab.startService();
    return pair(lab, server, "warm Verify, Connect proto over HTTP/1.1", 0.85, "bare-http1", {
      ...{ name: "Verify, Connect proto, HTTP/1.1", wire: "connect", http1: true, key: lab.keys[0]! },
    });
  },
};

/** The other ways to ask. Nothing is promised of them; they show that none is left behind. */
export const protocols: Figure = {
  name: "protocols",
  title: "Warm Verify, the other protocols",
  async take(lab) {
    const server = await lab.startService();
    const key = lab.keys[0]!;
    const kinds: { label: string; bare: string; parts: Pick<VerifyParts, "wire" | "http1"> }[] = [
      { label: "Connect proto, HTTP/2", bare: "bare-http2", parts: { wire: "connect" } },
      { label: "Connect JSON, HTTP/1.1", bare: "bare-http1", parts: { wire: "connect-json", http1: true } },
      { label: "gRPC-Web, HTTP/2", bare: "bare-http2", parts: { wire: "grpc-web" } },
    ];
    const findings: Findings = { series: [], rows: [] };
    for (const { label, bare, parts } of kinds) {
      const found = await pair(lab, server, `warm Verify, ${label}`, undefined, bare, {
        ...{ name: `Verify, ${label}`, key },
        ...parts,
      });
      findings.series.push(...found.series);
      findings.rows.push(...found.rows);
    }
    return findings;
  },
};

async function pair(
  lab: Lab,
  server: ServerProcess,
  label: string,
  reach: number | undefined,
  responder: string,
  parts: Omit<VerifyParts, "server" | "outcome">,
): Promise<Findings> {
  const arms: Arm[] = [
    await verifyArm(lab, { ...parts, server }),
    await responderArm(lab, responder, { ...parts, server, name: `${responder}, as ${parts.name}` }),
  ];
  const [verify, bare] = await interleave(lab, arms);
  return {
    series: [verify!, bare!],
    rows: [ratioRow(`${label} ÷ ${parts.http1 ? "bare node:http" : "bare node:http2"}`, verify!, bare!, reach)],
  };
}
