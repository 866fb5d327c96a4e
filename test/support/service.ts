import { createHash, randomUUID } from "node:crypto";
import { Writable } from "node:stream";
import { type Client, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { SignJWT } from "jose";
import { ApiKeyService } from "#gen/latchkey/v1/api_key_service_pb";
import { createLogger } from "../../src/observe/logger.ts";
import { readConfig } from "../../src/service/config.ts";
import { type Server, startServer } from "../../src/service/server.ts";

export const JWT_SECRET = "a-test-secret-that-is-long-enough-for-hs256";
export const PEPPER = Buffer.alloc(32, 7).toString("base64");
export const SERVICE_TOKEN = "a-service-token";

export interface TestService {
  server: Server;
  baseUrl: string;
  database: string;
  /** All that was logged, as text. */
  logs(): string;
  /** Every name is a new user unless it was used before. */
  client(user?: string, options?: { admin?: boolean; protocol?: "grpc" | "connect" }): Client<typeof ApiKeyService>;
  stop(): Promise<void>;
}

export interface TestServiceOptions {
  env?: Record<string, string>;
  clock?: () => Date;
  /** Told the progress that people are shown. */
  say?: (line: string) => void;
}

/** A real service on a real socket and a real MongoDB, in a database of its own unless `env` names one. */
export async function startService({ env = {}, clock, say = () => {} }: TestServiceOptions = {}): Promise<TestService> {
  const database = env.MONGODB_DATABASE ?? `test-${randomUUID()}`;
  let text = "";
  const output = new Writable({
    write(chunk, _encoding, done) {
      text += chunk;
      done();
    },
  });
  const config = readConfig({
    MONGODB_URI: process.env.TEST_MONGODB_URI,
    MONGODB_DATABASE: database,
    LATCHKEY_LISTEN: "127.0.0.1:0",
    LATCHKEY_OPS_LISTEN: "127.0.0.1:0",
    LATCHKEY_JWT_SECRET: JWT_SECRET,
    LATCHKEY_PEPPERS: `p1:${PEPPER}`,
    LATCHKEY_LOG_LEVEL: "debug",
    ...env,
  });
  const server = await startServer(config, {
    log: createLogger({ level: config.logLevel, output }),
    say,
    onFatal: (error) => {
      throw error;
    },
    ...(clock && { clock }),
  });
  const baseUrl = `http://${server.address}`;
  return {
    server,
    baseUrl,
    database,
    logs: () => text,
    client(user = randomUUID(), { admin = false, protocol = "connect" } = {}) {
      const options = {
        baseUrl,
        interceptors: [
          (next: (request: never) => Promise<never>) => async (request: { header: Headers }) => {
            if (!request.header.has("authorization"))
              request.header.set("authorization", `Bearer ${await userToken(user, { admin })}`);
            return next(request as never);
          },
        ] as never[],
      };
      return createClient(
        ApiKeyService,
        protocol === "grpc" ? createGrpcTransport(options) : createConnectTransport({ ...options, httpVersion: "1.1" }),
      );
    },
    stop: () => server.stop(),
  };
}

export async function userToken(
  user: string,
  {
    admin = false,
    secret = JWT_SECRET,
    claims = {},
    ttlS = 600,
  }: { admin?: boolean; secret?: string; claims?: object; ttlS?: number | null } = {},
): Promise<string> {
  const now = Math.floor(Date.now() / 1_000);
  const exp = ttlS === null ? {} : { exp: now + ttlS };
  return new SignJWT({ role: admin ? "admin" : "member", sub: user, iat: now, ...exp, ...claims })
    .setProtectedHeader({ alg: "HS256" })
    .sign(new TextEncoder().encode(secret));
}

export function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}
