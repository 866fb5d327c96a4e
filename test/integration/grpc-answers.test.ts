import { create, createRegistry, fromBinary, toBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "@jest/globals";
import { ErrorInfoSchema } from "#gen/google/rpc/error_details_pb";
import { StatusSchema } from "#gen/google/rpc/status_pb";
import { HealthCheckRequestSchema } from "#gen/health/v1/health_pb";
import { VerifyStreamRequestSchema } from "#gen/latchkey/v1/api_key_service_pb";
import { Flag, Type } from "../../src/fastpath/http2/frames.ts";
import { escapeMessage } from "../../src/fastpath/wire-format.ts";
import { data, type FrameClient, inEnvelope, openFrameClient, requestHeaders } from "../support/frame-client.ts";
import { SERVICE_TOKEN, sha256, startService, type TestService, userToken } from "../support/service.ts";

// What gRPC clients of other languages were seen to take for an error, or to show to people, frame by frame.

let service: TestService;
beforeAll(async () => {
  service = await startService({
    env: { LATCHKEY_VERIFY_AUTH: "token", LATCHKEY_SERVICE_TOKENS: `gateway:sha256:${sha256(SERVICE_TOKEN)}` },
  });
});
afterAll(() => service.stop());
const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const HEALTH = "/grpc.health.v1.Health";
const KEYS = "/latchkey.v1.ApiKeyService";

async function ask(path: string, type: string, more: string[] = [], message: Uint8Array = Buffer.alloc(0)) {
  const client = await openFrameClient(service.server);
  cleanUps.push(() => client.socket.destroy());
  client.write(requestHeaders(1, { path, type, more }), data(1, inEnvelope(message)));
  return client;
}

/** The frames of a call's answer, and their fields in order. */
async function answerTo(...question: Parameters<typeof ask>) {
  const client = await ask(...question);
  await client.until(() => client.stream(1).ended);
  expect(client.faults).toEqual([]);
  const frames = client.frames.filter(({ id, type: of }) => id === 1 && (of === Type.DATA || of === Type.HEADERS));
  return {
    frames: frames.map(({ type, payload }) => (type === Type.HEADERS ? "HEADERS" : `DATA of ${payload.length} bytes`)),
    endsWithHeaders: frames.at(-1)!.type === Type.HEADERS && (frames.at(-1)!.flags & Flag.END_STREAM) !== 0,
    fields: Object.fromEntries(client.stream(1).fields),
    names: client.stream(1).fields.map(([name]) => name),
    body: client.stream(1).body.toString("latin1"),
  };
}

describe("an answer of headers alone ends with them, and no empty DATA frame follows, which C-core clients take for UNKNOWN", () => {
  test.each([
    ["an unknown method", `${HEALTH}/Chock`, "application/grpc"],
    ["an unknown service", "/none/None", "application/grpc"],
    ["an unknown method in gRPC-Web", "/none/None", "application/grpc-web+proto"],
  ])("%s: UNIMPLEMENTED", async (_what, path, type) => {
    const { frames, endsWithHeaders, fields } = await answerTo(path, type);
    expect({ frames, endsWithHeaders }).toEqual({ frames: ["HEADERS"], endsWithHeaders: true });
    expect(fields).toMatchObject({ ":status": "200", "content-type": type, "grpc-status": "12" });
  });

  test("a refusal by Connect has no DATA frame either", async () => {
    const { frames, endsWithHeaders, fields } = await answerTo(`${HEALTH}/Check`, "application/grpc", [
      "grpc-encoding",
      "zap",
    ]);
    expect({ frames, endsWithHeaders }).toEqual({ frames: ["HEADERS", "HEADERS"], endsWithHeaders: true });
    expect(fields["grpc-status"]).toBe("12");
  });
});

describe("an error has ErrorInfo whoever finds the fault", () => {
  const askHealth = (method: string, service: string, more: string[] = []) =>
    answerTo(
      `${HEALTH}/${method}`,
      "application/grpc",
      more,
      toBinary(HealthCheckRequestSchema, create(HealthCheckRequestSchema, { service })),
    );
  test.each([
    ["an unknown method", "12", "UNIMPLEMENTED", () => answerTo("/none/None", "application/grpc")],
    ["an unknown compression", "12", "UNIMPLEMENTED", () => askHealth("Check", "", ["grpc-encoding", "zap"])],
    [
      "an unknown compression of a stream",
      "12",
      "UNIMPLEMENTED",
      () => askHealth("Watch", "", ["grpc-encoding", "zap"]),
    ],
    ["an unknown service in a health check", "5", "UNKNOWN_SERVICE", () => askHealth("Check", "none")],
  ])("%s", async (_what, status, reason, asked) => {
    const { fields } = await asked();
    const details = fromBinary(StatusSchema, Buffer.from(fields["grpc-status-details-bin"] ?? "", "base64")).details;
    const [info] = details.map((detail) => anyUnpack(detail, createRegistry(ErrorInfoSchema)));
    expect({ status: fields["grpc-status"], info }).toMatchObject({ status, info: { reason, domain: "latchkey.v1" } });
  });

  test("the answer to an unknown compression names those that are known", async () => {
    const { fields } = await askHealth("Check", "", ["grpc-encoding", "zap"]);
    expect(fields["grpc-accept-encoding"]).toBe("gzip,br");
  });
});

const STATUS = ["grpc-status", "grpc-message", "grpc-status-details-bin"];

describe("an error's trailers stand in gRPC's order (status, message, details), each once, and its message is legible as it is", () => {
  test.each([
    ["on the fast path", `${KEYS}/Verify`],
    ["of a stream on the fast path", `${KEYS}/VerifyStream`],
    ["by Connect", `${KEYS}/Get`],
    ["of a stream by Connect", `${KEYS}/Watch`],
  ])("%s", async (_where, path) => {
    const { names, fields } = await answerTo(path, "application/grpc");
    expect(names.filter((name) => name.startsWith("grpc-"))).toEqual(STATUS);
    expect(fields["grpc-message"]).toMatch(/^No .* was sent\. Send authorization: Bearer <token>\.$/);
    expect(fields["grpc-status-details-bin"]).not.toContain(",");
  });

  test.each([
    ["on the fast path", `${KEYS}/Verify`],
    ["by Connect", `${KEYS}/Get`],
  ])("%s in gRPC-Web", async (_where, path) => {
    const { body } = await answerTo(path, "application/grpc-web+proto");
    const lines = body.slice(5).split("\r\n");
    expect(lines.map((line) => line.split(":")[0]).slice(0, 3)).toEqual(STATUS);
    expect(lines[1]).toMatch(/^grpc-message: No .* was sent\. Send authorization: Bearer <token>\.$/);
  });

  test.each([
    ['plain text: any, of it/all; "so" (it is)', 'plain text: any, of it/all; "so" (it is)'],
    ["100 % \u00fcber\n\u{1f511}\u007f", "100 %25 %C3%BCber%0A%F0%9F%94%91%7F"],
    [" at both ends ", "%20at both ends%20"],
    ["half \ud83d a pair", "half %EF%BF%BD a pair"],
    ["", ""],
  ])("%j is sent as %j", (message, sent) => {
    expect(escapeMessage(message)).toBe(sent);
    expect(decodeURIComponent(sent)).toBe(message.toWellFormed());
  });
});

describe("a timeout of any length is read, and a longer one than a timer can count is none that ends a call", () => {
  const warnings: Error[] = [];
  const warned = (warning: Error) => warnings.push(warning);
  beforeAll(() => void process.on("warning", warned));
  afterAll(() => void process.off("warning", warned));
  const TIMEOUTS = ["100000000m", "123456789012345m", "99999999H", "000000000000000060S", "5000000000u", "36000M"];
  const byService = ["authorization", `Bearer ${SERVICE_TOKEN}`];
  const question = toBinary(VerifyStreamRequestSchema, create(VerifyStreamRequestSchema, { request: { key: "x" } }));

  test.each(TIMEOUTS)("grpc-timeout: %s", async (timeout) => {
    const user = ["authorization", `Bearer ${await userToken("somebody")}`];
    const codeOf = async (method: string, who: string[], message?: Uint8Array, type = "application/grpc") => {
      const { fields, body } = await answerTo(`${KEYS}/${method}`, type, ["grpc-timeout", timeout, ...who], message);
      return fields["grpc-status"] ?? /grpc-status: (\d+)/.exec(body)?.[1];
    };
    // NO_KEY: it was understood.
    expect(await codeOf("Get", user)).toBe("5");
    expect(await codeOf("Get", user, undefined, "application/grpc-web")).toBe("5");
    expect(await codeOf("Verify", byService)).toBe("0");
    expect(await codeOf("Verify", byService, undefined, "application/grpc-web")).toBe("0");
    expect(await codeOf("VerifyStream", byService, question)).toBe("0");
    const messages = (client: FrameClient) => client.frames.filter(({ type }) => type === Type.DATA).length;
    const watch = await ask(`${KEYS}/Watch`, "application/grpc", ["grpc-timeout", timeout, ...byService]);
    await watch.until(() => messages(watch) >= 3 || watch.stream(1).ended);
    expect(watch.stream(1).ended).toBe(false);
    expect(warnings.map(({ name }) => name)).not.toContain("TimeoutOverflowWarning");
  });

  test.each(["9999999999", "12345678901234567890"])("connect-timeout-ms: %s", async (timeout) => {
    const headers = { "content-type": "application/json", "connect-timeout-ms": timeout };
    const call = (method: string, token: string) =>
      fetch(`${service.baseUrl}${KEYS}/${method}`, {
        method: "POST",
        headers: { ...headers, authorization: `Bearer ${token}` },
        body: "{}",
      });
    expect((await call("Get", await userToken("somebody"))).status).toBe(404);
    expect((await call("Verify", SERVICE_TOKEN)).status).toBe(200);
  });

  test.each([
    ["Get", "soon"],
    ["Verify", "5"],
    ["VerifyStream", "-5S"],
    ["Watch", "5s"],
  ])("%s with grpc-timeout: %s, which is none, is INVALID_ARGUMENT, and names the header", async (method, timeout) => {
    const who = method === "Get" ? ["authorization", `Bearer ${await userToken("somebody")}`] : byService;
    const message = method === "VerifyStream" ? question : undefined;
    const { fields } = await answerTo(
      `${KEYS}/${method}`,
      "application/grpc",
      ["grpc-timeout", timeout, ...who],
      message,
    );
    expect(fields["grpc-status"]).toBe("3");
    expect(fields["grpc-message"]).toContain("grpc-timeout");
    expect(Buffer.from(fields["grpc-status-details-bin"] ?? "", "base64").toString()).toContain("INVALID_ARGUMENT");
  });
});
