import {
  createRegistry,
  type DescFile,
  type DescMessage,
  type DescService,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, type ConnectRouter } from "@connectrpc/connect";
import {
  ServerReflection,
  type ServerReflectionRequest,
  type ServerReflectionResponseSchema,
} from "#gen/grpc/reflection/v1/reflection_pb";
import {
  type ServerReflectionResponseSchema as AlphaResponseSchema,
  ServerReflection as ServerReflectionAlpha,
} from "#gen/grpc/reflection/v1alpha/reflection_pb";

type Question = ServerReflectionRequest["messageRequest"];
type Answer = NonNullable<MessageInitShape<typeof ServerReflectionResponseSchema>["messageResponse"]>;
type AlphaAnswer = NonNullable<MessageInitShape<typeof AlphaResponseSchema>["messageResponse"]>;

/** Server reflection, v1 and v1alpha, over `files` and all that they import. */
export function reflectionRoutes(files: readonly DescFile[]): (router: ConnectRouter) => void {
  const byName = new Map<string, DescFile>();
  const collect = (file: DescFile) => {
    if (byName.has(file.proto.name)) return;
    byName.set(file.proto.name, file);
    file.dependencies.forEach(collect);
  };
  files.forEach(collect);
  const symbols = symbolTable(byName.values());
  const services = files.flatMap((file) => file.services).map(({ typeName }) => ({ name: typeName }));
  const registry = createRegistry(...byName.values());

  function answer(question: Question): Answer {
    switch (question.case) {
      case "listServices":
        return { case: "listServicesResponse", value: { service: services } };
      case "fileByFilename":
        return fileAnswer(byName.get(question.value), question.value);
      case "fileContainingSymbol":
        return fileAnswer(symbols.get(question.value), question.value);
      case "fileContainingExtension": {
        const { containingType, extensionNumber } = question.value;
        const message = registry.getMessage(containingType);
        const extension = message && registry.getExtensionFor(message, extensionNumber);
        return fileAnswer(extension?.file, `extension ${extensionNumber} of ${containingType}`);
      }
      case "allExtensionNumbersOfType": {
        const baseTypeName = question.value;
        if (registry.getMessage(baseTypeName) === undefined) return notFound(baseTypeName);
        const extensions = [...registry].filter((one) => one.kind === "extension");
        const extensionNumber = extensions
          .filter((one) => one.extendee.typeName === baseTypeName)
          .map((one) => one.number);
        return { case: "allExtensionNumbersResponse", value: { baseTypeName, extensionNumber } };
      }
      default:
        return failure(Code.InvalidArgument, "the request asks for nothing");
    }
  }

  return (router) => {
    router.service(ServerReflection, {
      async *serverReflectionInfo(requests) {
        for await (const request of requests) {
          yield { validHost: request.host, originalRequest: request, messageResponse: answer(request.messageRequest) };
        }
      },
    });
    router.service(ServerReflectionAlpha, {
      async *serverReflectionInfo(requests) {
        for await (const request of requests) {
          // The two versions differ in nothing but the package's name.
          const messageResponse = answer(request.messageRequest as Question) as AlphaAnswer;
          yield { validHost: request.host, originalRequest: request, messageResponse };
        }
      },
    });
  };
}

/** Full names of all that a client may ask for: messages, enums, services, methods, fields and extensions. */
function symbolTable(files: Iterable<DescFile>): Map<string, DescFile> {
  const symbols = new Map<string, DescFile>();
  for (const file of files) {
    const addMessage = (message: DescMessage) => {
      symbols.set(message.typeName, file);
      for (const field of message.fields) symbols.set(`${message.typeName}.${field.name}`, file);
      for (const { typeName } of message.nestedEnums) symbols.set(typeName, file);
      message.nestedMessages.forEach(addMessage);
    };
    const addService = (service: DescService) => {
      symbols.set(service.typeName, file);
      for (const { name } of service.methods) symbols.set(`${service.typeName}.${name}`, file);
    };
    file.messages.forEach(addMessage);
    file.services.forEach(addService);
    for (const { typeName } of [...file.enums, ...file.extensions]) symbols.set(typeName, file);
  }
  return symbols;
}

function fileAnswer(file: DescFile | undefined, asked: string): Answer {
  if (file === undefined) return notFound(asked);
  return {
    case: "fileDescriptorResponse",
    value: { fileDescriptorProto: [toBinary(FileDescriptorProtoSchema, file.proto)] },
  };
}

function notFound(asked: string): Answer {
  return failure(Code.NotFound, `${asked} is not known here`);
}

/** A refusal is an answer in the stream: the next question may be a good one. */
function failure(errorCode: Code, errorMessage: string): Answer {
  return { case: "errorResponse", value: { errorCode, errorMessage } };
}
