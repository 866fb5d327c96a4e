import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { formatAddress } from "../fastpath/listen.ts";
import { mayLackItsBody, originForm } from "../fastpath/request-target.ts";
import { namingAddress } from "./free-address.ts";

interface OpsParts {
  host: string;
  port: number;
  /** Whether calls should be sent here, and in words why not. */
  readiness: () => { ready: boolean; text: string };
  metrics: { contentType: string; text(): Promise<string> };
}

interface OpsServer {
  readonly address: string;
  close(): Promise<void>;
}

/** `/livez`: the process runs. `/readyz`: it should get calls (200 or 503). `/metrics`: Prometheus text. Plain HTTP, for operators only. */
export async function listenOps({ host, port, readiness, metrics }: OpsParts): Promise<OpsServer> {
  const server = createServer(async (request, response) => {
    const answer = (status: number, text: string, type = "text/plain; charset=utf-8", more = {}) =>
      response.writeHead(status, { "content-type": type, "cache-control": "no-store", ...more }).end(text);
    if (mayLackItsBody(request)) response.setHeader("connection", "close");
    // Some ask for `/readyz?verbose`, and all that is known is shown anyway.
    const [path] = originForm(request.url ?? "").split("?", 1);
    if (request.method !== "GET" && request.method !== "HEAD") {
      answer(405, "GET only\n", undefined, { allow: "GET, HEAD" });
    } else if (path === "/livez") answer(200, "ok\n");
    else if (path === "/readyz") {
      const { ready, text } = readiness();
      answer(ready ? 200 : 503, text);
    } else if (path === "/metrics") answer(200, await metrics.text(), metrics.contentType);
    else answer(404, "Here are /livez, /readyz and /metrics.\n");
  });
  server.maxConnections = 256;
  server.requestTimeout = 10_000;
  const listening = () =>
    new Promise<void>((resolve, reject) => {
      server.once("error", reject).listen({ host, port }, resolve);
    });
  await namingAddress({ setting: "LATCHKEY_OPS_LISTEN", host, port }, listening);
  const bound = server.address() as AddressInfo;
  return {
    address: formatAddress(bound.address, bound.port),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
