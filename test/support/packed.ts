import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { chmod } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
export const MODULES = resolve("node_modules");

/** A program elsewhere that has the packed package and what it depends on, and nothing of this repository. Returns its folder. */
export async function installPacked(): Promise<string> {
  const project = mkdtempSync(join(tmpdir(), "latchkey consumer "));
  const { stdout } = await run("npm", ["pack", "--ignore-scripts", "--json", "--pack-destination", project]);
  const [packed] = JSON.parse(stdout) as { filename: string }[];
  const installed = join(project, "node_modules", "latchkey");
  mkdirSync(installed, { recursive: true });
  await run("tar", ["-xzf", join(project, packed!.filename), "-C", installed, "--strip-components=1"]);
  for (const name of readdirSync(MODULES)) {
    if (!name.startsWith(".") && name !== "latchkey")
      symlinkSync(join(MODULES, name), join(project, "node_modules", name));
  }
  writeFileSync(join(project, "package.json"), '{"type":"module"}');
  // As npm does with a package's programs.
  mkdirSync(join(project, "node_modules", ".bin"));
  symlinkSync("../latchkey/dist/src/cli/main.js", join(project, "node_modules", ".bin", "latchkey"));
  await chmod(join(installed, "dist", "src", "cli", "main.js"), 0o755);
  return project;
}
