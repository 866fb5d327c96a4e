import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { promisify } from "node:util";
import { expect, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { parseAnyKey } from "../../src/keys/text.ts";
import { pythonPackages } from "../support/python-client.ts";
import { SERVICE_TOKEN, sha256, startService, userToken } from "../support/service.ts";

const run = promisify(execFile);

const packages = pythonPackages();
if ("unavailable" in packages) {
  process.stderr.write(`SKIPPED: Python's gRPC can't be had here (${packages.unavailable}).\n`);
}

const withPython = ("unavailable" in packages ? test.skip : test) as typeof test;
const env = { ...process.env, PYTHONPATH: "path" in packages ? packages.path : "" };

withPython("libargon2, by Python, reads and verifies the argon2id hash that a key's record holds", async () => {
  const service = await startService();
  const { key, apiKey } = await service.client(randomUUID()).create({ scopes: ["read"] });
  const client = await MongoClient.connect(process.env.TEST_MONGODB_URI!);
  const keys = client.db(service.database).collection<{ _id: string; secretHash: string }>("api_keys");
  const { secretHash } = (await keys.findOne({ _id: apiKey!.id }))!;
  await client.close();
  await service.stop();
  const program = "import sys, argon2; print(argon2.PasswordHasher().verify(sys.argv[1], sys.argv[2]))";
  const { stdout } = await run("python3", ["-c", program, secretHash, parseAnyKey(key)!.secret], { env });
  expect(stdout.trim()).toBe("True");
});

withPython(
  "Python's own gRPC finds the service by reflection, makes all five calls, reads an error's reason and the health",
  async () => {
    const service = await startService({
      env: {
        LATCHKEY_VERIFY_AUTH: "token",
        LATCHKEY_SERVICE_TOKENS: `gateway:sha256:${sha256(SERVICE_TOKEN)}`,
      },
    });
    const token = await userToken(randomUUID());
    const args = ["test/support/python_client.py", service.server.address, token, SERVICE_TOKEN];
    const { stdout } = await run("python3", args, { env });
    expect(JSON.parse(stdout)).toEqual({
      services: [
        "envoy.service.auth.v3.Authorization",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "latchkey.v1.AdminService",
        "latchkey.v1.ApiKeyService",
      ],
      same_key: true,
      previous: "STATE_RETIRING",
      verified: "OUTCOME_VALID",
      revoked: [true],
      refused: "OUTCOME_REVOKED",
      error: ["NOT_FOUND", true],
      health: "SERVING",
    });
    await service.stop();
  },
  120_000,
);
