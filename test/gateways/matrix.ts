import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "@jest/globals";
import { freePort } from "../support/replica-set.ts";
import { SERVICE_TOKEN } from "../support/service.ts";
import { createAsker, type Request } from "./asker.ts";
import type { Ask } from "./client.ts";
import {
  type Addresses,
  caddy,
  envoyGrpc,
  envoyHttp,
  findGateway,
  type Gateway,
  nginx,
  type RunningGateway,
  springCloudGateway,
  startGateway,
  traefik,
  versionOf,
} from "./gateways.ts";
import { recordColumn } from "./results.ts";
import {
  ALICE,
  expectedOf,
  MISSING,
  NO_DATABASE,
  NOT_ADMITTED,
  OVERLOADED,
  passes,
  ROWS,
  type Seen,
  unasked,
  whoIs,
} from "./rows.ts";
import { createWorld, portOf, type World } from "./world.ts";

/** Everything that is asked of one gateway. Where it can't be had, one line says so. */
export async function matrixOf(gateway: Gateway): Promise<void> {
  const binary = await findGateway(gateway).catch((error: Error) => {
    process.stderr.write(`${gateway.name} is not tested: ${error.message}\n`);
    return undefined;
  });
  if (binary === undefined) {
    test.skip(`${gateway.name} can't be had here`, () => {});
    return;
  }
  const release = await versionOf(gateway, binary);
  describe(gateway.name, () => {
    let world: World;
    const gateways: RunningGateway[] = [];
    let running: RunningGateway;
    const seen = new Map<string, string>();

    const start = async (addresses: Partial<Addresses> = {}, change?: (text: string) => string) => {
      const all = { latchkey: world.wire.port, upstream: world.upstream.port, ...addresses };
      const started = await startGateway(gateway, binary, all, change);
      gateways.push(started);
      return started;
    };
    const withToken = (text: string) => gateway.withToken(text, SERVICE_TOKEN);

    beforeAll(async () => {
      world = await createWorld(`gateways-${randomUUID()}`);
      running = await start();
    }, 300_000);
    afterAll(async () => {
      await Promise.all(gateways.map((each) => each.stop()));
      await world?.stop();
    }, 300_000);

    const asker = createAsker(() => world);
    const ask = (request: Request, mayPass: boolean, by = running) => asker(by, request, mayPass);
    /** A 503 of Latchkey's, as the gateway passes it on. */
    const fault = (answer: Seen) => (gateway === envoyHttp ? unasked[gateway.name]! : answer);
    const note = (row: string, found: Seen) => void seen.set(row, cellOf(found));
    const until = async (wanted: Seen, request: Ask, by = running) => {
      for (;;) {
        if ((await ask(request, true, by)).status === wanted.status) return;
        await sleep(50);
      }
    };

    test.each(ROWS.map((row) => [row.name, row] as const))("%s", async (name, row) => {
      if (name.includes("one second ago")) await sleep(Math.max(0, world.revokedAtMs + 1_000 - Date.now()));
      const expected = expectedOf(row, gateway.name, release);
      const found = await ask(row.ask(world.keys), expected.told !== undefined);
      note(name, found);
      expect(found).toEqual(expected);
    });

    const alices = (): Ask => ({ headers: [["authorization", `Bearer ${world.keys.alice}`]] });

    test("MongoDB stopped: a key seen before holds for the outage's grace, another is told so, and all is well after", async () => {
      const unseen = await world.newKey("erin");
      world.database.set({ cut: true });
      const known = await ask(alices(), true);
      const unknown = await ask({ headers: [["x-api-key", unseen]] }, false);
      world.database.set({});
      note("MongoDB stopped, key seen before", known);
      note("MongoDB stopped, key not seen", unknown);
      expect(known).toEqual(passes(ALICE));
      expect(unknown).toEqual(fault(NO_DATABASE));
      await until(passes(ALICE), { headers: [["x-api-key", unseen]] });
    }, 120_000);

    test("a gateway that Latchkey does not know is told nothing of keys, and one that proves itself is", async () => {
      const [stranger, known] = [
        await start({ latchkey: portOf(world.strict) }),
        await start({ latchkey: portOf(world.strict) }, withToken),
      ];
      const refused = await ask(
        { ...alices(), headers: [...alices().headers!, ["x-latchkey-gateway-token", SERVICE_TOKEN]] },
        false,
        stranger,
      );
      const admitted = await ask(alices(), true, known);
      note("gateway without its token", refused);
      note("gateway with its token", admitted);
      expect(refused).toEqual(fault(NOT_ADMITTED));
      expect(admitted).toEqual(passes(ALICE));
    }, 120_000);

    test("a key in the query is found where that is allowed, and taken out where the gateway can do so", async () => {
      const known = await start({ latchkey: portOf(world.strict) }, withToken);
      const mark = randomUUID();
      const key = `api_key=${world.keys.alice}`;
      const found = await ask({ mark, path: `/x?a=1&${key}&b=2` }, true, known);
      const missed = await ask({ path: `/x?a=1&${key}` }, false);
      note("a key in the query, allowed", found);
      note("a key in the query, not allowed", missed);
      expect(found).toEqual(passes(ALICE));
      expect(missed).toEqual(MISSING);
      const path = gateway === envoyGrpc ? "/x?a=1&b=2" : `/x?a=1&${key}&b=2`;
      expect(world.upstream.arrivals(mark)).toMatchObject([{ path }]);
    }, 120_000);

    test("an application that is gone is not taken for a Latchkey that is", async () => {
      const started = await start({ upstream: await freePort() });
      const found = await ask(alices(), true, started);
      note("application stopped", found);
      expect(found).toMatchObject({ status: withoutApplication(gateway), told: undefined });
      expect(found.body).not.toHaveProperty("reason");
    }, 120_000);

    test("a key in the query is looked for in the URL that the gateway saw, not where a client says another", async () => {
      const known = await start({ latchkey: portOf(world.strict) }, withToken);
      const elsewhere = ["x-forwarded-uri", "x-original-uri", "x-original-url", "x-envoy-original-path"].map(
        (name): [string, string] => [name, `/?api_key=${world.keys.alice}`],
      );
      const found = await ask({ headers: elsewhere }, false, known);
      note("a key in headers that tell of a URL", found);
      expect(found).toEqual(MISSING);
    }, 120_000);

    test("overload is told as such", async () => {
      const known = await start({ latchkey: portOf(world.strict) }, withToken);
      const keys: string[] = [];
      for (let index = 0; index < 8; index += 1) keys.push(await world.newKey(`frank ${index}`));
      const found = await Promise.all(keys.map((key) => ask({ headers: [["x-api-key", key]] }, true, known)));
      const overloaded = found.filter(({ status }) => status !== 200);
      expect(overloaded.length).toBeGreaterThan(0);
      for (const each of overloaded) expect(each).toEqual(OVERLOADED);
      note("too many keys to hash", overloaded[0]!);
    }, 120_000);

    test("a Latchkey that is slower than the gateway's timeout lets nothing through, and all is well after", async () => {
      const shipped = await start({ asShipped: true });
      world.wire.set({ blackHole: "toClient" });
      const found = await ask(alices(), false, shipped);
      world.wire.set({});
      note("Latchkey slower than the timeout", found);
      expect(found).toEqual(unasked[gateway.name]);
      await until(passes(ALICE), alices(), shipped);
    }, 120_000);

    const twoKnown = gateway.withSecond === undefined ? test.skip : test;
    if (gateway.withSecond === undefined) process.stderr.write(`${gateway.name} knows of no second Latchkey.\n`);
    twoKnown(
      "a Latchkey that drains while requests run fails none of them: another is asked",
      async () => {
        const either = await start({ second: portOf(world.second) });
        const counts = new Map<string, number>();
        const { child } = world.latchkey;
        let stopping = false;
        const one = async () => {
          while (!stopping) {
            const cell = cellOf(await ask(alices(), true, either));
            counts.set(cell, (counts.get(cell) ?? 0) + 1);
          }
        };
        const clients = Array.from({ length: 4 }, one);
        const exited = once(child, "exit");
        const answered = () => [...counts.values()].reduce((sum, count) => sum + count, 0);
        while (answered() < 20) await sleep(10);
        child.kill("SIGTERM");
        await exited;
        const then = answered();
        while (answered() < then + 40) await sleep(10);
        stopping = true;
        await Promise.all(clients);
        seen.set("Latchkey drains, another is there", counts.size === 1 ? cellOf(passes(ALICE)) : "some fail");
        expect([...counts.keys()]).toEqual([cellOf(passes(ALICE))]);
      },
      120_000,
    );

    test("a Latchkey that is gone lets nothing through", async () => {
      const shipped = await start({ asShipped: true });
      world.wire.set({ cut: true });
      const found = await ask(alices(), false, shipped);
      note("Latchkey stopped", found);
      expect(found).toEqual(unasked[gateway.name]);
    }, 120_000);

    test("a Latchkey whose port is refused is told as one that is gone", async () => {
      const without = await start({ latchkey: await freePort(), asShipped: true });
      const found = await ask(alices(), false, without);
      note("Latchkey's port refused", found);
      expect(found).toEqual(unasked[gateway.name]);
    }, 120_000);

    test("nothing reached the application without a proven key", () => {
      expect(world.upstream.unproven).toEqual([]);
    });

    test("the table in deploy/gateways/README.md has what was seen here", () => recordColumn(gateway, release, seen));
  });
}

function withoutApplication(gateway: Gateway): number {
  if (gateway === springCloudGateway) return 500;
  return [nginx, caddy, traefik].includes(gateway) ? 502 : 503;
}

/** A cell of the table. */
function cellOf({ status, body, told }: Seen): string {
  if (told === undefined) {
    const { reason } = body as { reason?: string };
    return reason === undefined ? String(status) : `${status} \`${reason}\``;
  }
  const user = whoIs(told.find(([name]) => name === "x-latchkey-user")?.[1] ?? "nobody");
  const strays = told.filter(([name]) => /^x.latchkey/.test(name) && !IDENTITY.includes(name));
  return [`${status} → ${user}`, ...strays.map(([name]) => `and \`${name}\``)].join(" ");
}

const IDENTITY = ["x-latchkey-user", "x-latchkey-key-id", "x-latchkey-scopes", "x-latchkey-name"];
