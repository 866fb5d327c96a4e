import { once } from "node:events";
import { request as request1 } from "node:http";
import { connect as connect2 } from "node:http2";
import { create, fromBinary, fromJsonString, type MessageInitShape, toBinary, toJson } from "@bufbuild/protobuf";
import { credentials, Metadata, makeGenericClientConstructor, type ServiceError } from "@grpc/grpc-js";
import {
  Authorization,
  CheckRequestSchema,
  type CheckResponse,
  CheckResponseSchema,
} from "#gen/envoy/service/auth/v3/external_auth_pb";

/** A request as it came to a gateway. */
export interface Asked {
  /** In the order and spelling they came. */
  headers: [name: string, value: string][];
  path?: string;
  /** What the gateway's route needs, as it stands in its configuration. */
  scopes?: string;
  /** What the gateway proves itself with. */
  gatewayToken?: string;
}

/** What became of it, by whatever door it was asked. */
export interface Told {
  status: number;
  /** Of a refusal: what the client is told. */
  headers?: Record<string, string>;
  body?: unknown;
  /** Of a request that may pass: what the upstream is told, and what is taken away. */
  identity?: Record<string, string>;
  removed?: string[];
}

export type Door = (address: string, asked: Asked) => Promise<Told>;

export const CHECK_PATH = `/${Authorization.typeName}/${Authorization.method.check.name}`;

/** The rest of what Envoy 1.40 sends, so that what is wanted has to be found in it. */
export function checkRequest({ headers, path = "/", scopes }: Asked, raw = false): Uint8Array {
  const joined: Record<string, string> = {};
  for (const [name, value] of headers) {
    const lower = name.toLowerCase();
    joined[lower] = joined[lower] === undefined ? value : `${joined[lower]},${value}`;
  }
  const own = {
    ":method": "GET",
    ":path": path,
    ":authority": "shop.example",
    "user-agent": "curl/8.5.0",
    accept: "*/*",
  };
  const pairs = Object.entries(own).concat(raw ? headers : Object.entries(joined));
  const http: MessageInitShape<typeof CheckRequestSchema> = {
    attributes: {
      source: { principal: "spiffe://cluster/ns/default/sa/shop", labels: { version: "7" } },
      destination: { service: "shop" },
      request: {
        time: { seconds: 1_700_000_000n, nanos: 17 },
        http: {
          ...{ id: "6151408362364163871", method: "GET", path, host: "shop.example", scheme: "https", size: -1n },
          ...{ protocol: "HTTP/1.1", body: "a body" },
          ...(raw
            ? { headerMap: { headers: pairs.map(([key, value]) => ({ key, rawValue: Buffer.from(value, "latin1") })) } }
            : { headers: Object.fromEntries(pairs) }),
        },
      },
      contextExtensions: { other: "one", ...(scopes !== undefined && { "latchkey-scopes": scopes }) },
    },
  };
  return toBinary(CheckRequestSchema, create(CheckRequestSchema, http));
}

export interface CheckCall {
  gatewayToken?: string | undefined;
  timeoutMs?: number;
}

/** The answer's bytes, by grpc-js. */
export async function callCheck(address: string, message: Uint8Array, call: CheckCall = {}): Promise<Buffer> {
  const Client = makeGenericClientConstructor({}, "Authorization");
  const client = new Client(address, credentials.createInsecure(), { "grpc.max_send_message_length": -1 });
  const metadata = new Metadata();
  if (call.gatewayToken !== undefined) metadata.set("authorization", `Bearer ${call.gatewayToken}`);
  const options = call.timeoutMs === undefined ? {} : { deadline: Date.now() + call.timeoutMs };
  const same = (bytes: Buffer) => bytes;
  try {
    return await new Promise((resolve, reject) => {
      const done = (error: ServiceError | null, bytes?: Buffer) => (error ? reject(error) : resolve(bytes!));
      client.makeUnaryRequest(CHECK_PATH, same, same, Buffer.from(message), metadata, options, done);
    });
  } finally {
    client.close();
  }
}

export function toTold(response: CheckResponse): Told {
  const { httpResponse, status } = response;
  if (status?.code === 0 && httpResponse.case === "okResponse") {
    const { headers, headersToRemove } = httpResponse.value;
    return { status: 200, identity: overwritten(headers), removed: headersToRemove };
  }
  if (httpResponse.case !== "deniedResponse" && httpResponse.case !== "errorResponse")
    throw new Error("no answer in it");
  const { headers, status: http, body } = httpResponse.value;
  return { status: Number(http?.code), headers: overwritten(headers), body: JSON.parse(body) };
}

