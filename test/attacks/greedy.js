import { connect } from "node:net";
import { parentPort, workerData } from "node:worker_threads";

// Calls without end on many connections, in a thread of its own: it must not take the good client's time.

const { host, port, connections, reads, hello, call, ids, calls } = workerData;
const one = Buffer.from(call);
let sent = 0;

for (let index = 0; index < connections; index += 1) {
  const socket = connect({ host, port });
  socket.on("error", () => {});
  if (reads) socket.resume();
  else socket.pause();
  socket.write(hello);
  let id = 1;
  const portion = () => {
    const bytes = Buffer.concat(Array.from({ length: calls }, () => one));
    for (let at = 0; at < bytes.length; at += one.length) {
      for (const offset of ids) bytes.writeUInt32BE(id, at + offset);
      id += 2;
    }
    return bytes;
  };
  const goOn = () => {
    if (socket.destroyed) return;
    sent += calls;
    if (socket.write(portion())) setImmediate(goOn);
    else socket.once("drain", goOn);
  };
  socket.once("connect", goOn);
}

parentPort.on("message", () => {
  parentPort.postMessage(sent);
  process.exit();
});
