import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { describe, expect, test } from "@jest/globals";
import { createIdentity, OUTCOMES, UNASKED } from "../../src/edge/answer.ts";
import { readConfig } from "../../src/service/config.ts";
import { apache, caddy, envoyGrpc, envoyHttp, FOLDER, haproxy, nginx, springCloudGateway } from "./gateways.ts";

// What can't be run here is held to its structure: the fields are those of the documentation, and what keeps a request from
// passing unasked stands where it must.

const { safeLoadAll } = createRequire(import.meta.url)("js-yaml") as { safeLoadAll(text: string): unknown[] };
const documents = <T>(file: string) => safeLoadAll(readFileSync(join(FOLDER, file), "utf8")) as T[];

interface Resource<Spec> {
  kind: string;
  metadata: { name: string; namespace: string };
  spec: Spec;
}

const SPELLINGS = ["X-Latchkey-User", "X_latchkey_user", "x-latchkey.user", "X-LATCHKEY-KEY-ID", "x~Latchkey-scopes"];

const JAVA = "spring-cloud-gateway/src/main/java/gateway/LatchkeyFilter.java";
// The others take all that begins with `x-latchkey-`.
test.each([
  "Caddyfile",
  "envoy-http.yaml",
  "nginx.conf",
  "latchkey.lua",
  "apache/latchkey.lua",
  "gateway-api.yaml",
  JAVA,
  "README.md",
])("%s names every identity header", (file) => {
  const text = readFileSync(join(FOLDER, file), "utf8").toLowerCase().replaceAll("_", "-");
  for (const header of createIdentity([]).headers)
    expect(text).toMatch(new RegExp(`${header}|${header.replace("x-latchkey-", "-")}\\b`));
});

test("the README's table of refusals has every outcome with its status", () => {
  const [, section = ""] = readFileSync(join(FOLDER, "README.md"), "utf8").split("\n## What a client is told\n");
  const rows = [...section.split("\n## ")[0]!.matchAll(/^\| (\d{3}) \| (.*?) \|/gm)];
  const statuses = Object.fromEntries(
    rows.flatMap(([, status, reasons]) =>
      [...reasons!.matchAll(/`([A-Z_]+)`/g)].map((match) => [match[1], Number(status)]),
    ),
  );
  const refusals = [
    ...Object.entries(OUTCOMES).map(([name, { refusal }]) => [name, refusal] as const),
    ...Object.entries(UNASKED),
  ].filter(([, refusal]) => refusal !== undefined);
  expect(statuses).toMatchObject(
    Object.fromEntries(refusals.map(([name, refusal]) => [name.toUpperCase(), refusal!.status])),
  );
});

describe("Traefik", () => {
  interface Dynamic {
    http: {
      routers: Record<string, { rule: string; middlewares: string[]; service: string; entryPoints: string[] }>;
      middlewares: Record<
        string,
        { forwardAuth?: ForwardAuth; headers?: { customRequestHeaders: Record<string, string> } }
      >;
      services: Record<string, object>;
    };
  }
  interface ForwardAuth {
    address: string;
    authResponseHeadersRegex: string;
    authRequestHeaders: string[];
  }
  const [{ http }] = documents<Dynamic>("traefik-dynamic.yaml") as [Dynamic];
  const [fixed] = documents<{ entryPoints: object; providers: { file: { filename: string } } }>("traefik.yaml");

  test("every router asks Latchkey, and then forgets the credential", () => {
    expect(fixed!.providers.file.filename).toBe("traefik-dynamic.yaml");
    for (const { middlewares, service, entryPoints } of Object.values(http.routers)) {
      const used = middlewares.map((name) => http.middlewares[name]);
      expect(used).not.toContain(undefined);
      const asks = used.findIndex((middleware) => middleware?.forwardAuth !== undefined);
      const forgets = used.findIndex((middleware) => middleware?.headers?.customRequestHeaders.Authorization === "");
      expect(asks).toBeGreaterThan(-1);
      expect(forgets).toBeGreaterThan(asks);
      expect(used[forgets]).toMatchObject({ headers: { customRequestHeaders: { "X-Api-Key": "" } } });
      expect(Object.keys(http.services)).toContain(service);
      expect(Object.keys(fixed!.entryPoints)).toEqual(entryPoints);
    }
  });

  test("identity headers are forgotten in every spelling, and a key is looked for where Latchkey looks", () => {
    const asking = Object.values(http.middlewares).flatMap(({ forwardAuth }) => forwardAuth ?? []);
    expect(asking.map(({ address }) => address)).toEqual([
      "http://127.0.0.1:8080/v1/authorize",
      "http://127.0.0.1:8080/v1/authorize?scopes=write",
    ]);
    for (const { authResponseHeadersRegex, authRequestHeaders, address, ...more } of asking) {
      const pattern = new RegExp(authResponseHeadersRegex.replace("(?i)", ""), "i");
      expect(SPELLINGS.filter((name) => !pattern.test(name))).toEqual([]);
      expect(authRequestHeaders).toEqual(["Authorization", "X-Api-Key", "X-Latchkey-Gateway-Token"]);
      expect(more).toEqual({ trustForwardHeader: false, maxResponseBodySize: 65_536 });
    }
  });
});