/** Headers, each of which must be one that replaces, for old Envoys and new. */
function overwritten(
  headers: NonNullable<(CheckResponse["httpResponse"] & { case: "okResponse" })["value"]>["headers"],
) {
  const replaces = headers.every(({ append, appendAction }) => append === false && appendAction === 2);
  if (!replaces) throw new Error("a header that does not replace");
  return Object.fromEntries(headers.map(({ header }) => [header!.key, header!.value]));
}

const checkBy =
  (raw: boolean): Door =>
  async (address, asked) => {
    const bytes = await callCheck(address, checkRequest(asked, raw), { gatewayToken: asked.gatewayToken });
    return toTold(fromBinary(CheckResponseSchema, bytes));
  };

/** Connect in JSON: served by Node's own server. */
const checkJson: Door = async (address, asked) => {
  const message = fromBinary(CheckRequestSchema, checkRequest(asked, true));
  const answer = await fetch(`http://${address}${CHECK_PATH}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...tokenOf(asked, "authorization", "Bearer ") },
    body: JSON.stringify(toJson(CheckRequestSchema, message)),
  });
  if (answer.status !== 200) throw new Error(`HTTP ${answer.status}: ${await answer.text()}`);
  return toTold(fromJsonString(CheckResponseSchema, await answer.text()));
};

function tokenOf({ gatewayToken }: Asked, header: string, before = ""): Record<string, string> {
  return gatewayToken === undefined ? {} : { [header]: before + gatewayToken };
}

/** Of a question in plain HTTP: the client's headers, and those of the gateway. */
function forwarded(asked: Asked): [string, string][] {
  const added = {
    ...{ "x-forwarded-uri": asked.path ?? "/" },
    ...(asked.scopes !== undefined && { "x-latchkey-required-scopes": asked.scopes }),
    ...tokenOf(asked, "x-latchkey-gateway-token"),
  };
  return [...asked.headers, ...Object.entries(added)];
}

export interface HttpAnswer {
  status: number;
  headers: Record<string, string>;
  body: string;
}

/** A name's values, each of which is sent as a header of its own; names in the spelling of the first. */
function grouped(headers: [string, string][]): Record<string, string[]> {
  const byName = new Map<string, [string, string[]]>();
  for (const [name, value] of headers) {
    const [spelled, values] = byName.get(name.toLowerCase()) ?? [name, []];
    byName.set(name.toLowerCase(), [spelled, [...values, value]]);
  }
  return Object.fromEntries(byName.values());
}

export async function get1(address: string, path: string, headers: [string, string][] = [], method = "GET") {
  const sent = request1(`http://${address}${path}`, { method, agent: false });
  for (const [name, values] of Object.entries(grouped(headers))) sent.setHeader(name, values);
  sent.end();
  const [response] = await once(sent, "response");
  let body = "";
  for await (const chunk of response) body += chunk;
  return { status: response.statusCode, headers: response.headers, body } as HttpAnswer;
}

export async function get2(address: string, path: string, headers: [string, string][] = [], method = "GET") {
  const session = connect2(`http://${address}`);
  try {
    const stream = session.request({ ":path": path, ":method": method, ...grouped(headers) }, { endStream: true });
    const [received] = await once(stream, "response");
    let body = "";
    for await (const chunk of stream) body += chunk;
    return { status: Number(received[":status"]), headers: received, body } as HttpAnswer;
  } finally {
    session.close();
  }
}

const forwardBy =
  (get: typeof get1, path: string): Door =>
  async (address, asked) => {
    const { status, headers, body } = await get(address, path, forwarded(asked));
    if (status !== 200) {
      const told = ["www-authenticate", "retry-after", "content-type", "cache-control"]
        .filter((name) => headers[name] !== undefined)
        .map((name) => [name, headers[name]!]);
      return { status, headers: Object.fromEntries(told), body: JSON.parse(body) };
    }
    const identity = Object.entries(headers).filter(([name]) => name.startsWith("x-latchkey-"));
    return {
      ...{ status, identity: Object.fromEntries(identity) },
      removed: headers["x-envoy-auth-headers-to-remove"]!.split(","),
    };
  };

/** Every way in which a gateway may ask the same. */
export const DOORS: Record<string, Door> = {
  "Check with headers": checkBy(false),
  "Check with header_map": checkBy(true),
  "Check in JSON": checkJson,
  "HTTP/1.1": forwardBy(get1, "/v1/authorize"),
  "HTTP/2": forwardBy(get2, "/v1/authorize"),
};
