import { randomBytes } from "node:crypto";
import { formatKey, randomBase62 } from "../../src/keys/text.ts";
import type { Ask } from "./client.ts";
import { apache, caddy, envoyGrpc, envoyHttp, haproxy, nginx, springCloudGateway, traefik } from "./gateways.ts";

// The matrix: what is asked of each gateway, and what its client and the application behind it must see.

export interface Keys {
  /** Of alice, who may `read`; it has a name that a header can't carry as it is. */
  alice: string;
  /** Of bob, who may `read` and `write`; it has no name. */
  bob: string;
  revoked: string;
  suspended: string;
  expired: string;
  /** With the longest user id, name and metadata that there may be, in letters that take the most bytes, and the most and longest scopes. */
  largest: string;
}

/** Stands for a body that is neither Latchkey's nor the application's. */
export const ITS_OWN_WORDS = "its own words";

/** Who the application is told about: all headers that look like an identity or a credential, sorted. */
export type Told = [name: string, value: string][];

export interface Seen {
  status: number;
  /** As they matter to a refused client; a `retry-after` of whole seconds reads `seconds`. */
  headers: Record<string, string>;
  /** JSON is parsed; `what arrived` is the application's own answer, unchanged. */
  body: unknown;
  /** Undefined: nothing reached the application. */
  told: Told | undefined;
}

export interface Row {
  name: string;
  ask(keys: Keys): Ask & { webSocket?: boolean };
  expected: Seen;
  /** Where a gateway can't do the same, what it does instead: by its name, or by its name and a release. */
  except?: Record<string, Seen>;
}

export const ALICE = "alice";
export const BOB = "bob";
export const NAME = "Zoë’s laptop, 100%";
const NAME_SENT = "Zo%C3%AB%E2%80%99s%20laptop%2C%20100%25";
export const LARGEST = {
  user: "\u{1f511}".repeat(256),
  name: "\u{1f5dd}".repeat(128),
  scopes: Array.from({ length: 64 }, (_, at) => `${String(at).padStart(3, "0")}${"x".repeat(125)}`),
  // Two KiB, of which each byte takes three in a header.
  metadata: { "note-1": "\u2603".repeat(256), "note-2": "\u2603".repeat(256), "note-3": "\u2603".repeat(164) },
};

const CHALLENGE = 'Bearer realm="latchkey"';
const INVALID_TOKEN = `${CHALLENGE}, error="invalid_token"`;
const ALWAYS = { "cache-control": "no-store", "content-type": "application/json" };

/** What an application is told of whom, as it is written in headers. */
const PEOPLE: Record<string, { user: string; name: string; scopes: string }> = {
  [ALICE]: { user: ALICE, name: NAME_SENT, scopes: "read" },
  [BOB]: { user: BOB, name: "-", scopes: "read write" },
  largest: {
    ...{ user: encodeURIComponent(LARGEST.user), name: encodeURIComponent(LARGEST.name) },
    scopes: LARGEST.scopes.join(" "),
  },
};

const told = (who: string, ...more: Told): Told => {
  const { user, name, scopes } = PEOPLE[who] ?? { user: who, name: "-", scopes: "read" };
  const identity: Told = [
    ["x-latchkey-key-id", `key of ${who}`],
    ["x-latchkey-name", name],
    ["x-latchkey-scopes", scopes],
    ["x-latchkey-user", user],
  ];
  return [...more, ...identity].sort(([one], [other]) => (one < other ? -1 : 1));
};

/** Whom an application was told of. */
export const whoIs = (userSent: string): string =>
  Object.entries(PEOPLE).find(([, { user }]) => user === userSent)?.[0] ?? userSent;

export const passes = (user: string, ...more: Told): Seen => ({
  ...{ status: 200, headers: { "content-type": "application/json" }, body: "what arrived" },
  told: told(user, ...more),
});

function refuses(status: number, reason: string, message: string, headers: Record<string, string>, more = {}): Seen {
  return { status, headers: { ...ALWAYS, ...headers }, body: { reason, message, ...more }, told: undefined };
}

const challenges = (challenge: string) => ({ "www-authenticate": challenge });
const later = { "retry-after": "seconds" };

export const MISSING = refuses(401, "KEY_MISSING", "No API key was sent.", challenges(CHALLENGE));
const ambiguous = (places: string) =>
  refuses(
    ...([401, "KEY_AMBIGUOUS", `More than one API key was sent, in ${places}. Send one.`] as const),
    challenges(`${CHALLENGE}, error="invalid_request"`),
  );