test("Istio: every request to the workload is put to a provider that fails closed, and does not wait for ten minutes", () => {
  interface Mesh {
    meshConfig: { extensionProviders: { name: string; envoyExtAuthzGrpc: object }[] };
  }
  interface Policy {
    selector: object;
    action: string;
    provider?: { name: string };
    rules: object[];
  }
  const [mesh, asked, admin] = documents<Resource<Mesh & Policy>>("istio.yaml");
  const [provider, ...others] = mesh!.spec.meshConfig.extensionProviders;
  expect(others).toEqual([]);
  expect(provider!.envoyExtAuthzGrpc).toEqual({
    ...{ service: "latchkey.latchkey.svc.cluster.local", port: 8080 },
    ...{ timeout: "0.5s", failOpen: false, statusOnError: "503" },
  });
  expect(asked!.spec).toEqual({
    ...{ selector: { matchLabels: { app: "app" } }, action: "CUSTOM" },
    ...{ provider: { name: provider!.name }, rules: [{}] },
  });
  expect(admin).toMatchObject({
    kind: "AuthorizationPolicy",
    spec: { action: "DENY", selector: asked!.spec.selector },
  });
});

test("Gateway API: every route has a policy of its own that asks Latchkey and fails closed", () => {
  interface Spec {
    targetRefs: { kind: string; name: string }[];
    extAuth: { contextExtensions?: object[]; grpc: object };
  }
  const all = documents<Resource<Spec>>("gateway-api.yaml");
  const named = (kind: string) => all.filter((each) => each.kind === kind);
  const policies = named("SecurityPolicy");
  expect(policies.map(({ spec }) => spec.targetRefs.map(({ name }) => name))).toEqual(
    named("HTTPRoute").map(({ metadata }) => [metadata.name]),
  );
  for (const { spec } of policies) {
    const { contextExtensions, ...extAuth } = spec.extAuth;
    expect(extAuth).toEqual({
      // No headersToExtAuth: Check must be told of every header to have forged ones removed.
      ...{ failOpen: false, timeout: "500ms", statusOnError: 503 },
      grpc: { backendRefs: [{ name: "latchkey", port: 8080 }] },
    });
    expect(contextExtensions ?? []).toEqual(
      spec.targetRefs[0]!.name === "app-admin" ? [{ name: "latchkey-scopes", type: "Value", value: "write" }] : [],
    );
  }
  expect(named("ClientTrafficPolicy")).toHaveLength(1);
});

test("who asks by a shipped file is answered, the reason included, before the file's timeout: LATCHKEY_GATEWAY_TIMEOUT is less than each", () => {
  const { gatewayTimeoutMs } = readConfig({});
  // Of HAProxy's, the script's own time is only to lie above the section's.
  const sections = { ...haproxy, timeouts: haproxy.timeouts.slice(0, 1) };
  const all = [envoyGrpc, envoyHttp, nginx, caddy, sections, apache, springCloudGateway];
  for (const { name, files, timeouts } of all) {
    const text = readFileSync(join(FOLDER, files[0]), "utf8");
    const shipped = timeouts.flatMap(([pattern]) => text.match(pattern) ?? []);
    expect({ name, times: shipped.filter((line) => !/(^|\D)(500ms|0\.5s?)$/.test(line)) }).toEqual({ name, times: [] });
    expect(shipped.length).toBeGreaterThan(0);
  }
  expect(gatewayTimeoutMs).toBeLessThan(500);
});
