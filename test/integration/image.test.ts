import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, test } from "@jest/globals";
import { readConfig } from "../../src/service/config.ts";
import { newDirectory, serve, stopProcesses } from "../support/process.ts";
import { freePort } from "../support/replica-set.ts";
import { sha256 } from "../support/service.ts";

afterEach(stopProcesses);

const healthcheck = (env: Record<string, string>) =>
  spawnSync(process.execPath, ["deploy/healthcheck.js"], { env, encoding: "utf8" }).status;

test("the image's health check asks whether the process lives: by the operators' port, or with LATCHKEY_OPS_LISTEN=off by the public one", async () => {
  const listen = `127.0.0.1:${await freePort()}`;
  const service = await serve({ LATCHKEY_DATA_DIR: newDirectory(), LATCHKEY_LISTEN: listen });
  const ops = service.opsUrl.slice("http://".length);
  expect(healthcheck({ LATCHKEY_OPS_LISTEN: ops, LATCHKEY_LISTEN: "127.0.0.1:1" })).toBe(0);
  expect(healthcheck({ LATCHKEY_OPS_LISTEN: ops.replace("127.0.0.1", "0.0.0.0") })).toBe(0);
  expect(healthcheck({ LATCHKEY_OPS_LISTEN: "off", LATCHKEY_LISTEN: listen.replace("127.0.0.1", "0.0.0.0") })).toBe(0);
  await stopProcesses();
  expect(healthcheck({ LATCHKEY_OPS_LISTEN: ops })).toBe(1);
  expect(healthcheck({ LATCHKEY_OPS_LISTEN: "off", LATCHKEY_LISTEN: listen })).toBe(1);
}, 60_000);

test("the image's operators' port can be probed from outside of it, and its health check is the file that is copied into it", () => {
  const dockerfile = readFileSync("Dockerfile", "utf8");
  const [, ops] = /LATCHKEY_OPS_LISTEN=(\S+)/.exec(dockerfile)!;
  expect(readConfig({ LATCHKEY_OPS_LISTEN: ops }).opsListen).toEqual({ host: "0.0.0.0", port: 9090 });
  expect(dockerfile).toContain("COPY deploy/healthcheck.js deploy/healthcheck.js");
  expect(dockerfile).toContain(
    'HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["node", "deploy/healthcheck.js"]',
  );
  expect(dockerfile).toContain(`ARG VERSION=${JSON.parse(readFileSync("package.json", "utf8")).version}\n`);
  // Layers of the last stage are what is shipped.
  const shipped = dockerfile.slice(dockerfile.lastIndexOf("\nFROM "));
  expect([...shipped.matchAll(/^(?:RUN|COPY) .*/gm)].map(([line]) => line)).toEqual([
    "COPY package.json LICENSE ./",
    "COPY --from=modules /app/node_modules node_modules",
    "COPY --from=build /app/dist dist",
    "COPY deploy/healthcheck.js deploy/healthcheck.js",
  ]);
});

test("the secrets of the compose file, its service token among them, are made without Node, and once", () => {
  const directory = newDirectory();
  const script = join(directory, "secrets.sh");
  copyFileSync("deploy/secrets.sh", script);
  const token = execFileSync("sh", [script], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
  expect(statSync(join(directory, ".env")).mode & 0o777).toBe(0o600);
  const env = Object.fromEntries(
    readFileSync(join(directory, ".env"), "utf8")
      .trim()
      .split("\n")
      .map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
  );
  const compose = readFileSync("deploy/compose.yaml", "utf8");
  const needed = [...compose.matchAll(/\$\{(LATCHKEY_\w+):/g)].map(([, name]) => name!);
  expect(Object.keys(env).sort()).toEqual(needed.sort());
  const config = readConfig({
    ...env,
    MONGODB_URI: "mongodb://mongodb:27017/?replicaSet=rs0",
    LATCHKEY_VERIFY_AUTH: "token",
  });
  expect(config.serviceTokens).toEqual([{ name: "gateway", sha256: Buffer.from(sha256(token), "hex") }]);
  expect(spawnSync("sh", [script], { encoding: "utf8" })).toMatchObject({
    ...{ status: 1, stdout: "" },
    stderr: expect.stringContaining("is left as it is"),
  });
});
