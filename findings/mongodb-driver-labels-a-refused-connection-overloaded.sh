#!/bin/sh
# mongodb (Node driver) 7.9.0: a connection that nobody accepts is labelled SystemOverloadedError and RetryableError.
#
# Seen: the driver itself puts both labels on every failed attempt to connect, to a port where nothing listens too. In a
#   MongoServerSelectionError they stand on the error of each server (`reason.servers`).
# Most would guess: the labels are words of a server that is there and has too much to do ("client backpressure").
# Why it matters: whoever maps SystemOverloadedError to "overloaded, nothing was done, ask again" tells an outage as an
#   overload: RESOURCE_EXHAUSTED instead of UNAVAILABLE, and an alarm that points at load instead of at a server that is gone.
#
# Needs node (20 or later) and npm. Prints what it saw; exits 1 when it sees something else.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund mongodb@7.9.0
cat >see.mjs <<'JS'
import { createServer } from "node:net";
import { MongoClient } from "mongodb";

// A port that was free a moment ago: nothing listens there.
const server = createServer().listen(0, "127.0.0.1");
await new Promise((resolve) => server.once("listening", resolve));
const { port } = server.address();
await new Promise((resolve) => server.close(resolve));

const uri = `mongodb://127.0.0.1:${port}/?directConnection=true`;
const client = new MongoClient(uri, { serverSelectionTimeoutMS: 500 });
const error = await client.db("any").command({ ping: 1 }).catch((thrown) => thrown);
const [server0] = error.reason.servers.values();
const labels = server0.error.errorLabels;
console.log(`${error.name}, because of ${server0.error.name} "${server0.error.message}" with the labels ${labels.join(", ")}`);
await client.close();
const asSeen = /ECONNREFUSED/.test(server0.error.message) &&
  ["SystemOverloadedError", "RetryableError"].every((label) => labels.includes(label));
process.exit(asSeen ? 0 : 1);
JS
node see.mjs
