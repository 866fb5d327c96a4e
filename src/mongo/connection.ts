import { setTimeout as sleep } from "node:timers/promises";
import { type Document, MongoClient, type MongoClientOptions, MongoError, MongoNetworkError } from "mongodb";
import { StartupError } from "../observe/startup-error.ts";
import { judgeUri } from "./connection-string.ts";
import { isOverloaded } from "./server-errors.ts";

export interface Connection {
  readonly client: MongoClient;
  /** Whether the primary answers, within `timeoutMs`. Never throws. */
  reachable(timeoutMs: number): Promise<boolean>;
  close(): Promise<void>;
}

/** No operation takes longer, whatever its caller would wait for. */
export const OPERATION_TIMEOUT_MS = 5_000;

// Set here, not in the URI, so that nothing in MONGODB_URI weakens what the store promises.
const OPTIONS: MongoClientOptions = {
  // A call's own deadline goes along as maxTimeMS, which the server keeps; these end what no server answers.
  socketTimeoutMS: OPERATION_TIMEOUT_MS + 1_000,
  waitQueueTimeoutMS: 2_000,
  serverSelectionTimeoutMS: 2_000,
  connectTimeoutMS: 2_000,
  heartbeatFrequencyMS: 2_000,
  minPoolSize: 4,
  readPreference: "primary",
  readConcern: { level: "majority" },
  writeConcern: { w: "majority" },
  retryReads: true,
  retryWrites: true,
  // A refusal for overload is tried again where the call's deadline is known: the driver's pauses may outlast it.
  maxAdaptiveRetries: 0,
};

/** Connects to a replica set or a sharded cluster; anything else is refused with a StartupError. */
export async function connect(uri: string): Promise<Connection> {
  const client = openClient(uri);
  try {
    const hello = await greet(client);
    // It may be said by the DNS record of a mongodb+srv:// name as well.
    if (client.options.loadBalanced)
      throw new StartupError(
        "MONGODB_URI points to a load balancer (loadBalanced=true). Latchkey must know the members themselves: use the deployment's standard connection string.",
      );
    if (hello.setName === undefined && hello.msg !== "isdbgrid") {
      throw new StartupError(
        "MONGODB_URI points to a standalone MongoDB server. Latchkey needs transactions and change streams, which only " +
          'a replica set or a sharded cluster has: start mongod with --replSet rs0, run rs.initiate() once, and add "?replicaSet=rs0" to the URI.',
      );
    }
  } catch (error) {
    await client.close();
    if (error instanceof StartupError) throw error;
    // The driver's messages name hosts and reasons, and no credentials.
    const why = error instanceof Error ? error.message : String(error);
    throw new StartupError(
      `MongoDB could not be reached (${why}). Check MONGODB_URI: hosts, user and password, and that the replica set has a primary.`,
    );
  }
  return {
    client,
    reachable: (timeoutMs) => {
      const ping = client.db("admin").command({ ping: 1 }, { readPreference: "primary" });
      // One that has too much to do answers.
      const answered = ping.then(() => true, isOverloaded);
      return Promise.race([answered, sleep(timeoutMs, false, { ref: false })]);
    },
    close: () => client.close(),
  };
}

/** The first connections of a process take longest, most of all on a busy machine. */
const FIRST_CONNECTION_MS = 15_000;

/** The first command. That no server is found is said at once; a connection that is slow to come is waited for. */
function greet(client: MongoClient): Promise<Document> {
  const hello = () => client.db("admin").command({ hello: 1 });
  return onceConnected(hello, (error) => error instanceof MongoNetworkError || isWaitQueueTimeout(error));
}

/** Begins `operation` again while it fails for want of a connection, for as long as the first one of a process may take. */
export async function onceConnected<T>(
  operation: () => Promise<T>,
  isSlow: (error: unknown) => boolean = isWaitQueueTimeout,
): Promise<T> {
  const endMs = performance.now() + FIRST_CONNECTION_MS;
  for (;;) {
    try {
      return await operation();
    } catch (error) {
      if (!isSlow(error) || performance.now() > endMs) throw error;
      await sleep(100);
    }
  }
}

/** The driver exports no class for it. */
export function isWaitQueueTimeout(error: unknown): boolean {
  return error instanceof MongoError && error.name === "MongoWaitQueueTimeoutError";
}

/**
 * A client for Verify, so that nothing of it waits behind the transactions of other calls. It connects when first used. That
 * a member vanished is noticed after about `connectTimeoutMS` + `heartbeatFrequencyMS`; how long a read may take is its
 * caller's to say.
 */
export function openVerifyClient(uri: string): MongoClient {
  return openClient(uri, { connectTimeoutMS: 1_000, heartbeatFrequencyMS: 500, maxPoolSize: 32 });
}

/**
 * Runs `work` with a client of its own, whose operations may take as long as they need: to build an index of many records takes
 * minutes. When `signal` is aborted, it is closed under them.
 */
export async function patiently<T>(
  uri: string,
  work: (client: MongoClient) => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const waits = { socketTimeoutMS: 0, waitQueueTimeoutMS: FIRST_CONNECTION_MS, connectTimeoutMS: FIRST_CONNECTION_MS };
  const client = openClient(uri, { ...waits, minPoolSize: 0, maxPoolSize: 2 });
  const close = () => client.close();
  signal?.addEventListener("abort", close);
  try {
    signal?.throwIfAborted();
    return await work(client);
  } finally {
    signal?.removeEventListener("abort", close);
    await close();
  }
}

function openClient(text: string, options: MongoClientOptions = {}): MongoClient {
  const { uri, kept } = judgeUri(text) ?? { uri: text, kept: [] };
  const named = kept.some((name) => name.toLowerCase() === "appname") ? {} : { appName: "latchkey" };
  try {
    return new MongoClient(uri, { ...OPTIONS, ...named, ...options });
  } catch (error) {
    throw new StartupError(
      `MONGODB_URI is not a valid MongoDB connection string${whyNot(error, uri)}. Expected: mongodb://host:27017/?replicaSet=rs0`,
    );
  }
}

/** The driver's own words, unless they quote what may be secret. */
function whyNot(error: unknown, uri: string): string {
  const { message } = error as Error;
  const [, user = ""] = /^[^:]+:\/\/(?:([^@]*)@)?/.exec(uri) ?? [];
  const options = [...new URLSearchParams(uri.replace(/^[^?]*\??/s, ""))];
  const values = [
    ...user.split(":"),
    ...options.filter(([name]) => /pass|properties/i.test(name)).map(([, value]) => value),
  ];
  const quoted = values.flatMap((value) => [value, decoded(value)]).filter((value) => value.length > 1);
  return message.includes(uri) || quoted.some((value) => message.includes(value)) ? "" : ` (${message})`;
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
