import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { ApiKeyService, createLatchkeyClient, describeError } from "latchkey/client";
import { load, print } from "./load.js";

// The published client where it has the protocol and the version of HTTP, else connect-node's own transport.
const [protocol, httpVersion, address, ca, key, serviceToken, userToken] = process.argv.slice(2);
const tls = ca === "-" ? undefined : { ca: readFileSync(ca) };
const baseUrl = `${tls ? "https" : "http"}://${address}`;

function clientWith(token) {
  if ((protocol === "grpc") === (httpVersion === "2"))
    return createLatchkeyClient({ baseUrl, token, protocol, tls, timeoutMs: 60_000 });
  const authorize = (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
  const options = { baseUrl, httpVersion, nodeOptions: tls, interceptors: [authorize], defaultTimeoutMs: 60_000 };
  return createClient(
    ApiKeyService,
    protocol === "grpc" ? createGrpcTransport(options) : createConnectTransport(options),
  );
}

const client = clientWith(serviceToken);

const codeOf = (error) =>
  Code[ConnectError.from(error).code]
    .replace(/(?<=.)[A-Z]/g, (letter) => `_${letter}`)
    .toUpperCase()
    .replace("CANCELED", "CANCELLED");

async function codeOfWatch(options, onMessage = () => {}) {
  try {
    for await (const _ of client.watch({}, options)) onMessage();
    return "OK";
  } catch (error) {
    return codeOf(error);
  }
}

print({ verify: String((await client.verify({ key })).outcome) });
print({ deadline: await codeOfWatch({ timeoutMs: 300 }) });

try {
  await clientWith(userToken).create({ scopes: ["no scope"] });
} catch (error) {
  print({ details: `${codeOf(error)} ${describeError(error).reason}` });
}

// Node has no HTTP/1.1 that sends and receives at once.
if (httpVersion === "2") {
  const outcomes = [];
  const requests = Array.from({ length: 3 }, () => ({ request: { key } }));
  const answers = client.verifyStream(
    (async function* () {
      yield* requests;
    })(),
  );
  for await (const { result } of answers) outcomes.push(result.result.value.outcome);
  print({ stream: outcomes.join(" ") });
}

const controller = new AbortController();
const cancelled = await codeOfWatch({ signal: controller.signal, timeoutMs: 0 }, () => controller.abort());
await client.verify({ key });
print({ cancellation: cancelled });

function isRefused(error) {
  for (let cause = error; cause; cause = cause.cause) if (cause.code === "ECONNREFUSED") return true;
  return false;
}

await load(async () => {
  try {
    const { outcome } = await client.verify({ key });
    return outcome === 1 ? "answered" : `outcome ${outcome}`;
  } catch (error) {
    if (!isRefused(error)) return `${codeOf(error)}: ${error.rawMessage}`;
    await sleep(20);
    return "refused";
  }
});
