import { readFileSync, writeFileSync } from "node:fs";

export const README = "deploy/gateways/README.md";

/** Rows of the table of gateways that say what was run, and when. */
export const RUN_OF = { release: "*release*", on: "*run on*", files: "*files*" } as const;

/** The cells of a table of the README, by row, its head first and without the line below that. */
export function tableIn(name: string): string[][] {
  const text = readFileSync(README, "utf8").split(new RegExp(`<!-- /?${name} -->`))[1] ?? "";
  return text
    .trim()
    .split("\n")
    .filter((line) => !/^\|[ |-]*\|$/.test(line))
    .map((line) =>
      line
        .split("|")
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
}

export function writeTable(name: string, head: readonly string[], rows: readonly (readonly string[])[]): void {
  const lines = [head, head.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`);
  const between = new RegExp(`<!-- ${name} -->[\\s\\S]*<!-- /${name} -->`);
  writeFileSync(
    README,
    readFileSync(README, "utf8").replace(between, `<!-- ${name} -->\n${lines.join("\n")}\n<!-- /${name} -->`),
  );
}
