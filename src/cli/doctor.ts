import { once } from "node:events";
import { request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import { text } from "node:stream/consumers";
import { freeMib, whyFull } from "../embedded/disk.ts";
import { findMongod } from "../embedded/mongod-binary.ts";
import { connect } from "../mongo/connection.ts";
import { StartupError } from "../observe/startup-error.ts";
import { type Config, readConfig } from "../service/config.ts";
import type { ClientTls } from "./client-tls.ts";
import { whyNoAnswer } from "./no-answer.ts";
import { print } from "./output.ts";
import { endpointOf } from "./session.ts";

/** Exit code 1: something is wrong. */
export async function doctor({ json }: { json?: boolean }): Promise<void> {
  const findings = await runDoctor();
  const lines = findings.map(({ what, ok, detail }) => `${ok ? "ok  " : "FAIL"}  ${what}: ${detail}`);
  print(json ? JSON.stringify(findings) : lines.join("\n"));
  if (findings.some(({ ok }) => !ok)) process.exitCode = 1;
}

interface Finding {
  what: string;
  ok: boolean;
  detail: string;
}

/** Looks, and changes nothing. */
async function runDoctor(): Promise<Finding[]> {
  const findings: Finding[] = [];
  const check = async <T>(what: string, look: () => Promise<{ detail: string; value?: T }>): Promise<T | undefined> => {
    try {
      const { detail, value } = await look();
      findings.push({ what, ok: true, detail });
      return value;
    } catch (error) {
      if (!(error instanceof StartupError)) throw error;
      findings.push({ what, ok: false, detail: error.message });
      return undefined;
    }
  };
  const config = await check<Config>("configuration", async () => ({ detail: "complete", value: readConfig() }));
  if (config?.mongodbUri !== undefined) await check("MongoDB", () => checkDatabase(config.mongodbUri!));
  else if (config !== undefined) {
    await check("mongod", () => checkMongod(config));
    await check("disk", () => checkDisk(config));
  }
  await check("service", checkService);
  return findings;
}

async function checkDatabase(uri: string): Promise<{ detail: string }> {
  const connection = await connect(uri);
  await connection.close();
  return { detail: "a replica set or sharded cluster, and it answers" };
}

async function checkMongod({ cacheDir, mongodBinary: binary, path }: Config): Promise<{ detail: string }> {
  return { detail: await findMongod({ cacheDir, binary, path, download: false, say: () => {} }) };
}

async function checkDisk({ dataDir }: Config): Promise<{ detail: string }> {
  const full = await whyFull(dataDir);
  if (full !== undefined) throw new StartupError(full);
  return { detail: `${await freeMib(dataDir)} MiB are free for ${dataDir}` };
}

async function checkService(): Promise<{ detail: string }> {
  const { baseUrl: url, tls } = endpointOf({});
  const answer = await askHealth(`${url}/grpc.health.v1.Health/Check`, tls).catch((error: unknown) => {
    throw new StartupError(whyNoAnswer(url, error));
  });
  if (answer.status === "SERVING") return { detail: `${url} serves` };
  throw new StartupError(`${url} answers, but does not serve at the moment`);
}

/** By Node's own client, since `fetch` takes no certificates. */
async function askHealth(url: string, tls: ClientTls | undefined): Promise<{ status?: string }> {
  const request = url.startsWith("https:") ? httpsRequest : httpRequest;
  const call = request(url, {
    ...tls,
    method: "POST",
    headers: { "content-type": "application/json" },
    signal: AbortSignal.timeout(3_000),
  }).end("{}");
  const [response] = (await once(call, "response")) as [IncomingMessage];
  return JSON.parse(await text(response));
}
