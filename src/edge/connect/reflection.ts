import {
  createRegistry,
  type DescEnum,
  type DescFile,
  type DescMessage,
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

/**
 * Server reflection, v1 and v1alpha: lists the services of `files`, and describes these files and all that they import.
 * A file that no service mentions can be given too: error details, so that clients can decode them.
 */
export function reflectionRoutes(files: readonly DescFile[]): (router: ConnectRouter) => void {
  const served = withImports(files);
  const byName = new Map(served.map((file) => [file.proto.name, file]));
  const symbols = symbolTable(served);
  const encoded = new Map(served.map((file) => [file, withImports([file]).map(encodeFile)]));
  const services = files
    .flatMap((file) => file.services.map(({ typeName }) => ({ name: typeName })))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  const registry = createRegistry(...served);

  /** The file comes first, its imports after it: many clients never ask for those. */
  function fileAnswer(file: DescFile | undefined, asked: string): Answer {
    const fileDescriptorProto = file && encoded.get(file);
    if (fileDescriptorProto === undefined) return notFound(asked);
    return { case: "fileDescriptorResponse", value: { fileDescriptorProto } };
  }

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

/** `files` and what they import, each once, importers first. */
function withImports(files: readonly DescFile[]): DescFile[] {
  const found = new Set(files);
  // A Set's iteration reaches what is added on the way.
  for (const file of found) for (const imported of file.dependencies) found.add(imported);
  return [...found];
}

function encodeFile(file: DescFile): Uint8Array {
  return toBinary(FileDescriptorProtoSchema, file.proto);
}

/** Full names of all that a client may ask for, and the file that declares it. */
function symbolTable(files: readonly DescFile[]): Map<string, DescFile> {
  const symbols = new Map<string, DescFile>();
  for (const file of files) {
    const addEnum = ({ typeName, name, values }: DescEnum) => {
      symbols.set(typeName, file);
      // An enum's values are its siblings, not its children.
      const scope = typeName.slice(0, -name.length);
      for (const value of values) symbols.set(scope + value.name, file);
    };
    const addMessage = (message: DescMessage) => {
      const { typeName } = message;
      symbols.set(typeName, file);
      for (const { name } of [...message.fields, ...message.oneofs]) symbols.set(`${typeName}.${name}`, file);
      for (const extension of message.nestedExtensions) symbols.set(extension.typeName, file);
      message.nestedEnums.forEach(addEnum);
      message.nestedMessages.forEach(addMessage);
    };
    file.messages.forEach(addMessage);
    file.enums.forEach(addEnum);
    for (const { typeName } of file.extensions) symbols.set(typeName, file);
    for (const { typeName, methods } of file.services) {
      symbols.set(typeName, file);
      for (const { name } of methods) symbols.set(`${typeName}.${name}`, file);
    }
  }
  return symbols;
}

function notFound(asked: string): Answer {
  return failure(Code.NotFound, `${asked} is not known here`);
}

/** A refusal is an answer in the stream: the next question may be a good one. */
function failure(errorCode: Code, errorMessage: string): Answer {
  return { case: "errorResponse", value: { errorCode, errorMessage } };
}
