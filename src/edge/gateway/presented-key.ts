import type { Identity } from "../answer.ts";

// API keys that a request to a gateway carries, and headers that pass for ours.

/** Begins every header of ours. */
const OUR_PREFIX = "x-latchkey-";

/** Where a request to a gateway may carry its API key. */
export interface GatewayKeySources {
  /** `authorization: Bearer` */
  readonly bearer: boolean;
  /** Names of headers, in lower case. */
  readonly headers: readonly string[];
  /** Names of query parameters. */
  readonly queries: readonly string[];
}

/** Where requests may carry a key, and what keys begin with. */
export interface KeySources extends GatewayKeySources {
  /** Each with the `_` that follows it. */
  readonly prefixes: readonly string[];
  /** Fields of the key for the upstream. */
  readonly identity: Identity;
}

/**
 * Credentials that a request was found to carry. Filled by `noteHeader` and `noteQuery`, in any order. What has no key's form (no prefix
 * of ours) is no key, unless there is none that has: a token for the upstream, or an empty header, makes no key ambiguous.
 */
export interface Presented {
  /** The last credential of a key's form; else the first that is not empty; else empty. */
  key: string;
  /** Credentials of a key's form. */
  count: number;
  /** An `authorization` that holds several credentials, one of a key's form among them. */
  joined: boolean;
  /** Where credentials of a key's form stood, and others: a bit a place, as `placesIn` reads them. */
  places: number;
  strayPlaces: number;
  /** `authorization` headers, and whether one of them holds what has a key's form. */
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
    places: 0,
    strayPlaces: 0,
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
export function noteHeader(presented: Presented, sources: KeySources, name: string, value: string): void {
  const lower = name.toLowerCase();
  if (lower === "authorization") {
    if (sources.bearer) noteAuthorization(presented, sources, value);
  } else {
    const index = sources.headers.indexOf(lower);
    if (index >= 0) noteKeyHeader(presented, sources, index, value);
  }
  if (isForgery(lower, sources.identity)) {
    presented.forged ??= [];
    presented.forged.push(lower);
  }
}

/**
 * The header `sources.headers[index]`, which holds a key and nothing else. Commas stand between what came in several headers
 * of the name, as gateways join them.
 */
export function noteKeyHeader(presented: Presented, sources: KeySources, index: number, value: string): void {
  const place = 1 + index;
  const keys = value.includes(",") ? value.split(",").filter((part) => isOfForm(trimmed(part), sources)) : NONE;
  if (keys.length === 0) noteCredential(presented, sources, value, place);
  else for (const key of keys) noteCredential(presented, sources, key, place);
}

const NONE: readonly never[] = [];

const BEARER = /^[ \t]*bearer(?:[ \t]|$)/i;
const JOINED_BEARER = /(?:^|,)[ \t]*bearer(?:[ \t,]|$)/i;

/** Other schemes are not ours, and may have commas. */
export function noteAuthorization(presented: Presented, sources: KeySources, value: string): void {
  presented.authorizations += 1;
  const joined = value.includes(",");
  // As nearly all clients spell it.
  const usual = !joined && value.startsWith("Bearer ");
  if (!usual && !(joined ? JOINED_BEARER : BEARER).test(value)) return;
  const credential = usual ? value.slice("Bearer ".length) : value.trim().replace(/^bearer/i, "");
  const several = joined && credential.split(",").some((part) => isOfForm(bare(part), sources));
  if (!noteCredential(presented, sources, credential, 0, several)) return;
  presented.bearer = true;
  presented.joined ||= several;
}

/** Returns whether it is a key, by its form or for another reason that the caller knows. */
function noteCredential(
  presented: Presented,
  sources: KeySources,
  value: string,
  place: number,
  isKey: boolean = false,
): boolean {
  const credential = trimmed(value);
  if (isKey || isOfForm(credential, sources)) {
    presented.count += 1;
    presented.key = credential;
    presented.places |= placeBit(place);
    return true;
  }
  if (credential !== "") {
    if (presented.key === "") presented.key = credential;
    presented.strayPlaces |= placeBit(place);
  }
  return false;
}

/** A prefix of ours. Neither length nor checksum: whoever has sent half a key meant to send one. */
function isOfForm(credential: string, { prefixes }: KeySources): boolean {
  for (let index = 0; index < prefixes.length; index += 1) if (credential.startsWith(prefixes[index]!)) return true;
  return false;
}

function bare(part: string): string {
  return part.trim().replace(/^bearer[ \t]+/i, "");
}

/** Of `authorization`, the headers and the query parameters, in this order. More places than bits share the last one. */
function placeBit(place: number): number {
  return 1 << Math.min(place, 30);
}

/** The names of places, for people. */
export function placesIn(places: number, { headers, queries }: KeySources): string {
  const all = ["authorization", ...headers, ...queries.map((name) => `the query parameter ${name}`)];
  const names = all.filter((_, place) => (places & placeBit(place)) !== 0);
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** `trim` takes its time even where there is nothing to do. */
function trimmed(text: string): string {
  return isBlank(text.charCodeAt(0)) || isBlank(text.charCodeAt(text.length - 1)) ? text.trim() : text;
}

function isBlank(code: number): boolean {
  return code === 0x20 || code === 0x09;
}

/** Whether an upstream could take this header, which is not one that is overwritten, for one of ours. */
function isForgery(lower: string, { headers }: Identity): boolean {
  if (lower.charCodeAt(0) !== 0x78 || lower.length <= OUR_PREFIX.length) return false;
  return lower.slice(0, OUR_PREFIX.length).replace(/[^a-z0-9]/g, "-") === OUR_PREFIX && !headers.includes(lower);
}

/** The query of `target`, a path or URL. */
export function noteQuery(presented: Presented, sources: KeySources, target: string): void {
  if (sources.queries.length === 0) return;
  for (const { name, spelled, value } of parametersOf(target)) {
    const index = sources.queries.indexOf(name);
    if (index < 0) continue;
    noteCredential(presented, sources, value, 1 + sources.headers.length + index);
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

/**
 * Headers that must not reach the upstream: the credential, wherever it may be, and what passes for an identity header.
 * `authorization` only where it holds a credential of ours.
 */
export function headersToRemove(presented: Presented, sources: KeySources): readonly string[] {
  const bearer = presented.bearer ? ["authorization"] : [];
  return [...new Set([...bearer, ...sources.headers, ...sources.identity.aliases, ...(presented.forged ?? [])])];
}
