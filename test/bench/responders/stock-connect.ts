// Connect's own adapter with a handler that does nothing but return the sampled answer.
import { createServer } from "node:http2";
import { fromBinary } from "@bufbuild/protobuf";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { ApiKeyService, VerifyResponseSchema } from "#gen/latchkey/v1/api_key_service_pb";
import { announceOn, fixedAnswer } from "./ready.ts";

const answer = fromBinary(VerifyResponseSchema, fixedAnswer().body.subarray(5));
announceOn(
  createServer(connectNodeAdapter({ routes: (router) => router.service(ApiKeyService, { verify: () => answer }) })),
);
