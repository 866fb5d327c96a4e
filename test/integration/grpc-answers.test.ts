import { afterEach, describe, expect, test } from "@jest/globals";
import { Health, HealthCheckResponse_ServingStatus } from "#gen/health/v1/health_pb";
import { createRequestHandler } from "../../src/rpc/adapter.ts";
import { Flag, Type } from "../../src/transport/http2-frames.ts";
import { listen } from "../../src/transport/listener.ts";
import { data, inEnvelope, openFrameClient, requestHeaders } from "../support/frame-client.ts";

// What gRPC clients of other languages were seen to take for an error, or to show to people, frame by frame.

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

const PATH = "/grpc.health.v1.Health/Check";

/** The frames of a call's answer, and their fields in order. */
async function answerTo(path: string, type: string, more: string[] = []) {
  const handler = createRequestHandler({
    interceptors: [],
    maxMessageBytes: 65_536,
    routes: (router) =>
      router.service(Health, { check: () => ({ status: HealthCheckResponse_ServingStatus.SERVING }) }),
  });
  const listener = await listen({ host: "127.0.0.1", port: 0, handler });
  cleanUps.push(() => listener.close(0));
  const client = await openFrameClient(listener);
  cleanUps.push(() => client.socket.destroy());
  client.write(requestHeaders(1, { path, type, more }), data(1, inEnvelope("")));
  await client.until(() => client.stream(1).ended);
  expect(client.faults).toEqual([]);
  const frames = client.frames.filter(({ id, type: of }) => id === 1 && (of === Type.DATA || of === Type.HEADERS));
  return {
    frames: frames.map(({ type, payload }) => (type === Type.HEADERS ? "HEADERS" : `DATA of ${payload.length} bytes`)),
    endsWithHeaders: frames.at(-1)!.type === Type.HEADERS && (frames.at(-1)!.flags & Flag.END_STREAM) !== 0,
    fields: Object.fromEntries(client.stream(1).fields),
    names: client.stream(1).fields.map(([name]) => name),
  };
}

describe("an answer of headers alone ends with them, and no empty DATA frame follows, which C-core clients take for UNKNOWN", () => {
  test.each([
    ["an unknown method", "/grpc.health.v1.Health/Chock", "application/grpc"],
    ["an unknown service", "/none/None", "application/grpc"],
    ["an unknown method in gRPC-Web", "/none/None", "application/grpc-web+proto"],
  ])("%s: UNIMPLEMENTED", async (_what, path, type) => {
    const { frames, endsWithHeaders, fields } = await answerTo(path, type);
    expect({ frames, endsWithHeaders }).toEqual({ frames: ["HEADERS"], endsWithHeaders: true });
    expect(fields).toMatchObject({ ":status": "200", "content-type": type, "grpc-status": "12" });
  });

  test("a content type that is none: 415", async () => {
    const { frames, endsWithHeaders, fields } = await answerTo(PATH, "application/grpc+xml");
    expect({ frames, endsWithHeaders }).toEqual({ frames: ["HEADERS"], endsWithHeaders: true });
    expect(fields[":status"]).toBe("415");
  });

  test("a refusal by Connect has no DATA frame either", async () => {
    const { frames, endsWithHeaders, fields } = await answerTo(PATH, "application/grpc", ["grpc-encoding", "zap"]);
    expect({ frames, endsWithHeaders }).toEqual({ frames: ["HEADERS", "HEADERS"], endsWithHeaders: true });
    expect(fields["grpc-status"]).toBe("12");
  });
});