const MALFORMED = refuses(
  ...([401, "MALFORMED", "What was sent in authorization is not an API key of this service."] as const),
  challenges(INVALID_TOKEN),
);
const NOT_FOUND = refuses(401, "NOT_FOUND", "The API key is not known.", challenges(INVALID_TOKEN));
export const REVOKED = refuses(401, "REVOKED", "The API key was revoked.", challenges(INVALID_TOKEN));
const SUSPENDED = refuses(403, "SUSPENDED", "The API key is suspended.", challenges(CHALLENGE));
const EXPIRED = refuses(401, "EXPIRED", "The API key has expired.", challenges(INVALID_TOKEN));
const NEEDS_WRITE = refuses(
  ...([403, "INSUFFICIENT_SCOPE", "The API key lacks a scope that is needed here."] as const),
  challenges(`${CHALLENGE}, error="insufficient_scope", scope="write"`),
  { missingScopes: ["write"] },
);
export const OVERLOADED = refuses(
  429,
  "OVERLOADED",
  "Too many keys are being hashed at the moment. Try again shortly.",
  later,
);
export const NO_DATABASE = refuses(
  503,
  "DB_UNAVAILABLE",
  "The database can't be reached at the moment, and no answer as new as asked for is at hand. Try again shortly.",
  later,
);
export const NOT_ADMITTED = refuses(
  ...([503, "UNAUTHENTICATED", "The gateway's configuration does not let API keys be checked."] as const),
  later,
);
/** The configuration's own words: Latchkey said none. */
const UNASKED = refuses(503, "UNAVAILABLE", "The API key could not be checked. Try again.", later);
/** Envoy's status_on_error, without a word; over HTTP it takes every 5xx for an error, and drops what it says. */
const ENVOY_UNASKED: Seen = {
  ...{ status: 503, headers: { "cache-control": "no-store", ...later }, body: "", told: undefined },
};
export const unasked: Record<string, Seen> = {
  [envoyGrpc.name]: ENVOY_UNASKED,
  [envoyHttp.name]: ENVOY_UNASKED,
  [nginx.name]: UNASKED,
  [caddy.name]: UNASKED,
  [haproxy.name]: UNASKED,
  [traefik.name]: { status: 500, headers: {}, body: "", told: undefined },
  [apache.name]: UNASKED,
  [springCloudGateway.name]: UNASKED,
};

const base62 = (length: number) => randomBase62(length, randomBytes);
const bearer = (key: string): [string, string] => ["Authorization", `Bearer ${key}`];
const apiKey = (key: string): [string, string] => ["X-Api-Key", key];
const headless = (seen: Seen): Seen => ({ ...seen, body: "" });
/** The gateway's own answer, before anybody is asked. */
const byItself = (status: number, headers: Record<string, string> = {}): Seen => ({
  ...{ status, headers, body: ITS_OWN_WORDS, told: undefined },
});
const NGINX_REFUSES = byItself(400, { "content-type": "text/html" });
/** Envoy, Traefik and Spring Cloud Gateway do so without a word. */
const REFUSED_SILENTLY: Seen = { status: 400, headers: {}, body: "", told: undefined };
const HAPROXY_REFUSES = byItself(400, { "cache-control": "no-cache", "content-type": "text/html" });

/** Paths that only mean the route's once they are tidied up: who compares them as they were sent turns them away. */
const ODD_PATH = { [haproxy.name]: HAPROXY_REFUSES, [springCloudGateway.name]: REFUSED_SILENTLY };
const ESCAPED_SLASH = {
  [springCloudGateway.name]: REFUSED_SILENTLY,
  ...{ [envoyGrpc.name]: REFUSED_SILENTLY, [envoyHttp.name]: REFUSED_SILENTLY, [haproxy.name]: HAPROXY_REFUSES },
  [traefik.name]: REFUSED_SILENTLY,
  [apache.name]: byItself(404, { "content-type": "text/html; charset=iso-8859-1" }),
};

/** About itself: nobody is asked, and nothing goes on. */
const ANSWERED_ITSELF: Seen = { status: 200, headers: {}, body: "", told: undefined };
const NO_ROUTE: Seen = { status: 404, headers: {}, body: "", told: undefined };
const OPTIONS_ANSWERED = {
  ...{ [caddy.name]: ANSWERED_ITSELF, [traefik.name]: ANSWERED_ITSELF, [apache.name]: ANSWERED_ITSELF },
  [nginx.name]: NGINX_REFUSES,
  // It has no route.
  ...{ [envoyGrpc.name]: NO_ROUTE, [envoyHttp.name]: NO_ROUTE },
};

