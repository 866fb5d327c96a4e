import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { createRegistry, fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { credentials, loadPackageDefinition, Metadata, status } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { ErrorInfoSchema } from "#gen/google/rpc/error_details_pb";
import { StatusSchema } from "#gen/google/rpc/status_pb";
import { load, print } from "./load.js";

const [address, ca, key, serviceToken, userToken] = process.argv.slice(2);
const { latchkey } = loadPackageDefinition(
  loadSync("latchkey/v1/api_key_service.proto", { includeDirs: ["proto"], oneofs: true }),
);
const client = new latchkey.v1.ApiKeyService(
  address,
  ca === "-" ? credentials.createInsecure() : credentials.createSsl(readFileSync(ca)),
);

function metadataOf(token) {
  const metadata = new Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  return metadata;
}

const unary = (method, request, token = serviceToken) =>
  new Promise((resolve, reject) => {
    client[method](request, metadataOf(token), { deadline: Date.now() + 60_000 }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });

function codeOfWatch(options, onMessage = () => {}) {
  const call = client.watch({}, metadataOf(serviceToken), options);
  return new Promise((resolve) => {
    call.on("data", () => onMessage(call));
    call.on("error", ({ code }) => resolve(status[code]));
    call.on("end", () => resolve("OK"));
  });
}

print({ verify: String((await unary("verify", { key })).outcome) });
print({ deadline: await codeOfWatch({ deadline: Date.now() + 300 }) });

try {
  await unary("create", { scopes: ["no scope"] }, userToken);
} catch (error) {
  print({ details: `${status[error.code]} ${reasonOf(error)}` });
}

function reasonOf(error) {
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  const details = fromBinary(StatusSchema, bytes).details.map((detail) =>
    anyUnpack(detail, createRegistry(ErrorInfoSchema)),
  );
  return details.find(Boolean)?.reason;
}

const call = client.verifyStream(metadataOf(serviceToken));
const outcomes = [];
for (let sent = 0; sent < 3; sent += 1) call.write({ request: { key } });
call.end();
for await (const { result } of call) outcomes.push(result.response.outcome);
print({ stream: outcomes.join(" ") });

const cancelled = await codeOfWatch({}, (watch) => watch.cancel());
await unary("verify", { key });
print({ cancellation: cancelled });

await load(async () => {
  try {
    const { outcome } = await unary("verify", { key });
    return outcome === 1 ? "answered" : `outcome ${outcome}`;
  } catch (error) {
    if (!/ECONNREFUSED/.test(error.message)) return error.message;
    await sleep(20);
    return "refused";
  }
});
