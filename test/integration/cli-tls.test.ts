import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, expect, test } from "@jest/globals";
import { createCa } from "../support/certificates.ts";
import { newDirectory, runToEnd, stopProcesses } from "../support/process.ts";
import { startService, userToken } from "../support/service.ts";

afterEach(stopProcesses);

test("the command line has a client certificate and trusts whom it is told to; the doctor says what is missing", async () => {
  const directory = newDirectory();
  const file = (name: string, content: string) => {
    writeFileSync(join(directory, name), content);
    return join(directory, name);
  };
  const ca = createCa();
  const [server, client] = [ca.issue({ cn: "latchkey", ips: ["127.0.0.1"] }), ca.issue({ cn: "gateway" })];
  const caFile = file("ca.pem", ca.cert);
  const service = await startService({
    env: {
      LATCHKEY_TLS_CERT_FILE: file("cert.pem", server.cert),
      LATCHKEY_TLS_KEY_FILE: file("key.pem", server.key),
      LATCHKEY_TLS_CLIENT_CA_FILE: caFile,
      LATCHKEY_VERIFY_AUTH: "mtls",
    },
  });
  const url = { LATCHKEY_URL: `https://${service.server.address}/`, LATCHKEY_DATA_DIR: directory };
  const trusting = { ...url, LATCHKEY_CA_FILE: caFile };
  const certificate = {
    LATCHKEY_CLIENT_CERT_FILE: file("client.pem", client.cert),
    LATCHKEY_CLIENT_KEY_FILE: file("client-key.pem", client.key),
  };
  const made = await runToEnd(["create", "--scope", "read"], { ...trusting, LATCHKEY_TOKEN: await userToken("alice") });
  expect(made).toEqual({ code: 0, output: expect.stringMatching(/^lk_\w+$/) });
  const verify = (env: Record<string, string>) => runToEnd(["verify"], env, made.output);
  expect(await verify({ ...trusting, ...certificate })).toEqual({ code: 0, output: "VALID" });
  expect(await verify(trusting)).toEqual({
    code: 1,
    output: expect.stringContaining("A client certificate is needed"),
  });
  for (const command of ["verify", "doctor"]) {
    const { code, output } = await runToEnd([command], url, made.output);
    expect({ code, output }).toEqual({ code: 1, output: expect.stringContaining("set LATCHKEY_CA_FILE") });
  }
  expect((await runToEnd(["doctor"], trusting)).output).toContain(`https://${service.server.address} serves`);
  const wrongKey = { ...certificate, LATCHKEY_CLIENT_KEY_FILE: file("other.pem", server.key) };
  for (const [env, sentence] of [
    [wrongKey, "the key the one that the certificate was made for"],
    [{ LATCHKEY_CLIENT_CERT_FILE: caFile }, "LATCHKEY_CLIENT_CERT_FILE and LATCHKEY_CLIENT_KEY_FILE need each other"],
    [{ LATCHKEY_CA_FILE: "/nowhere" }, "LATCHKEY_CA_FILE=/nowhere can't be read (ENOENT)"],
  ] as [Record<string, string>, string][])
    expect(await verify({ ...trusting, ...env })).toEqual({ code: 1, output: expect.stringContaining(sentence) });
  await service.stop();
}, 240_000);
