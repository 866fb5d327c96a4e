import { once } from "node:events";
import { request } from "node:http";
import { type ClientHttp2Session, connect } from "node:http2";

export interface Answer {
  status: number;
  headers: Record<string, string>;
  body: Buffer;
  trailers: Record<string, string>;
}

export interface Call {
  path: string;
  headers: Record<string, string>;
  body: Uint8Array;
}

/** One call over HTTP/2, on a session of its own. */
export async function callHttp2(address: string, call: Call): Promise<Answer> {
  const session = connect(`http://${address}`);
  try {
    return await callOn(session, call);
  } finally {
    session.close();
  }
}

export function callOn(session: ClientHttp2Session, { path, headers, body }: Call): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ":method": "POST", ":path": path, ...headers });
    const chunks: Buffer[] = [];
    const answer: Answer = { status: 0, headers: {}, body: Buffer.alloc(0), trailers: {} };
    stream.on("response", (received) => {
      answer.status = Number(received[":status"]);
      answer.headers = plain(received);
    });
    stream.on("trailers", (received) => {
      answer.trailers = plain(received);
    });
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.once("error", reject);
    stream.once("close", () => resolve({ ...answer, body: Buffer.concat(chunks) }));
    stream.end(body);
  });
}

/** One call over HTTP/1.1, on a connection of its own. */
export async function callHttp1(address: string, { path, headers, body }: Call): Promise<Answer> {
  const sent = request(`http://${address}${path}`, {
    method: "POST",
    headers: { ...headers, "content-length": body.length },
    agent: false,
  });
  sent.end(body);
  const [response] = await once(sent, "response");
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk);
  return {
    status: response.statusCode,
    headers: plain(response.headers),
    body: Buffer.concat(chunks),
    trailers: plain(response.trailers),
  };
}

function plain(headers: object): Record<string, string> {
  const entries = Object.entries(headers).filter(([name]) => !name.startsWith(":"));
  return Object.fromEntries(entries.map(([name, value]) => [name, String(value)]));
}
