// grpc-js with a handler that returns the sampled answer's bytes, and neither decodes nor encodes.
import { Server, ServerCredentials } from "@grpc/grpc-js";
import { announce, fixedAnswer } from "./ready.ts";

const bytes = fixedAnswer().body.subarray(5);
const same = (buffer: Buffer) => buffer;
const server = new Server();
server.addService(
  {
    Verify: {
      path: "/latchkey.v1.ApiKeyService/Verify",
      requestStream: false,
      responseStream: false,
      requestSerialize: same,
      requestDeserialize: same,
      responseSerialize: same,
      responseDeserialize: same,
    },
  },
  { Verify: (_call: unknown, done: (error: null, answer: Buffer) => void) => done(null, bytes) },
);
server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  announce(port);
});
