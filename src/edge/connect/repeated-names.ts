const TOKEN = /"(?:[^"\\]|\\.)*"(\s*:)?|[{}[\]]/g;

/**
 * The path of a member whose name stands twice in its object, such as `metadata.plan`; undefined: there is none. `json` is
 * well-formed. The codec refuses such JSON, and does not say where.
 */
export function repeatedName(json: string): string | undefined {
  /** Objects and arrays around what is read; the names so far, and the last of them, of an object. */
  const around: { names?: Set<string>; last?: string }[] = [];
  for (const [token, colon] of json.matchAll(TOKEN)) {
    if (token === "{") around.push({ names: new Set() });
    else if (token === "[") around.push({});
    else if (token === "}" || token === "]") around.pop();
    else if (colon !== undefined) {
      const object = around.at(-1)!;
      object.last = JSON.parse(token.slice(0, -colon.length)) as string;
      if (object.names!.has(object.last)) return around.flatMap(({ last }) => last ?? []).join(".");
      object.names!.add(object.last);
    }
  }
  return undefined;
}
