// The driver's bare findOne by _id, with its default settings, on records that are there.
import { readFileSync } from "node:fs";
import { MongoClient } from "mongodb";
import { measureOnDemand, type ProgramOptions } from "./interval.ts";

interface FindOneOptions extends ProgramOptions {
  /** Holds the URI: a file of its owner's, as an argument would be anyone's to read. */
  uriFile: string;
  database: string;
  collection: string;
  ids: string;
}

const options: FindOneOptions = JSON.parse(process.argv[2] ?? "");
const ids: string[] = JSON.parse(readFileSync(options.ids, "utf8"));
const client = new MongoClient(readFileSync(options.uriFile, "utf8"));
const collection = client.db(options.database).collection<{ _id: string }>(options.collection);
let next = 0;
async function once(): Promise<void> {
  const found = await collection.findOne({ _id: ids[next++ % ids.length]! });
  if (found === null) throw new Error("a record is missing");
}
// A pool that is still opening its connections would be measured for that.
for (let pass = 0; pass < 20; pass += 1) await Promise.all(Array.from({ length: options.inFlight }, once));
await measureOnDemand(options, once);
await client.close();
