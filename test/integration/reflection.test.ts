import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { create, createFileRegistry, type DescFile, fromBinary } from "@bufbuild/protobuf";
import {
  type FileDescriptorProto,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
  FieldDescriptorProto_Label as Label,
  FieldDescriptorProto_Type as Type,
} from "@bufbuild/protobuf/wkt";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { type ClientDuplexStream, credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { afterEach, describe, expect, test } from "@jest/globals";
import { file_google_rpc_error_details } from "#gen/google/rpc/error_details_pb";
import { file_health_v1_health } from "#gen/health/v1/health_pb";
import { file_latchkey_v1_api_key_service } from "#gen/latchkey/v1/api_key_service_pb";
import { reflectionRoutes } from "../../src/edge/connect/reflection.ts";
import { listen } from "../../src/fastpath/listen.ts";

interface Answer {
  validHost: string;
  originalRequest: object;
  messageResponse: string;
  fileDescriptorResponse?: { fileDescriptorProto: Buffer[] };
  allExtensionNumbersResponse?: { baseTypeName: string; extensionNumber: number[] };
  listServicesResponse?: { service: { name: string }[] };
  errorResponse?: { errorCode: number; errorMessage: string };
}
interface ReflectionClient {
  serverReflectionInfo(): ClientDuplexStream<object, Answer>;
  close(): void;
}

const protos = join(
  dirname(createRequire(import.meta.url).resolve("@grpc/reflection/package.json")),
  "build/proto/grpc/reflection",
);
const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(version: string, files: DescFile[]) {
  const handler = connectNodeAdapter({ routes: reflectionRoutes(files) });
  const listener = await listen({ host: "127.0.0.1", port: 0, handler });
  cleanUps.push(() => listener.close(0));
  const { grpc } = loadPackageDefinition(
    loadSync(join(protos, version, "reflection.proto"), { defaults: false, oneofs: true }),
  ) as unknown as {
    grpc: { reflection: Record<string, { ServerReflection: new (...args: unknown[]) => ReflectionClient }> };
  };
  const client = new grpc.reflection[version]!.ServerReflection(listener.address, credentials.createInsecure());
  cleanUps.push(() => client.close());
  const stream = client.serverReflectionInfo();
  cleanUps.push(() => stream.end());
  const answers = stream[Symbol.asyncIterator]();
  /** All questions of a test go through one stream, one after the other. */
  return async (question: object): Promise<Answer> => {
    stream.write({ host: "a.host", ...question });
    const { value, done } = await answers.next();
    if (done) throw new Error("the stream ended");
    return value;
  };
}

function filesIn({ fileDescriptorResponse }: Answer): FileDescriptorProto[] {
  return fileDescriptorResponse!.fileDescriptorProto.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes));
}

const error = (errorCode: number) => ({ messageResponse: "errorResponse", errorResponse: { errorCode } });
const SERVED = [file_latchkey_v1_api_key_service, file_health_v1_health, file_google_rpc_error_details];

/** Everything that can be asked for by name, in proto2 for the sake of extensions. */
function sampleFiles(): DescFile[] {
  const optional = { label: Label.OPTIONAL, type: Type.STRING };
  const base = create(FileDescriptorProtoSchema, {
    name: "sample/base.proto",
    package: "sample",
    syntax: "proto2",
    messageType: [
      {
        name: "Extendable",
        extensionRange: [{ start: 100, end: 200 }],
        field: [{ name: "text", number: 1, ...optional, oneofIndex: 0 }],
        oneofDecl: [{ name: "choice" }],
        nestedType: [{ name: "Inner", field: [{ name: "deep", number: 1, ...optional }] }],
        enumType: [{ name: "Kind", value: [{ name: "KIND_NONE", number: 0 }] }],
      },
      { name: "Plain" },
    ],
    enumType: [{ name: "Colour", value: [{ name: "COLOUR_NONE", number: 0 }] }],
  });
  const more = create(FileDescriptorProtoSchema, {
    name: "sample/more.proto",
    package: "sample.more",
    syntax: "proto2",
    dependency: ["sample/base.proto"],
    extension: [{ name: "top", number: 101, extendee: ".sample.Extendable", ...optional }],
    messageType: [
      {
        name: "Holder",
        extension: [{ name: "nested", number: 102, extendee: ".sample.Extendable", ...optional }],
      },
    ],
    service: [
      { name: "Zebra", method: [{ name: "Run", inputType: ".sample.Plain", outputType: ".sample.Plain" }] },
      { name: "Ape" },
    ],
  });
  return [createFileRegistry(create(FileDescriptorSetSchema, { file: [base, more] })).getFile("sample/more.proto")!];
}