/** Of the application's, not of ours. */
const JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl";
/** It is told of what to take away, and takes away no more. */
const JWT_GOES_ON = passes(BOB, ["authorization", `Bearer ${JWT}`]);

/** What must come of a row at this gateway. */
export function expectedOf({ expected, except }: Row, gateway: string, release = ""): Seen {
  const [major, minor] = release.split(".");
  const names = [`${gateway} ${major}.${minor}`, `${gateway} ${major}`, gateway];
  return names.map((name) => except?.[name]).find((seen) => seen !== undefined) ?? expected;
}

/** Named as hop-by-hop, a header ends at the next proxy: it must not be ours that end there. */
const OURS_AS_HOPS =
  "close, x-latchkey-user, x-latchkey-key-id, x-latchkey-name, x-latchkey-scopes, x-latchkey-required-scopes, x-latchkey-gateway-token";

/** All but letters, digits and the hyphen that RFC 9110 lets a header's name have. Programs that make names of variables fold them. */
const SEPARATORS = [..."!#$%&'*+.^_`|~"];

/** One separator for every hyphen, and for one of them. */
const FOLDED: Told = SEPARATORS.flatMap(
  (separator): Told => [
    [`x${separator}latchkey${separator}user`, "mallory"],
    [`X-Latchkey${separator}Scopes`, "admin"],
    [`x${separator}latchkey-key-id`, "1"],
  ],
);

/** Ten million bytes that are not all alike. */
export const BIG = Buffer.alloc(10_000_000, randomBytes(1_000));

