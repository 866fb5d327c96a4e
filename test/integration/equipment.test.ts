import { connect as connectHttp2 } from "node:http2";
import { fileURLToPath } from "node:url";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { credentials, loadPackageDefinition, Metadata, type ServiceError } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { ServerReflection, type ServerReflectionResponse } from "#gen/grpc/reflection/v1/reflection_pb";
import { ServerReflection as ServerReflectionAlpha } from "#gen/grpc/reflection/v1alpha/reflection_pb";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/health/v1/health_pb";
import { ApiKeyService, Outcome } from "#gen/latchkey/v1/api_key_service_pb";
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
  "reflection %s shows all that this service serves, and the details of its errors",
  async (_version, reflection) => {
    const client = createClient(
      reflection as typeof ServerReflection,
      createGrpcTransport({ baseUrl: service.baseUrl }),
    );
    async function* questions() {
      yield { messageRequest: { case: "listServices" as const, value: "" } };
      yield { messageRequest: { case: "fileContainingSymbol" as const, value: "google.rpc.RetryInfo" } };
    }
    const answers: ServerReflectionResponse["messageResponse"][] = [];
    for await (const { messageResponse } of client.serverReflectionInfo(questions())) answers.push(messageResponse);
    expect(answers.map((answer) => answer.case)).toEqual(["listServicesResponse", "fileDescriptorResponse"]);
    const names = answers[0]?.case === "listServicesResponse" ? answers[0].value.service.map(({ name }) => name) : [];
    expect(names).toEqual([
      "envoy.service.auth.v3.Authorization",
      "grpc.health.v1.Health",
      "grpc.reflection.v1.ServerReflection",
      "grpc.reflection.v1alpha.ServerReflection",
      "latchkey.v1.AdminService",
      "latchkey.v1.ApiKeyService",
    ]);
  },
);

test("health is told of the whole and of each service", async () => {
  const client = createClient(Health, createGrpcTransport({ baseUrl: service.baseUrl }));
  for (const name of [
    "",
    "latchkey.v1.ApiKeyService",
    "latchkey.v1.AdminService",
    "envoy.service.auth.v3.Authorization",
  ])
    expect((await client.check({ service: name })).status).toBe(Status.SERVING);
});

test("readiness, liveness and metrics are on the ops port", async () => {
  const ops = `http://${service.server.opsAddress}`;
  await service.client().verify({ key: "x" });
  const [live, ready, metrics] = await Promise.all(["/livez", "/readyz", "/metrics"].map((path) => fetch(ops + path)));
  expect([live?.status, ready?.status]).toEqual([200, 200]);
  expect(await metrics?.text()).toContain('latchkey_verify_total{outcome="malformed"}');
});
