import { createHash, randomUUID } from "node:crypto";
import { expect } from "@jest/globals";
import { type Answer, type Ask, sayOverWebSocket, send } from "./client.ts";
import type { RunningGateway } from "./gateways.ts";
import { ALICE, ITS_OWN_WORDS, type Seen, type Told } from "./rows.ts";
import { type Arrival, MARK } from "./upstream.ts";
import type { World } from "./world.ts";

export type Request = Ask & { webSocket?: boolean; mark?: string };

const OF_INTEREST = ["www-authenticate", "retry-after", "cache-control", "content-type"];
/** Passed on by Envoy alone, unless a file names them; set there whatever the key has. */
const METADATA = /^x-latchkey-meta-note-[123]$/i;
/** What looks like an identity or a credential, or like word between Latchkey and its gateway. */
const TELLING = /latchkey|authorization|api.?key|x-envoy-auth/i;

/** Asks through a gateway: what came of it, and where it went. `mayPass`: it may reach the application. */
export function createAsker(world: () => World) {
  return async (by: RunningGateway, request: Request, mayPass: boolean): Promise<Seen> => {
    const { upstream, keys } = world();
    const { mark = randomUUID() } = request;
    if (mayPass) upstream.mayArrive(mark);
    const headers: [string, string][] = [...(request.headers ?? []), [MARK, mark]];
    const answer = request.webSocket
      ? await sayOverWebSocket(by.port, request.path ?? "/", headers)
      : await send(by.port, { ...request, headers });
    const [arrival, ...more] = upstream.arrivals(mark);
    expect(more).toEqual([]);
    if (arrival !== undefined)
      expect(arrival).toMatchObject({ method: request.method ?? "GET", ...asSent(request.body) });
    return {
      ...{ status: answer.status, headers: headersOfInterest(answer) },
      body: bodyOf(answer, arrival),
      told: arrival && toldBy(arrival.headers, keys),
    };
  };
}

function asSent(body: Buffer | undefined): Partial<Arrival> {
  if (body === undefined) return { bodyBytes: 0 };
  return { bodyBytes: body.length, bodySha256: createHash("sha256").update(body).digest("hex") };
}

function headersOfInterest({ status, headers }: Answer): Record<string, string> {
  for (const name of Object.keys(headers)) expect(name).not.toMatch(/^x.latchkey/);
  const found: Record<string, string> = {};
  for (const name of OF_INTEREST) {
    const value = headers[name];
    if (value !== undefined)
      found[name] = name === "retry-after" && /^[1-9]\d?$/.test(value as string) ? "seconds" : String(value);
  }
  return status === 101 ? {} : found;
}

function bodyOf({ headers, body }: Answer, arrival: object | undefined): unknown {
  if (arrival !== undefined && body === JSON.stringify(arrival)) return "what arrived";
  if (headers["content-type"] === "application/json" && body !== "") return JSON.parse(body);
  return body === "" || body.startsWith("you said") ? body : ITS_OWN_WORDS;
}

function toldBy(headers: [string, string][], keys: World["keys"]): Told {
  const idOf = new Map([
    [keys.alice.split("_")[1], `key of ${ALICE}`],
    [keys.bob.split("_")[1], "key of bob"],
    [keys.largest.split("_")[1], "key of largest"],
  ]);
  return headers
    .filter(([name]) => TELLING.test(name) && !METADATA.test(name))
    .map(([name, value]): [string, string] => [
      name.toLowerCase(),
      name.toLowerCase() === "x-latchkey-key-id" ? (idOf.get(value) ?? value) : value,
    ])
    .sort(([one], [other]) => (one < other ? -1 : 1));
}