export const ROWS: Row[] = [
  {
    name: "good key, `authorization: Bearer`",
    ask: ({ alice }) => ({ headers: [bearer(alice)] }),
    expected: passes(ALICE),
  },
  { name: "good key, `x-api-key`", ask: ({ bob }) => ({ headers: [apiKey(bob)] }), expected: passes(BOB) },
  {
    name: "good key with the route's scope",
    ask: ({ bob }) => ({ path: "/admin/x?y=1", headers: [bearer(bob)] }),
    expected: passes(BOB),
  },
  {
    name: "good key beside another scheme's `authorization`",
    ask: ({ bob }) => ({ headers: [["authorization", "Basic dXNlcjpwYXNz"], apiKey(bob)] }),
    expected: passes(BOB, ["authorization", "Basic dXNlcjpwYXNz"]),
    // It can't tell one scheme from another.
    except: { [traefik.name]: passes(BOB) },
  },
  {
    name: "good key in `x-api-key` beside a JWT as a bearer",
    ask: ({ bob }) => ({ headers: [bearer(JWT), apiKey(bob)] }),
    expected: passes(BOB),
    except: { [envoyGrpc.name]: JWT_GOES_ON, [envoyHttp.name]: JWT_GOES_ON },
  },
  { name: "no key", ask: () => ({}), expected: MISSING },
  { name: "malformed key", ask: () => ({ headers: [bearer("lk_nonsense")] }), expected: MALFORMED },
  {
    name: "unknown key",
    ask: () => ({ headers: [bearer(formatKey({ prefix: "lk", id: base62(16), secret: base62(43) }))] }),
    expected: NOT_FOUND,
  },
  {
    name: "wrong secret of a known key",
    ask: ({ alice }) => ({
      headers: [bearer(formatKey({ prefix: "lk", id: alice.split("_")[1]!, secret: base62(43) }))],
    }),
    expected: NOT_FOUND,
  },
  { name: "suspended key", ask: ({ suspended }) => ({ headers: [bearer(suspended)] }), expected: SUSPENDED },
  { name: "revoked one second ago", ask: ({ revoked }) => ({ headers: [apiKey(revoked)] }), expected: REVOKED },
  { name: "expired key", ask: ({ expired }) => ({ headers: [bearer(expired)] }), expected: EXPIRED },
  {
    name: "missing scope",
    ask: ({ alice }) => ({ path: "/admin/x", headers: [bearer(alice)] }),
    expected: NEEDS_WRITE,
  },
  {
    name: "missing scope, `//admin`",
    ask: ({ alice }) => ({ path: "//admin", headers: [bearer(alice)] }),
    expected: NEEDS_WRITE,
    except: ODD_PATH,
  },
  {
    name: "missing scope, `/x/../admin`",
    ask: ({ alice }) => ({ path: "/x/../admin", headers: [bearer(alice)] }),
    expected: NEEDS_WRITE,
    except: ODD_PATH,
  },
  {
    name: "missing scope, `/x/%2e%2e/admin`",
    ask: ({ alice }) => ({ path: "/x/%2e%2e/admin", headers: [bearer(alice)] }),
    expected: NEEDS_WRITE,
    except: ODD_PATH,
  },
  {
    name: "missing scope, `/%61dmin`",
    ask: ({ alice }) => ({ path: "/%61dmin", headers: [bearer(alice)] }),
    expected: NEEDS_WRITE,
  },
  {
    name: "missing scope, `/%2fadmin`",
    ask: ({ alice }) => ({ path: "/%2fadmin", headers: [bearer(alice)] }),
    expected: NEEDS_WRITE,
    except: ESCAPED_SLASH,
  },
  {
    name: "missing scope, `/x%2f..%2fadmin`",
    ask: ({ alice }) => ({ path: "/x%2f..%2fadmin", headers: [bearer(alice)] }),
    expected: NEEDS_WRITE,
    except: ESCAPED_SLASH,
  },
  {
    name: "the same header twice, two keys",
    ask: ({ alice, bob }) => ({ headers: [apiKey(alice), apiKey(bob)] }),
    expected: ambiguous("x-api-key"),
  },
  {
    name: "`authorization` twice, one key",
    ask: ({ alice }) => ({ headers: [bearer(alice), bearer(alice)] }),
    expected: ambiguous("authorization"),
    // It takes no second one.
    except: { [nginx.name]: NGINX_REFUSES },
  },
  {
    name: "two keys and a comma",
    ask: ({ alice, bob }) => ({ headers: [apiKey(`${alice}, ${bob}`)] }),
    expected: ambiguous("x-api-key"),
  },
  {
    name: "a key in both headers",
    ask: ({ alice, bob }) => ({ headers: [bearer(alice), apiKey(bob)] }),
    expected: ambiguous("authorization and x-api-key"),
  },
  {
    name: "forged `x-latchkey-user`",
    ask: ({ alice }) => ({ headers: [["x-latchkey-user", "mallory"], bearer(alice)] }),
    expected: passes(ALICE),
  },
  {
    name: "forged `X_Latchkey_User`, `x-latchkey_user`",
    ask: ({ alice }) => ({
      headers: [
        ["X_Latchkey_User", "mallory"],
        ["x-latchkey_user", "mallory"],
        bearer(alice),
        ["X_LATCHKEY_SCOPES", "admin"],
      ],
    }),
    expected: passes(ALICE),
  },
  {
    name: "forged with each other separator that a name may have",
    ask: ({ alice }) => ({ headers: [...FOLDED, bearer(alice)] }),
    expected: passes(ALICE),
  },
  {
    name: "forged in mixed case, repeated",
    ask: ({ alice }) => ({
      headers: [
        ...([
          ["X-LATCHKEY-User", "mallory"],
          ["x-LatchKey-user", "mallory"],
          ["X-Latchkey-Key-Id", "1"],
        ] as Told),
        ...([
          bearer(alice),
          ["X-Latchkey-Scopes", "admin"],
          ["x-latchkey-SCOPES", "admin"],
          ["X-Latchkey-Name", ""],
        ] as Told),
      ],
    }),
    expected: passes(ALICE),
  },
  {
    name: "forged `x-latchkey-role`, which Latchkey never says",
    ask: ({ alice }) => ({ headers: [["x-latchkey-role", "admin"], bearer(alice)] }),
    expected: passes(ALICE),
    // It can take away only what its file names.
    except: { [nginx.name]: passes(ALICE, ["x-latchkey-role", "admin"]) },
  },
  {
    name: "forged, without a key",
    ask: () => ({
      headers: [
        ["x-latchkey-user", "mallory"],
        ["x-latchkey-key-id", "1"],
        ["x_latchkey_user", "mallory"],
      ],
    }),
    expected: MISSING,
  },
  {
    name: "a client that names its own scopes and token",
    ask: ({ alice }) => ({
      path: "/admin/x?scopes=read",
      headers: [["x-latchkey-required-scopes", "read"], ["x-latchkey-gateway-token", "guess"], bearer(alice)],
    }),
    expected: NEEDS_WRITE,
  },
  {
    name: "a `scopes` of the client's own in the query",
    ask: ({ alice }) => ({ path: "/?scopes=admin&scopes=x", headers: [bearer(alice)] }),
    expected: passes(ALICE),
  },
  {
    name: "`connection` that names Latchkey's headers",
    ask: ({ alice }) => ({ headers: [["connection", OURS_AS_HOPS], bearer(alice)] }),
    expected: passes(ALICE),
  },
  {
    name: "`connection` that names them, missing scope",
    ask: ({ alice }) => ({ path: "/admin", headers: [["connection", OURS_AS_HOPS], bearer(alice)] }),
    expected: NEEDS_WRITE,
  },
  {
    name: "`authorization` twice, Basic and Bearer",
    ask: ({ alice }) => ({ headers: [["authorization", "Basic dXNlcjpwYXNz"], bearer(alice)] }),
    expected: ambiguous("authorization"),
    except: { [nginx.name]: NGINX_REFUSES },
  },
  {
    name: "another header of 6 KB",
    ask: ({ alice }) => ({ headers: [["x-large", "x".repeat(6_000)], bearer(alice)] }),
    expected: passes(ALICE),
  },
  {
    name: "another header of 100 KB",
    ask: ({ alice }) => ({ headers: [["x-large", "x".repeat(100_000)], bearer(alice)] }),
    expected: byItself(431, { "content-type": "text/plain" }),
    except: {
      [nginx.name]: NGINX_REFUSES,
      [haproxy.name]: HAPROXY_REFUSES,
      [`${haproxy.name} 3.2`]: byItself(431, { "cache-control": "no-cache", "content-type": "text/html" }),
      [apache.name]: byItself(400, { "content-type": "text/html; charset=iso-8859-1" }),
      [springCloudGateway.name]: { ...byItself(431), body: "" },
      // It takes a megabyte, and tells Latchkey of no more than the key.
      [traefik.name]: passes(ALICE),
      // It lets it pass; Latchkey's HTTP does not.
      [caddy.name]: { ...byItself(431), body: "" },
      [`${caddy.name} 2.11`]: byItself(431, { "content-type": "text/plain; charset=utf-8" }),
    },
  },
  {
    name: "a key of 5 KB",
    ask: () => ({ headers: [bearer(`lk_${"x".repeat(5_000)}`)] }),
    expected: MALFORMED,
  },
  {
    name: "the largest key there is: user, name, scopes and metadata",
    ask: ({ largest }) => ({ headers: [bearer(largest)] }),
    expected: passes("largest"),
  },
  {
    name: "the largest key there is, beside a header of 6 KB",
    ask: ({ largest }) => ({ headers: [["x-large", "x".repeat(6_000)], bearer(largest)] }),
    expected: passes("largest"),
  },
  {
    name: "HEAD, good key",
    ask: ({ alice }) => ({ method: "HEAD", headers: [bearer(alice)] }),
    expected: headless(passes(ALICE)),
  },
  {
    name: "HEAD, no key",
    ask: () => ({ method: "HEAD" }),
    expected: headless(MISSING),
    except: {
      [envoyHttp.name]: {
        ...headless(MISSING),
        headers: { "cache-control": "no-store", "www-authenticate": CHALLENGE },
      },
    },
  },
  { name: "OPTIONS, no key", ask: () => ({ method: "OPTIONS" }), expected: MISSING },
  {
    name: "`OPTIONS *`, good key",
    ask: ({ alice }) => ({ method: "OPTIONS", path: "*", headers: [bearer(alice)] }),
    expected: passes(ALICE),
    except: OPTIONS_ANSWERED,
  },
  {
    name: "`OPTIONS *`, no key",
    ask: () => ({ method: "OPTIONS", path: "*" }),
    expected: MISSING,
    except: OPTIONS_ANSWERED,
  },
  {
    name: "POST of 10 MB, good key",
    ask: ({ alice }) => ({ method: "POST", headers: [bearer(alice)], body: BIG }),
    expected: passes(ALICE),
  },
  {
    name: "POST of 10 MB, revoked key",
    ask: ({ revoked }) => ({ method: "POST", headers: [bearer(revoked)], body: BIG }),
    expected: REVOKED,
  },
  {
    name: "WebSocket, good key",
    ask: ({ alice }) => ({ webSocket: true, headers: [bearer(alice)] }),
    expected: { ...passes(ALICE), status: 101, headers: {}, body: "you said hello" },
  },
  { name: "WebSocket, no key", ask: () => ({ webSocket: true }), expected: MISSING },
];
