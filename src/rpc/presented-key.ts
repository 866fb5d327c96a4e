import type { GatewayKeySources } from "../config.ts";

// What a request that came to a gateway carries: API keys, and headers that pass for ours.

/** Headers that tell an upstream who the caller is. */
export const IDENTITY_HEADERS = {
  user: "x-latchkey-user",
  keyId: "x-latchkey-key-id",
  scopes: "x-latchkey-scopes",
  name: "x-latchkey-name",
} as const;

const OURS: readonly string[] = Object.values(IDENTITY_HEADERS);

/** Begins every header of ours. */
const OUR_PREFIX = "x-latchkey-";

/** What a request was found to carry. Filled by `noteHeader` and `noteQuery`, in any order. */
export interface Presented {
  /** The last credential; empty: none, or one without a key in it. */
  key: string;
  /** Credentials that were seen, empty ones included. */
  count: number;
  /** A credential that holds several. */
  joined: boolean;
  /** `authorization` headers, and whether one of them is a credential of ours. */
  authorizations: number;
  bearer: boolean;
  /** Headers that pass for identity headers where `_` and `-` are one, in lower case; undefined: none. */
  forged: string[] | undefined;
  /** Query parameters that a credential was in, as spelled; undefined: none. */
  queryNames: string[] | undefined;
}

/** Spelled out, so that all have one shape. */
export function nothingPresented(): Presented {
  return {
    key: "",
    count: 0,
    joined: false,
    authorizations: 0,
    bearer: false,
    forged: undefined,
    queryNames: undefined,
  };
}

/** Two keys in one request are refused, even equal ones: the upstream might take the one that was not checked. */
export function isAmbiguous({ count, joined, bearer, authorizations }: Presented): boolean {
  return joined || count > 1 || (bearer && authorizations > 1);
}

/** `name` may be in any case. A header that is of no interest changes nothing. */
export function noteHeader(presented: Presented, sources: GatewayKeySources, name: string, value: string): void {
  const lower = name.toLowerCase();
  if (lower === "authorization") {
    if (sources.bearer) noteAuthorization(presented, value);
  } else if (sources.headers.includes(lower)) noteKeyHeader(presented, value);
  if (isForgery(lower)) {
    presented.forged ??= [];
    presented.forged.push(lower);
  }
}

/** A header that holds a key and nothing else. */
export function noteKeyHeader(presented: Presented, value: string): void {
  presented.count += 1;
  presented.key = trimmed(value);
  if (value.includes(",")) presented.joined = true;
}

const BEARER = /^[ \t]*bearer(?:[ \t]|$)/i;
const JOINED_BEARER = /(?:^|,)[ \t]*bearer(?:[ \t,]|$)/i;

/** Other schemes are not ours, and may have commas. */
export function noteAuthorization(presented: Presented, value: string): void {
  presented.authorizations += 1;
  const joined = value.includes(",");
  // As nearly all clients spell it.
  const usual = !joined && value.startsWith("Bearer ");
  if (!usual && !(joined ? JOINED_BEARER : BEARER).test(value)) return;
  presented.joined ||= joined;
  presented.bearer = true;
  presented.count += 1;
  presented.key = trimmed(usual ? value.slice("Bearer ".length) : value.trim().slice("bearer".length));
}

/** `trim` takes its time even where there is nothing to do. */
function trimmed(text: string): string {
  return isBlank(text.charCodeAt(0)) || isBlank(text.charCodeAt(text.length - 1)) ? text.trim() : text;
}

function isBlank(code: number): boolean {
  return code === 0x20 || code === 0x09;
}

/** Whether an upstream could take this header, which is not one that is overwritten, for one of ours. */
function isForgery(lower: string): boolean {
  if (lower.charCodeAt(0) !== 0x78 || lower.length <= OUR_PREFIX.length) return false;
  return lower.slice(0, OUR_PREFIX.length).replace(/[^a-z0-9]/g, "-") === OUR_PREFIX && !OURS.includes(lower);
}

/** The query of `target`, a path or URL. */
export function noteQuery(presented: Presented, sources: GatewayKeySources, target: string): void {
  if (sources.queries.length === 0) return;
  for (const { name, spelled, value } of parametersOf(target)) {
    if (!sources.queries.includes(name)) continue;
    presented.count += 1;
    presented.key = value;
    presented.queryNames ??= [];
    if (!presented.queryNames.includes(spelled)) presented.queryNames.push(spelled);
  }
}

interface Parameter {
  name: string;
  /** The name as it stands in the query. */
  spelled: string;
  value: string;
}

export function parametersOf(target: string): Parameter[] {
  const start = target.indexOf("?");
  if (start < 0) return [];
  const [query = ""] = target.slice(start + 1).split("#", 1);
  return query.split("&").map((parameter) => {
    const equals = parameter.indexOf("=");
    const spelled = equals < 0 ? parameter : parameter.slice(0, equals);
    return { spelled, name: decode(spelled), value: equals < 0 ? "" : decode(parameter.slice(equals + 1)) };
  });
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text.replaceAll("+", " "));
  } catch {
    return text;
  }
}

const ALIASES = OURS.map((name) => name.replaceAll("-", "_"));

/**
 * Headers that must not reach the upstream: the credential, wherever it may be, and what passes for an identity header.
 * `authorization` only where it holds a credential of ours.
 */
export function headersToRemove(presented: Presented, sources: GatewayKeySources): readonly string[] {
  const bearer = presented.bearer ? ["authorization"] : [];
  return [...new Set([...bearer, ...sources.headers, ...ALIASES, ...(presented.forged ?? [])])];
}
