import { spawnSync } from "node:child_process";

/**
 * Builds the Go program in `sourceDir`. Go fetches its modules the first time, which takes minutes on a slow line: which one
 * comes is shown on standard error, as is what can't be built. Undefined: done; else why not.
 */
export function buildGo(sourceDir: string, binary: string): string | undefined {
  process.stderr.write(`go build in ${sourceDir}; modules that are not at hand yet are fetched\n`);
  const { error, status } = spawnSync("go", ["build", "-o", binary, "."], {
    cwd: sourceDir,
    stdio: ["ignore", "ignore", "inherit"],
  });
  if ((error as NodeJS.ErrnoException | undefined)?.code === "ENOENT") return "there is no Go here";
  return status === 0 ? undefined : "Go could not build it; why stands above";
}
