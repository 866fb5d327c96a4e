import { execFile } from "node:child_process";
import { readdirSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { installPacked, MODULES } from "../support/packed.ts";
import { startService, type TestService } from "../support/service.ts";

const run = promisify(execFile);

let service: TestService;
let project: string;
beforeAll(async () => {
  service = await startService();
  project = await installPacked();
  writeFileSync(join(project, "consumer.ts"), CONSUMER);
});
afterAll(async () => {
  await rm(project, { recursive: true, force: true });
  await service.stop();
});

const CONSUMER = `
import { createLatchkeyClient, describeError, ErrorReason, Outcome, type VerifyResponse } from "latchkey/client";

for (const protocol of ["grpc", "connect"] as const) {
  const client = createLatchkeyClient({ baseUrl: process.argv[2]!, protocol, token: async () => process.argv[3]! });
  const answer: VerifyResponse = await client.verify({ key: "x", requiredScopes: ["read"] });
  const failure = await client.get({}).catch(describeError);
  if ("$typeName" in failure) throw new Error("it was not refused");
  const reason: string | undefined = failure.reason;
  console.log(JSON.stringify([Outcome[answer.outcome], reason === ErrorReason[ErrorReason.UNAUTHENTICATED]]));
}

// @ts-expect-error: a base URL is needed
export const noUrl = () => createLatchkeyClient({});
// @ts-expect-error: a field that there is not
export const noField = () => createLatchkeyClient({ baseUrl: "" }).create({ scopes: [], tll: 1 });
`;

test("the packed client type-checks in a strict program, also where only erasable syntax is allowed, and its types refuse what there is not", async () => {
  writeFileSync(
    join(project, "tsconfig.json"),
    JSON.stringify({
      compilerOptions: {
        ...{
          strict: true,
          module: "nodenext",
          target: "es2023",
          types: ["node"],
          outDir: "built",
          skipLibCheck: false,
          erasableSyntaxOnly: true,
        },
      },
      files: ["consumer.ts"],
    }),
  );
  const { stdout } = await run(join(MODULES, ".bin", "tsc"), ["-p", project]).catch((error) => error);
  expect(stdout).toBe("");
}, 60_000);

test("the packed client asks over gRPC and Connect, and tells errors by their reason", async () => {
  const { stdout } = await run(process.execPath, [join(project, "built", "consumer.js"), service.baseUrl, "no-token"], {
    cwd: project,
  });
  expect(stdout).toBe('["MALFORMED",true]\n["MALFORMED",true]\n');
}, 60_000);

test("the package opens the client alone, and carries the contract but no source or test", async () => {
  const intruder = join(project, "intruder.js");
  writeFileSync(intruder, 'await import("latchkey/dist/src/service/server.js")');
  await expect(run(process.execPath, [intruder])).rejects.toThrow("ERR_PACKAGE_PATH_NOT_EXPORTED");
  const installed = join(project, "node_modules", "latchkey");
  expect(readdirSync(installed).sort()).toEqual([
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "dist",
    "package.json",
    "proto",
  ]);
});
