// The least that node:http2 can do for a call: answer at once, with the headers, bytes and trailers it was given. The
// request is not read: Node discards it when the stream closes. A listener more for each stream costs several per cent.
import { createServer, type ServerHttp2Stream } from "node:http2";
import { announceOn, fixedAnswer } from "./ready.ts";

const { headers, trailers, body, date } = fixedAnswer();
const head = { ":status": 200, ...headers };
const waitForTrailers = Object.keys(trailers).length > 0;
const options = { waitForTrailers, sendDate: date };

function sendTrailers(this: ServerHttp2Stream): void {
  this.sendTrailers(trailers);
}

const server = createServer();
server.on("sessionError", () => {});
server.on("stream", (stream) => {
  stream.respond(head, options);
  if (waitForTrailers) stream.on("wantTrailers", sendTrailers);
  stream.end(body);
});
announceOn(server);
