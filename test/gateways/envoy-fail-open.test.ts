import { randomUUID } from "node:crypto";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "@jest/globals";
import { createAsker } from "./asker.ts";
import { envoyGrpc, type RunningGateway, startGateway } from "./gateways.ts";
import { expectedOf, MISSING, NOT_ADMITTED, passes, REVOKED, ROWS } from "./rows.ts";
import { createWorld, portOf, type World } from "./world.ts";

const binary = await envoyGrpc.find().catch((error: Error) => {
  process.stderr.write(`Envoy is not tested: ${error.message}\n`);
  return undefined;
});

/** The one word by which an operator chooses to serve requests that nobody vouches for. */
const failOpen = (text: string) => replaced(text, "failure_mode_allow: false", "failure_mode_allow: true");
/** All headers that a client sends are passed on to Check, joined by commas, and none is taken away before. */
const sayAll = (text: string) => {
  const all = replaced(text, /\n +# Latchkey is told no more[\s\S]*?x-api-key }/, "");
  const untouched = replaced(all, /\n +# What only Latchkey may say[\s\S]*?latchkey\.\*.*/, "");
  return replaced(untouched, /\n +# A header that was sent twice.*\n.*encode_raw_headers: true/, "");
};
/** The body as well, as far as it goes. */
const sayBodies = (text: string) =>
  replaced(
    text,
    /( +)failure_mode_allow/,
    "$1with_request_body: { max_request_bytes: 2000000, allow_partial_message: true }\n$1failure_mode_allow",
  );

function replaced(text: string, what: string | RegExp, by: string): string {
  const changed = text.replace(what, by);
  if (changed === text) throw new Error(`there is no ${what}`);
  return changed;
}

(binary === undefined ? describe.skip : describe)("Envoy", () => {
  let world: World;
  const gateways: RunningGateway[] = [];
  const ask = createAsker(() => world);
  const start = async (latchkey: number, change: (text: string) => string) => {
    const started = await startGateway(envoyGrpc, binary!, { latchkey, upstream: world.upstream.port }, change);
    gateways.push(started);
    return started;
  };

  beforeAll(async () => {
    world = await createWorld(`gateways-${randomUUID()}`);
  }, 60_000);
  afterEach(() => {
    world.wire.set({});
    world.database.set({});
  });
  afterAll(async () => {
    await Promise.all(gateways.map((each) => each.stop()));
    await world.stop();
  }, 60_000);

  test("that fails open lets a request pass that Latchkey can't be asked about, as nobody's and with its credential", async () => {
    const open = await start(world.wire.port, failOpen);
    const forged: [string, string][] = [
      ["x-latchkey-user", "mallory"],
      ["X_Latchkey_User", "mallory"],
    ];
    const known: [string, string] = ["authorization", `Bearer ${world.keys.alice}`];
    expect(await ask(open, { headers: [known] }, true)).toEqual(passes("alice"));
    world.wire.set({ cut: true });
    const found = await ask(open, { headers: [...forged, known] }, true);
    expect(found).toMatchObject({ status: 200, told: [known] });
  }, 60_000);

  test("that fails open lets a request pass in an outage that Latchkey tells of", async () => {
    const open = await start(world.wire.port, failOpen);
    const unseen = await world.newKey("grace");
    world.database.set({ cut: true });
    const found = await ask(open, { headers: [["x-api-key", unseen]] }, true);
    expect(found).toMatchObject({ status: 200, told: [["x-api-key", unseen]] });
    expect(await ask(open, {}, false)).toEqual(MISSING);
  }, 60_000);

  test("that fails open refuses every bad key all the same, and whom Latchkey does not admit", async () => {
    const open = await start(world.wire.port, failOpen);
    for (const row of ROWS.filter(({ expected }) => expected.told === undefined)) {
      const { told, status } = await ask(open, row.ask(world.keys), false);
      expect({ row: row.name, told, status }).toEqual({
        row: row.name,
        told: undefined,
        status: expectedOf(row, envoyGrpc.name).status,
      });
    }
    const stranger = await start(portOf(world.strict), failOpen);
    expect(await ask(stranger, { headers: [["x-api-key", world.keys.alice]] }, false)).toEqual(NOT_ADMITTED);
    expect(world.upstream.unproven).toEqual([]);
  }, 60_000);

  test("that fails open is not opened by what a client sends: large, many or odd headers and bodies", async () => {
    const open = await start(world.wire.port, (text) => failOpen(sayBodies(sayAll(text))));
    const bad: [string, string] = ["x-api-key", world.keys.revoked];
    const large = (bytes: number): [string, string] => ["x-large", "x".repeat(bytes)];
    const odd = { headers: [["x-odd", "\xff\xfe\xc3("], bad] as [string, string][] };
    expect(await ask(open, odd, false)).toEqual(REVOKED);
    for (const request of [
      { headers: [large(30_000), bad] },
      { headers: [large(40_000), bad] },
      { headers: [large(55_000), bad] },
      { headers: [large(55_000)] },
      { path: `/${"x".repeat(50_000)}`, headers: [bad] },
      { path: "/%ff%fe?%c3(=\xff", headers: [bad] },
      { headers: [...Array.from({ length: 90 }, (_, at): [string, string] => [`x-${at}`, "\x80".repeat(100)]), bad] },
      { headers: [["x-api-key", `${world.keys.alice}\xff`]] },
      { method: "POST", headers: [bad], body: Buffer.alloc(20_000, 0xff) },
      { method: "POST", headers: [bad], body: Buffer.alloc(1_900_000, 0xff) },
      { method: "POST", headers: [bad], body: Buffer.alloc(10_000_000, 0xff) },
      { method: "POST", headers: [], body: Buffer.alloc(10_000_000, "a") },
    ] as { headers: [string, string][] }[]) {
      const { told, status } = await ask(open, request, false);
      expect({ told, refused: status >= 400 }).toEqual({ told: undefined, refused: true });
    }
    expect(world.upstream.unproven).toEqual([]);
  }, 60_000);

  test("that says all to Check, and takes nothing away itself, passes on no forged header and no credential", async () => {
    const bare = await start(world.wire.port, sayAll);
    for (const row of ROWS.filter(({ name }) => /forged|good key|names its own/.test(name))) {
      const found = await ask(bare, row.ask(world.keys), row.expected.told !== undefined);
      expect({ row: row.name, ...found }).toEqual({ row: row.name, ...expectedOf(row, envoyGrpc.name) });
    }
  }, 60_000);
});
