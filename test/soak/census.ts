import { setTimeout as sleep } from "node:timers/promises";
import type { ServiceProcess } from "../support/process.ts";

/** What a service holds, after a garbage collection. */
export interface Census {
  /** Bytes. */
  rss: number;
  heapUsed: number;
  external: number;
  /** Numbers by name. All but those of `IN_ALL` are the same whenever nothing is asked. */
  counts: Record<string, number>;
}

/** What a connection, a call or an operation of the database is while it lasts, by class; here and in Node and the driver. */
const TRANSIENT = [
  ...["Connection", "NodeSession", "BidirectionalStream", "Call"],
  ...["Socket", "ServerHttp2Session", "ServerHttp2Stream", "Http2ServerRequest", "Http2ServerResponse"],
  ...["IncomingMessage", "ServerResponse", "AbortController", "AbortSignal"],
  ...["MongoClient", "ClientSession", "ChangeStream"],
];

/** Counts of everything: code that runs for the first time adds a few. */
export const IN_ALL: ReadonlySet<string> = new Set([
  "timers",
  "objects",
  "entries of maps and sets",
  "elements of arrays",
]);

/** Of each of the driver's two clients: the least that its pool keeps, and two that look after the server. */
const SOCKETS_AT_REST = 2 * (4 + 2);
const PATIENCE_MS = 10_000;

interface Inspected {
  handles: Record<string, number>;
  objects: Record<string, number>;
  listeners: number;
  entries: number;
  elements: number;
  all: number;
}

/**
 * Of a service that runs with `INSPECTED` and is asked nothing. Waits a while for the pools of connections to the database to
 * be at rest.
 */
export async function takeCensus(service: ServiceProcess): Promise<Census> {
  const giveUpMs = performance.now() + PATIENCE_MS;
  // One more is the one that asks.
  const atRest = async () => (await metric(service, SOCKETS)) === SOCKETS_AT_REST + 1;
  for (;;) {
    while (performance.now() < giveUpMs && !(await atRest())) await sleep(50);
    const census = await inspect(service);
    if (census.counts.sockets === SOCKETS_AT_REST || performance.now() >= giveUpMs) return census;
  }
}

async function inspect(service: ServiceProcess): Promise<Census> {
  const taken = lineWith(service, '"event":"census"');
  service.child.kill("SIGUSR2");
  const inspected = JSON.parse(await taken) as Omit<Census, "counts"> & Inspected;
  const { rss, heapUsed, external, handles, objects, listeners, entries, elements, all } = inspected;
  const { TCPSocketWrap: sockets = 0, Timeout: _, ...others } = handles;
  const counts: Record<string, number> = {
    // Pools that are about to open connections have no fewer.
    sockets: Math.max(sockets, SOCKETS_AT_REST),
    listeners,
    "open calls of Watch": await metric(service, "latchkey_watchers"),
    "open streams": await metric(service, "latchkey_streams_open"),
    timers: objects.Timeout ?? 0,
    objects: all,
    "entries of maps and sets": entries,
    "elements of arrays": elements,
  };
  for (const [name, count] of Object.entries(others)) counts[`handles: ${name}`] = count;
  for (const name of TRANSIENT) counts[`objects: ${name}`] = objects[name] ?? 0;
  return { rss, heapUsed, external, counts };
}

/** The next such line of what it prints. */
function lineWith({ child }: ServiceProcess, words: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const stdout = child.stdout!;
    let text = "";
    const take = (chunk: string | Buffer) => {
      text += chunk;
      const lines = text.split("\n");
      text = lines.pop()!;
      const found = lines.find((line) => line.includes(words));
      if (found !== undefined) end(() => resolve(found));
    };
    const gone = () => end(() => reject(new Error("the service ended")));
    const end = (then: () => void) => {
      stdout.off("data", take);
      child.off("exit", gone);
      then();
    };
    stdout.on("data", take);
    child.once("exit", gone);
  });
}

/** The sum over its labels; with a label in the name, that one. */
export async function metric(service: ServiceProcess, name: string): Promise<number> {
  const text = await (await fetch(`${service.opsUrl}/metrics`, { headers: { connection: "close" } })).text();
  const values = text.split("\n").filter((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`));
  return values.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
}

const SOCKETS = 'nodejs_active_resources{type="TCPSocketWrap"}';

export const INSPECTED = ["--expose-gc", "--import", "./test/soak/inspect.js"];
