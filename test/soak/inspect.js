// Loaded into a service that is watched for leaks (`node --expose-gc --import …`): at SIGUSR2 it collects garbage and prints
// what is left as a line of JSON.
import { Http2ServerRequest } from "node:http2";
import { Socket } from "node:net";
import { queryObjects } from "node:v8";
import { ChangeStream, ClientSession, MongoClient } from "mongodb";

const COUNTED = { Socket, AbortSignal, Http2ServerRequest, ClientSession, ChangeStream, MongoClient };

process.on("SIGUSR2", async () => {
  // What the first collection lets go of may keep something that the next finds.
  for (let n = 0; n < 3; n += 1) {
    globalThis.gc();
    await new Promise((resolve) => setImmediate(resolve));
  }
  const { rss, heapUsed, external } = process.memoryUsage();
  const handles = {};
  for (const name of process.getActiveResourcesInfo()) handles[name] = (handles[name] ?? 0) + 1;
  const objects = {};
  for (const [name, type] of Object.entries(COUNTED)) objects[name] = queryObjects(type, { format: "count" });
  const listeners = [process, ...process._getActiveHandles()]
    .flatMap((emitter) => (emitter.eventNames ? emitter.eventNames().map((name) => emitter.listenerCount(name)) : []))
    .reduce((sum, count) => sum + count, 0);
  const census = { rss, heapUsed, external, handles, objects, listeners };
  process.stdout.write(`${JSON.stringify({ event: "census", ...census })}\n`);
});
