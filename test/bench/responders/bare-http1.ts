// The least that node:http can do for a call: answer at once, with the headers and bytes it was given.
import { createServer } from "node:http";
import { announceOn, fixedAnswer } from "./ready.ts";

const { headers, body, date } = fixedAnswer();
const head = { ...headers, "content-length": body.length };

const server = createServer((request, response) => {
  request.resume();
  response.sendDate = date;
  response.writeHead(200, head);
  response.end(body);
});
announceOn(server);
