import type { Asked } from "./gateway-doors.ts";

/** Keys that cases are about. */
export interface GatewayKeys {
  /** Of user `zoë / 100%`, with the name `build box, Köln`, and the scopes `read` and `write`. */
  good: string;
  /** Of user `plain`, without a name, with the scope `read`. */
  nameless: string;
  /** Of user `dash`, with the name `-`. */
  dash: string;
  revoked: string;
  expired: string;
}

export interface GatewayCase extends Asked {
  name: string;
  /** Not every client can send it: Node's own sends no two `authorization` over HTTP/2. */
  repeatsAuthorization?: boolean;
  status: number;
  /** Of a refusal. */
  reason?: string;
  challenge?: string;
  missingScopes?: string[];
}

/** A token that is the upstream's affair. */
const JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl";

const CHALLENGE = 'Bearer realm="latchkey"';

/** What a client may send and what it is told, whichever way the gateway asks. */
export function gatewayCases(keys: GatewayKeys): GatewayCase[] {
  const { good, revoked, expired } = keys;
  const bearer = (key: string): [string, string] => ["authorization", `Bearer ${key}`];
  const apiKey = (key: string): [string, string] => ["x-api-key", key];
  const bad = (name: string, reason: string, headers: [string, string][], error = "invalid_token"): GatewayCase => ({
    ...{ name, headers, reason, status: 401, challenge: `${CHALLENGE}, error="${error}"` },
  });
  const two = (name: string, ...headers: [string, string][]) => bad(name, "KEY_AMBIGUOUS", headers, "invalid_request");
  const none = (name: string, ...headers: [string, string][]): GatewayCase => ({
    ...{ name, headers, status: 401, reason: "KEY_MISSING", challenge: CHALLENGE },
  });
  const lacks = (name: string, scopes: string, missingScopes: string[]): GatewayCase => ({
    ...{ name, scopes, missingScopes, headers: [bearer(good)], status: 403, reason: "INSUFFICIENT_SCOPE" },
    challenge: `${CHALLENGE}, error="insufficient_scope", scope="${missingScopes.join(" ")}"`,
  });
  const wrongSecret = "lk_AbCdEfGhIjKlMnOp_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz3tI31K";
  return [
    { name: "a good key as a bearer", headers: [bearer(good)], status: 200 },
    { name: "a good key as a bearer in odd letters", headers: [["Authorization", `bEARER   ${good}`]], status: 200 },
    { name: "a good key in x-api-key", headers: [apiKey(good)], status: 200 },
    { name: "a good key beside Basic", headers: [["authorization", "Basic dTpw"], apiKey(good)], status: 200 },
    { name: "a good key with its scopes", headers: [bearer(good)], scopes: "read, write", status: 200 },
    {
      name: "a good key in a header that is not looked at beside one that is",
      headers: [["x-key", good], apiKey(good)],
      status: 200,
    },
    none("no key"),
    none("an empty key", apiKey("")),
    none("a bearer without a key", ["authorization", "Bearer"]),
    none("another scheme", ["authorization", `Basic ${good}`]),
    none("a scheme that only begins so", ["authorization", `Bearers ${good}`]),
    none("a good key in a header that is not looked at", ["x-key", good]),
    none("a good key in a header that is spelled otherwise", ["x_api_key", good]),
    bad("garbage", "MALFORMED", [apiKey("nothing")]),
    bad("a key that is cut short", "MALFORMED", [bearer(good.slice(0, -1))]),
    bad("a key with bytes beyond ASCII", "MALFORMED", [apiKey(`${good}\xff\xe9`)]),
    bad("an unknown key", "NOT_FOUND", [bearer(wrongSecret)]),
    bad("a revoked key", "REVOKED", [bearer(revoked)]),
    bad("an expired key", "EXPIRED", [apiKey(expired)]),
    two("two keys in two headers", bearer(good), apiKey(good)),
    two("a good key and what has a key's form", bearer(good), apiKey("lk_nothing")),
    { name: "a good key beside a bearer of another kind", headers: [bearer(JWT), apiKey(good)], status: 200 },
    { name: "a good key beside what is no key", headers: [bearer(good), apiKey("nothing, at all")], status: 200 },
    { name: "a good key beside an empty one", headers: [bearer(good), apiKey("")], status: 200 },
    { name: "an empty key before a good one", headers: [apiKey(""), apiKey(good)], status: 200 },
    bad("a bearer of another kind", "MALFORMED", [bearer(JWT)]),
    bad("a bearer of another kind beside what is no key", "MALFORMED", [bearer(JWT), apiKey("nothing")]),
    bad("a bearer of another kind beside an empty key", "MALFORMED", [bearer(JWT), apiKey("")]),
    two("three keys in one header", apiKey(`${good}, lk_x,${good}`)),
    bad("a comma in what is no key", "MALFORMED", [apiKey("nothing, at all")]),
    two("the same header twice", apiKey(good), apiKey(good)),
    { ...two("bearer twice", bearer(good), bearer(good)), repeatsAuthorization: true },
    { ...two("Basic before a bearer", ["authorization", "Basic dTpw"], bearer(good)), repeatsAuthorization: true },
    { ...two("a bearer before Basic", bearer(good), ["authorization", "Basic dTpw"]), repeatsAuthorization: true },
    two("a comma in the value", apiKey(`${good},${good}`)),
    two("a comma in the bearer", ["authorization", `Bearer ${good}, Bearer ${good}`]),
    lacks("a missing scope", "admin", ["admin"]),
    lacks("some of many scopes missing", "read,admin delete", ["admin", "delete"]),
  ];
}
