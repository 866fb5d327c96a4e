import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, expect, test } from "@jest/globals";
import { ATTACKS } from "./attacks.ts";
import { measure } from "./measure.ts";
import { trimmed, welch } from "./timing.ts";
import { startWorld, type World } from "./world.ts";

// A moment of each attack of `npm run attacks`.

const MOMENT_MS = 250;
const SIZE = { connections: 50, idle: 300 };
const MAX_GROWTH_BYTES = 200 * 1024 * 1024;

let world: World;
beforeAll(async () => {
  world = await startWorld("dist/src/cli/main.js", {
    MONGODB_URI: process.env.TEST_MONGODB_URI!,
    MONGODB_DATABASE: `test-${randomUUID()}`,
  });
});
afterAll(() => world.stop());

test.each(ATTACKS.map((attack) => [attack.name, attack] as const))(
  "%s: good calls are answered, the memory is bounded, and the process lives",
  async (_name, attack) => {
    const { good, alive, fault, peakBytes, beforeBytes } = await measure(world, attack, SIZE, MOMENT_MS);
    expect({ alive, fault, failed: good.failed }).toEqual({ alive: true, fault: undefined, failed: 0 });
    expect(good.perSecond).toBeGreaterThan(0);
    expect(peakBytes - beforeBytes).toBeLessThan(MAX_GROWTH_BYTES);
  },
);

test("Welch's t is near nothing for samples of one kind, and large for samples that differ", () => {
  const noise = (from: number) => Array.from({ length: 2_000 }, (_, index) => from + ((index * 7_919) % 101));
  const [a, b] = trimmed([noise(100), noise(100)]);
  expect(Math.abs(welch(a!, b!))).toBeLessThan(1);
  expect(Math.abs(welch(noise(100), noise(110)))).toBeGreaterThan(4.5);
});
