import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { promisify } from "node:util";
import { expect, test } from "@jest/globals";
import { pythonPackages } from "../support/python-client.ts";
import { SERVICE_TOKEN, sha256, startService, userToken } from "../support/service.ts";

const packages = pythonPackages();
if ("unavailable" in packages) {
  process.stderr.write(`SKIPPED: Python's gRPC can't be had here (${packages.unavailable}).\n`);
}

(("unavailable" in packages ? test.skip : test) as typeof test)(
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
    const env = { ...process.env, PYTHONPATH: "path" in packages ? packages.path : "" };
    const { stdout } = await promisify(execFile)("python3", args, { env });
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
