import { readFileSync, writeFileSync } from "node:fs";

/** In Markdown. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  return [head, head.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`).join("\n");
}

const TRUST = "docs/trust.md";

/** Replaces what stands between the markers of this name. */
export function writeBetweenMarkers(name: string, text: string): void {
  const [begin, end] = [`<!-- ${name} -->`, `<!-- /${name} -->`];
  const page = readFileSync(TRUST, "utf8");
  const [before, rest] = page.split(begin);
  const after = rest?.split(end)[1];
  if (after === undefined) throw new Error(`${TRUST} has no ${begin} … ${end}.`);
  writeFileSync(TRUST, `${before}${begin}\n${text}\n${end}${after}`);
}
