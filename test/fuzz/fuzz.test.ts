import { afterAll, expect, test } from "@jest/globals";
import { type FuzzTarget, fuzz } from "./fuzz.ts";
import { createRandom } from "./random.ts";
import { codecs } from "./targets/codecs.ts";
import { connections } from "./targets/connections.ts";

// Seconds of what `npm run fuzz` does for minutes, with one seed, so that what fails once can be played again.

const seed = Number(process.env.FUZZ_SEED ?? 20_261_125);
const RUNS = { codecs: 2_000, connections: 120 };

afterAll(async () => {
  for (const target of connections) await target.stop?.();
});

const outcomeOf = async (target: FuzzTarget, runs: number) => {
  const outcome = await fuzz(target, { seed, goOn: (done) => done < runs });
  return typeof outcome === "number" ? "held" : `${String(outcome.error)} for ${outcome.file}, seed ${seed}`;
};

test.each(codecs.map((target) => [target.name, target] as const))(
  "whatever is changed of it, %s is read as it must be",
  async (_name, target) => {
    expect(await outcomeOf(target, RUNS.codecs)).toBe("held");
  },
);

test.each(connections.map((target) => [target.name, target] as const))(
  "whatever is sent over %s, connections end, answers are their own calls', and others are served",
  async (_name, target) => {
    expect(await outcomeOf(target, RUNS.connections)).toBe("held");
  },
  60_000,
);

test("a failure is found, made small, and told with its input", async () => {
  const target: FuzzTarget = {
    name: "planted",
    seeds: [Buffer.from("a longer text, and nothing is wrong with it")],
    run: (input) => {
      if (input.includes("%")) throw new Error("planted");
    },
  };
  const found = await fuzz(target, { seed: 1, goOn: (runs) => runs < 5_000, keep: (_, input) => input.toString() });
  expect(found).toMatchObject({ error: new Error("planted"), file: "%" });
});

test("the same seed makes the same inputs", async () => {
  const inputsOf = async (of: number) => {
    const inputs: string[] = [];
    const target: FuzzTarget = {
      name: "noted",
      seeds: [Buffer.from("seed")],
      run: (input) => void inputs.push(input.toString("hex")),
    };
    await fuzz(target, { seed: of, goOn: (runs) => runs < 50 });
    return inputs;
  };
  expect(await inputsOf(7)).toEqual(await inputsOf(7));
  expect(await inputsOf(7)).not.toEqual(await inputsOf(8));
  expect(createRandom(1)()).toBe(createRandom(1)());
});
