import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "@jest/globals";
import { ensureDevSecrets } from "../../src/embedded/dev-secrets.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "latchkey secrets "));
});
afterEach(() => rmSync(directory, { recursive: true }));
const file = () => join(directory, "secrets.json");

test("secrets of an earlier release keep the ids that the database may know them by", () => {
  const earlier = { jwtSecret: "j".repeat(64), pepper: "p".repeat(44), requestKey: "r".repeat(44) };
  writeFileSync(file(), JSON.stringify(earlier));
  expect(ensureDevSecrets(directory)).toEqual({ ...earlier, pepperId: "dev", requestKeyId: "dev" });
});

test("secrets that are made anew have ids of their own, so that no start is refused for those that were deleted", () => {
  const first = ensureDevSecrets(directory);
  expect(ensureDevSecrets(directory)).toEqual(first);
  rmSync(file());
  const second = ensureDevSecrets(directory);
  for (const id of ["pepperId", "requestKeyId"] as const) {
    expect(second[id]).toMatch(/^dev-[0-9a-f]{8}$/);
    expect(second[id]).not.toBe(first[id]);
  }
});
