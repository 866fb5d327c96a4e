// Loaded into a service that is watched for leaks (`node --expose-gc --import …`): at SIGUSR2 it collects garbage and prints
// what is left as a line of JSON.
import { EventEmitter, getEventListeners } from "node:events";
import { Session } from "node:inspector";
import { Socket } from "node:net";

process.on("SIGUSR2", async () => {
  // What the first collection lets go of may keep something that the next finds.
  for (let n = 0; n < 3; n += 1) {
    globalThis.gc();
    await new Promise((resolve) => setImmediate(resolve));
  }
  const { rss, heapUsed, external } = process.memoryUsage();
  const handles = {};
  for (const name of process.getActiveResourcesInfo()) {
    // The collections above.
    if (name !== "Immediate") handles[name] = (handles[name] ?? 0) + 1;
  }
  process.stdout.write(`${JSON.stringify({ event: "census", rss, heapUsed, external, handles, ...counted() })}\n`);
});

/** Of every live object, by an inspector that is gone afterwards. */
function counted() {
  const inspector = new Session();
  inspector.connect();
  let counts;
  const ask = (method, parameters, then) =>
    inspector.post(method, parameters, (error, answer) => {
      if (error) throw new Error(error.message);
      then(answer);
    });
  globalThis.countHeld = countHeld;
  ask("Runtime.evaluate", { expression: "Object.prototype" }, ({ result }) =>
    ask("Runtime.queryObjects", { prototypeObjectId: result.objectId }, ({ objects }) =>
      ask(
        "Runtime.callFunctionOn",
        {
          objectId: objects.objectId,
          functionDeclaration: "function () { return countHeld(this) }",
          returnByValue: true,
        },
        ({ result: { value } }) => {
          counts = value;
        },
      ),
    ),
  );
  delete globalThis.countHeld;
  inspector.disconnect();
  return counts;
}

function countHeld(all) {
  const objects = {};
  let listeners = 0;
  let entries = 0;
  let elements = 0;
  for (const object of all) {
    const prototype = Object.getPrototypeOf(object);
    const maker = prototype && Object.getOwnPropertyDescriptor(prototype, "constructor")?.value;
    const name = (typeof maker === "function" && maker.name) || "(none)";
    const counted = ofDriver(object, name) ? `driver's ${name}` : name;
    objects[counted] = (objects[counted] ?? 0) + 1;
    try {
      if (counted !== name) continue;
      if (object instanceof EventEmitter && object._events !== undefined) {
        for (const event of object.eventNames()) listeners += object.listenerCount(event);
      } else if (object instanceof AbortSignal) listeners += getEventListeners(object, "abort").length;
      else if (object instanceof Map || object instanceof Set) entries += object.size;
      else if (Array.isArray(object) && object !== all) elements += object.length;
    } catch {
      // The prototype of a class is an object of it, and not a whole one.
    }
  }
  return { objects, listeners, entries, elements, all: all.length };
}

/** Part of a connection to the database: the driver's pools open and close those as they see fit. */
function ofDriver(object, name) {
  if (name === "SizedMessageTransform" || (name === "Connection" && object instanceof EventEmitter)) return true;
  return object instanceof Socket && Object.hasOwn(object, "_host") && object.server == null;
}
