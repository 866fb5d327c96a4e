// The least that node:http2 can do for a call: answer at once, with the headers, bytes and trailers it was given.
import { createServer } from "node:http2";
import { announceOn, fixedAnswer } from "./ready.ts";

const { headers, trailers, body, date } = fixedAnswer();
const head = { ":status": 200, ...headers };
const waitForTrailers = Object.keys(trailers).length > 0;
const options = { waitForTrailers, sendDate: date };

const server = createServer();
server.on("stream", (stream) => {
  stream.on("error", () => {});
  stream.resume();
  stream.respond(head, options);
  if (waitForTrailers) stream.on("wantTrailers", () => stream.sendTrailers(trailers));
  stream.end(body);
});
announceOn(server);
