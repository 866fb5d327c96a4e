import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { readConfig } from "../../src/service/config.ts";

const REQUIREMENTS = [
  ...["grpcio>=1.60,<2", "grpcio-reflection>=1.60,<2", "grpcio-health-checking>=1.60,<2"],
  "argon2-cffi>=23,<26",
];

/** Where Python's gRPC packages, and libargon2 for Python, are, installed beside the cached mongod when missing; or why they can't be had. */
export function pythonPackages(): { path: string } | { unavailable: string } {
  try {
    const tag = python(["-c", "import sys; print(sys.implementation.cache_tag)"]).trim();
    const { cacheDir } = readConfig({ ...process.env, MONGODB_URI: "" });
    const path = join(cacheDir, `grpc-${tag}`);
    if (!imports(path)) {
      mkdirSync(cacheDir, { recursive: true });
      const folder = mkdtempSync(join(cacheDir, "fetching-"));
      python(["-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--target", folder, ...REQUIREMENTS]);
      // Two workers of the tests may have fetched at once: what the other one put there may be in use.
      if (imports(path)) rmSync(folder, { recursive: true });
      else {
        rmSync(path, { recursive: true, force: true });
        renameSync(folder, path);
      }
    }
    return { path };
  } catch (error) {
    const { stderr, message } = error as { stderr?: string; message: string };
    return { unavailable: (stderr || message).trim().split("\n").at(-1)! };
  }
}

function imports(path: string): boolean {
  try {
    python(["-c", "import grpc, grpc_reflection, grpc_health, argon2"], path);
    return true;
  } catch {
    return false;
  }
}

function python(args: string[], path = ""): string {
  return execFileSync("python3", args, {
    encoding: "utf8",
    env: { ...process.env, PYTHONPATH: path },
    stdio: ["ignore", "pipe", "pipe"],
  });
}
