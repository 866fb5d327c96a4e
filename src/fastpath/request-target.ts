import type { IncomingMessage } from "node:http";

/** RFC 9112, 3.2.2: any request may name the whole URL. Path and query of it; what is in another form stays as it is. */
export function originForm(target: string, method?: string): string {
  const [whole, rest = ""] = /^https?:\/\/[^/?#]*([^#]*)/i.exec(target) ?? [];
  if (whole === undefined) return target;
  if (rest === "" && method === "OPTIONS") return "*";
  return rest.startsWith("/") ? rest : `/${rest}`;
}

/** Methods that are asked without a body. */
const BODILESS = new Set(["GET", "HEAD", "DELETE", "OPTIONS", "TRACE"]);

/**
 * Whether a body is announced that may never come: a gateway that asks by GET may pass on the `content-length` of its client's
 * request. After it nobody can tell where on the connection the next request begins.
 */
export function mayLackItsBody({ method = "", headers }: Pick<IncomingMessage, "method" | "headers">): boolean {
  if (!BODILESS.has(method)) return false;
  const { "content-length": length = "0", "transfer-encoding": coding } = headers;
  return coding !== undefined || !/^0*$/.test(length);
}