describe.each(["v1", "v1alpha"])("reflection %s", (version) => {
  test("lists the services of the files it was given, in order", async () => {
    expect(await (await start(version, SERVED))({ listServices: "" })).toMatchObject({
      listServicesResponse: { service: [{ name: "grpc.health.v1.Health" }, { name: "latchkey.v1.ApiKeyService" }] },
    });
    expect(await (await start(version, sampleFiles()))({ listServices: "*" })).toMatchObject({
      listServicesResponse: { service: [{ name: "sample.more.Ape" }, { name: "sample.more.Zebra" }] },
    });
  });

  test("describes a service completely: the file that declares it first, then all that this imports", async () => {
    const ask = await start(version, SERVED);
    const files = filesIn(await ask({ fileContainingSymbol: "latchkey.v1.ApiKeyService" }));
    expect(files[0]?.name).toBe("latchkey/v1/api_key_service.proto");
    const names = files.map(({ name }) => name);
    expect(new Set(names).size).toBe(names.length);
    for (const { dependency } of files) expect(names).toEqual(expect.arrayContaining(dependency));
    const registry = createFileRegistry(files[0]!, (name) => files.find((file) => file.name === name));
    expect(registry.getService("latchkey.v1.ApiKeyService")?.method.verify?.output.typeName).toBe(
      "latchkey.v1.VerifyResponse",
    );
  });

  test("finds a file by its name, an imported one too", async () => {
    const ask = await start(version, SERVED);
    for (const name of ["health/v1/health.proto", "google/protobuf/duration.proto", "google/rpc/error_details.proto"])
      expect(filesIn(await ask({ fileByFilename: name }))[0]?.name).toBe(name);
  });

  test("finds the details of an error, which no service mentions", async () => {
    const [file] = filesIn(await (await start(version, SERVED))({ fileContainingSymbol: "google.rpc.ErrorInfo" }));
    expect(file?.messageType.map(({ name }) => name)).toEqual(expect.arrayContaining(["ErrorInfo", "RetryInfo"]));
  });

  test("finds the file of every kind of symbol", async () => {
    const ask = await start(version, sampleFiles());
    const symbols = {
      "sample/base.proto": [
        "sample.Extendable",
        "sample.Extendable.text",
        "sample.Extendable.choice",
        "sample.Extendable.Inner",
        "sample.Extendable.Inner.deep",
        "sample.Extendable.Kind",
        "sample.Extendable.KIND_NONE",
        "sample.Colour",
        "sample.COLOUR_NONE",
      ],
      "sample/more.proto": [
        "sample.more.Zebra",
        "sample.more.Zebra.Run",
        "sample.more.top",
        "sample.more.Holder.nested",
      ],
    };
    for (const [file, names] of Object.entries(symbols))
      for (const symbol of names)
        expect([symbol, filesIn(await ask({ fileContainingSymbol: symbol }))[0]?.name]).toEqual([symbol, file]);
  });

  test("finds extensions by their number, and the numbers of a type", async () => {
    const ask = await start(version, sampleFiles());
    for (const extensionNumber of [101, 102]) {
      const answer = await ask({ fileContainingExtension: { containingType: "sample.Extendable", extensionNumber } });
      expect(filesIn(answer).map(({ name }) => name)).toEqual(["sample/more.proto", "sample/base.proto"]);
    }
    const { allExtensionNumbersResponse } = await ask({ allExtensionNumbersOfType: "sample.Extendable" });
    expect(allExtensionNumbersResponse?.baseTypeName).toBe("sample.Extendable");
    expect(allExtensionNumbersResponse?.extensionNumber.sort()).toEqual([101, 102]);
    expect(await ask({ allExtensionNumbersOfType: "sample.Plain" })).toMatchObject({
      allExtensionNumbersResponse: { baseTypeName: "sample.Plain" },
    });
  });

  test("answers what it does not know with NOT_FOUND, and the stream goes on", async () => {
    const ask = await start(version, sampleFiles());
    for (const question of [
      { fileByFilename: "no/such.proto" },
      { fileByFilename: "" },
      { fileContainingSymbol: "no.Such" },
      { fileContainingSymbol: "sample" },
      { fileContainingSymbol: "sample.more.Zebra.Walk" },
      { fileContainingSymbol: "constructor" },
      { fileContainingExtension: { containingType: "sample.Extendable", extensionNumber: 199 } },
      { fileContainingExtension: { containingType: "no.Such", extensionNumber: 1 } },
      { allExtensionNumbersOfType: "no.Such" },
    ])
      expect(await ask(question)).toMatchObject(error(5));
    expect(await ask({ listServices: "" })).toMatchObject({ messageResponse: "listServicesResponse" });
  });

  test("answers a request without a question with INVALID_ARGUMENT, and the stream goes on", async () => {
    const ask = await start(version, SERVED);
    expect(await ask({})).toMatchObject(error(3));
    expect(await ask({ listServices: "" })).toMatchObject({ messageResponse: "listServicesResponse" });
  });

  test("repeats the host and the question in its answer", async () => {
    const answer = await (await start(version, SERVED))({ fileContainingSymbol: "no.Such" });
    expect(answer).toMatchObject({
      validHost: "a.host",
      originalRequest: { host: "a.host", fileContainingSymbol: "no.Such" },
    });
  });
});
