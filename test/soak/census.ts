import { setTimeout as sleep } from "node:timers/promises";
import type { ServiceProcess } from "../support/process.ts";

/** What a service holds, after a garbage collection. */
export interface Census {
  /** Bytes. */
  rss: number;
  heapUsed: number;
  external: number;
  /** Numbers by name: open handles and timers by kind, live objects by class, listeners, entries of maps. */
  counts: Record<string, number>;
}

/** Of a service that runs with `--expose-gc --import ./test/soak/inspect.js`. */
export async function takeCensus(service: ServiceProcess): Promise<Census> {
  const before = service.events("census").length;
  service.child.kill("SIGUSR2");
  let taken: Record<string, unknown> | undefined;
  while (taken === undefined) {
    await sleep(20);
    taken = service.events("census")[before];
  }
  const { rss, heapUsed, external, handles, objects, listeners } = taken as unknown as {
    handles: Record<string, number>;
    objects: Record<string, number>;
    listeners: number;
  } & Pick<Census, "rss" | "heapUsed" | "external">;
  const metrics = await (await fetch(`${service.opsUrl}/metrics`, { headers: { connection: "close" } })).text();
  const gauge = (name: string) => Number(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, "m").exec(metrics)?.[1] ?? 0);
  const counts = {
    ...Object.fromEntries(Object.entries(handles).map(([name, count]) => [`handle ${name}`, count])),
    ...Object.fromEntries(Object.entries(objects).map(([name, count]) => [`object ${name}`, count])),
    listeners,
    "records in memory": gauge("latchkey_view_keys"),
    "open calls of Watch": gauge("latchkey_watchers"),
    "open streams": gauge("latchkey_streams_open"),
  };
  return { rss, heapUsed, external, counts };
}

export const INSPECTED = ["--expose-gc", "--import", "./test/soak/inspect.js"];
