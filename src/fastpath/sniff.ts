import type { Socket } from "node:net";

const HTTP2_PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");

/**
 * Calls `decide` when the first bytes tell HTTP/2 from anything else, and gives these bytes back to the socket. They may
 * come one by one. A socket that says too little within `timeoutMs`, or ends before, is destroyed.
 */
export function sniff(socket: Socket, timeoutMs: number, decide: (isHttp2: boolean) => void): void {
  let seen = Buffer.alloc(0);
  const giveUp = () => socket.destroy();
  const timer = setTimeout(giveUp, timeoutMs);
  const onReadable = () => {
    const chunk: Buffer | null = socket.read();
    if (chunk === null) return;
    seen = Buffer.concat([seen, chunk]);
    const length = Math.min(seen.length, HTTP2_PREFACE.length);
    const matches = HTTP2_PREFACE.subarray(0, length).equals(seen.subarray(0, length));
    if (matches && length < HTTP2_PREFACE.length) return;
    stop();
    socket.unshift(seen);
    decide(matches);
  };
  const stop = () => {
    clearTimeout(timer);
    socket.off("readable", onReadable);
    socket.off("end", giveUp);
    socket.off("close", stop);
  };
  socket.on("readable", onReadable);
  socket.on("end", giveUp);
  socket.on("close", stop);
}
