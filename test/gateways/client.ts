import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { request as httpRequest, type IncomingMessage } from "node:http";
import type { Socket } from "node:net";

export interface Ask {
  method?: string;
  path?: string;
  /** As they are to be spelled, in their order; a name may stand twice. */
  headers?: [name: string, value: string][];
  body?: Buffer;
}

export interface Answer {
  status: number;
  headers: IncomingMessage["headers"];
  body: string;
}

/** One HTTP/1.1 request on a connection of its own. */
export async function send(port: number, { method = "GET", path = "/", headers = [], body }: Ask): Promise<Answer> {
  const length: [string, string][] = body ? [["content-length", String(body.length)]] : [];
  const request = httpRequest({
    ...{ host: "127.0.0.1", port, method, path, agent: false },
    headers: [["host", "app.example"], ...headers, ...length, ["connection", "close"]].flat(),
  });
  // Who is refused may find the connection closed while the body still goes out: the answer is what counts.
  const failed = new Promise<never>((_, reject) => request.on("error", reject));
  failed.catch(() => {});
  const answered = once(request, "response") as Promise<[IncomingMessage]>;
  answered.catch(() => {});
  request.end(body);
  const [response] = await Promise.race([answered, failed]);
  let text = "";
  response.setEncoding("utf8");
  for await (const chunk of response) text += chunk;
  request.destroy();
  return { status: response.statusCode!, headers: response.headers, body: text };
}

/** Opens a WebSocket and says hello. `body` is what was said back; where it was refused, that answer. */
export async function sayOverWebSocket(port: number, path: string, headers: [string, string][]): Promise<Answer> {
  const request = httpRequest({
    ...{ host: "127.0.0.1", port, path, agent: false },
    headers: [
      ["host", "app.example"],
      ["connection", "Upgrade"],
      ["upgrade", "websocket"],
      ["sec-websocket-version", "13"],
      ["sec-websocket-key", randomBytes(16).toString("base64")],
      ...headers,
    ].flat(),
  });
  request.end();
  return new Promise((resolve, reject) => {
    request.once("error", reject);
    request.once("response", async (response) => {
      let body = "";
      for await (const chunk of response) body += chunk;
      resolve({ status: response.statusCode!, headers: response.headers, body });
    });
    request.once("upgrade", (response, socket: Socket, head: Buffer) => {
      let received = head;
      socket.on("error", reject);
      socket.on("data", (chunk) => {
        received = Buffer.concat([received, chunk]);
        if (received.length < 2 || received.length < 2 + received[1]!) return;
        socket.destroy();
        resolve({ status: response.statusCode!, headers: response.headers, body: received.subarray(2).toString() });
      });
      socket.write(maskedFrame("hello"));
    });
  });
}

function maskedFrame(text: string): Buffer {
  const mask = randomBytes(4);
  const masked = Buffer.from(text).map((byte, at) => byte ^ mask[at % 4]!);
  return Buffer.concat([Buffer.from([0x81, 0x80 | text.length]), mask, masked]);
}
