import { connect as connectHttp2 } from "node:http2";
import { connect as connectTcp } from "node:net";
import { fileURLToPath } from "node:url";
import { fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, createClient } from "@connectrpc/connect";
import { createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { credentials, loadPackageDefinition, Metadata, type ServiceError } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { ServerReflection, type ServerReflectionResponse } from "#gen/grpc/reflection/v1/reflection_pb";
import { ServerReflection as ServerReflectionAlpha } from "#gen/grpc/reflection/v1alpha/reflection_pb";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/health/v1/health_pb";
import { ApiKeyService, Outcome } from "#gen/latchkey/v1/api_key_service_pb";
import { createHealth } from "../../src/rpc/health.ts";
import { listen } from "../../src/transport/listener.ts";
import { refusalOf } from "../support/errors.ts";
import { startService, type TestService, userToken } from "../support/service.ts";

let service: TestService;
beforeAll(async () => {
  service = await startService();
});
afterAll(() => service.stop());

type Callback = (error: ServiceError | null, answer: Record<string, unknown>) => void;
type LooseClient = Record<string, (request: object, metadata: Metadata, callback: Callback) => void>;

test("an independent client, @grpc/grpc-js with the proto files, creates and verifies a key", async () => {
  const proto = fileURLToPath(new URL("../../proto/latchkey/v1/api_key_service.proto", import.meta.url));
  const definition = loadPackageDefinition(loadSync(proto, { includeDirs: ["proto"], enums: String, defaults: true }));
  const { ApiKeyService: Service } = (
    definition.latchkey as unknown as { v1: Record<string, new (...args: unknown[]) => unknown> }
  ).v1;
  const client = new Service!(service.server.address, credentials.createInsecure()) as LooseClient & { close(): void };
  const call = async (method: string, request: object) => {
    const metadata = new Metadata();
    metadata.set("authorization", `Bearer ${await userToken("grpc-js")}`);
    return new Promise<Record<string, unknown>>((resolve, reject) => {
      client[method]!(request, metadata, (error, answer) => (error ? reject(error) : resolve(answer)));
    });
  };
  const { key } = await call("create", { scopes: ["read"] });
  expect(await call("verify", { key })).toMatchObject({ outcome: "OUTCOME_VALID" });
  await expect(call("create", { scopes: ["read"] })).rejects.toMatchObject({ code: 6 });
  client.close();
});

test("gRPC-Web is served on HTTP/1.1", async () => {
  const client = createClient(ApiKeyService, createGrpcWebTransport({ baseUrl: service.baseUrl, httpVersion: "1.1" }));
  expect((await client.verify({ key: "x" })).outcome).toBe(Outcome.MALFORMED);
  expect(await refusalOf(client.get({}))).toMatchObject({ code: "Unauthenticated", reason: "UNAUTHENTICATED" });
});

test("an unknown method over gRPC is UNIMPLEMENTED", async () => {
  const session = connectHttp2(service.baseUrl);
  const stream = session.request({
    ":method": "POST",
    ":path": "/latchkey.v1.ApiKeyService/Nothing",
    "content-type": "application/grpc",
    te: "trailers",
  });
  const headers = await new Promise<Record<string, unknown>>((resolve) => stream.once("response", resolve));
  expect(headers["grpc-status"]).toBe("12");
  session.destroy();
});

test.each([
  ["v1", ServerReflection],
  ["v1alpha", ServerReflectionAlpha],
] as const)(
  "reflection %s lists the services, describes them with their imports, and answers what it does not know",
  async (_version, reflection) => {
    const client = createClient(
      reflection as typeof ServerReflection,
      createGrpcTransport({ baseUrl: service.baseUrl }),
    );
    async function* questions() {
      yield { messageRequest: { case: "listServices" as const, value: "" } };
      yield { messageRequest: { case: "fileContainingSymbol" as const, value: "latchkey.v1.ApiKeyService.Verify" } };
      yield { messageRequest: { case: "fileByFilename" as const, value: "google/protobuf/duration.proto" } };
      yield { messageRequest: { case: "fileContainingSymbol" as const, value: "no.Such" } };
    }
    const answers: ServerReflectionResponse["messageResponse"][] = [];
    for await (const { messageResponse } of client.serverReflectionInfo(questions())) answers.push(messageResponse);
    const names = answers[0]?.case === "listServicesResponse" ? answers[0].value.service.map(({ name }) => name) : [];
    expect(names).toEqual(
      expect.arrayContaining([
        "latchkey.v1.ApiKeyService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
      ]),
    );
    const fileName = (answer: (typeof answers)[number] | undefined) =>
      answer?.case === "fileDescriptorResponse"
        ? fromBinary(FileDescriptorProtoSchema, answer.value.fileDescriptorProto[0]!).name
        : undefined;
    expect(fileName(answers[1])).toBe("latchkey/v1/api_key_service.proto");
    expect(fileName(answers[2])).toBe("google/protobuf/duration.proto");
    expect(answers[3]).toMatchObject({ case: "errorResponse", value: { errorCode: Code.NotFound } });
  },
);

test("health is told per service, and an unknown service is NOT_FOUND", async () => {
  const client = createClient(Health, createGrpcTransport({ baseUrl: service.baseUrl }));
  for (const name of ["", "latchkey.v1.ApiKeyService"])
    expect((await client.check({ service: name })).status).toBe(Status.SERVING);
  expect(await refusalOf(client.check({ service: "no.Such" }))).toMatchObject({ code: "NotFound" });
});

test("a health watch gets the state, each change once, and ends with the drain", async () => {
  const health = createHealth(["a"]);
  const { createRequestHandler } = await import("../../src/rpc/adapter.ts");
  const listener = await listen({
    host: "127.0.0.1",
    port: 0,
    handler: createRequestHandler({ interceptors: [], maxMessageBytes: 65_536, routes: health.routes }),
  });
  const client = createClient(Health, createGrpcTransport({ baseUrl: `http://${listener.address}` }));
  const seen: Status[] = [];
  for await (const { status } of client.watch({ service: "a" })) {
    seen.push(status);
    if (seen.length === 1) health.set(true);
    if (seen.length === 2) {
      health.set(true);
      health.drain();
    }
  }
  expect(seen).toEqual([Status.NOT_SERVING, Status.SERVING, Status.NOT_SERVING]);
  await listener.close(1_000);
});

test("readiness, liveness and metrics are on the ops port", async () => {
  const ops = `http://${service.server.opsAddress}`;
  await service.client().verify({ key: "x" });
  const [live, ready, metrics] = await Promise.all(["/livez", "/readyz", "/metrics"].map((path) => fetch(ops + path)));
  expect([live?.status, ready?.status]).toEqual([200, 200]);
  expect(await metrics?.text()).toContain('latchkey_verify_total{outcome="malformed"}');
});

test("the HTTP/2 preface is recognised byte by byte, and garbage ends only its own connection", async () => {
  const [host, port] = [service.server.address.split(":")[0]!, Number(service.server.address.split(":")[1])];
  const socket = connectTcp({ host, port, noDelay: true });
  const answer = new Promise<Buffer>((resolve) => socket.once("data", resolve));
  for (const byte of Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", "latin1")) {
    socket.write(Buffer.of(byte));
    await new Promise((resolve) => setImmediate(resolve));
  }
  // The server's first frame is SETTINGS: type 4.
  expect((await answer)[3]).toBe(4);
  socket.destroy();

  const garbage = connectTcp({ host, port });
  garbage.on("error", () => {});
  garbage.resume();
  garbage.write(Buffer.from([0xff, 0xfe, 0, 1, 13, 10, 13, 10]));
  await new Promise((resolve) => garbage.once("close", resolve));
  expect((await service.client().verify({ key: "x" })).outcome).toBe(Outcome.MALFORMED);
});

test("a call in flight when the listener closes still gets its answer, on HTTP/1.1 and HTTP/2", async () => {
  let arrived = () => {};
  let finish = () => {};
  const listener = await listen({
    host: "127.0.0.1",
    port: 0,
    handler: (_request, response) => {
      finish = () => response.end("done");
      arrived();
    },
  });
  for (const version of ["1.1", "2"]) {
    const open =
      version === "1.1"
        ? listener
        : await listen({
            host: "127.0.0.1",
            port: 0,
            handler: (_request, response) => {
              finish = () => response.end("done");
              arrived();
            },
          });
    const came = new Promise<void>((resolve) => {
      arrived = resolve;
    });
    const answer =
      version === "1.1"
        ? fetch(`http://${open.address}`).then((response) => response.text())
        : http2Get(`http://${open.address}`);
    await came;
    const closed = open.close(5_000);
    finish();
    expect(await answer).toBe("done");
    await closed;
  }
});

async function http2Get(url: string): Promise<string> {
  const session = connectHttp2(url);
  const stream = session.request({ ":path": "/" });
  let text = "";
  stream.setEncoding("utf8").on("data", (chunk) => {
    text += chunk;
  });
  await new Promise((resolve) => stream.once("end", resolve));
  session.close();
  return text;
}
