import { createInterface } from "node:readline";

export interface ProgramOptions {
  inFlight: number;
}

/**
 * Says that it is ready; then, for each line `{"seconds":n}` on standard input, keeps `inFlight` calls of `once` going for
 * that long, and says how many ended. Ends with its standard input.
 */
export async function measureOnDemand({ inFlight }: ProgramOptions, once: () => Promise<unknown>): Promise<void> {
  say({ event: "ready" });
  for await (const line of createInterface({ input: process.stdin })) {
    let ended = false;
    let answers = 0;
    const startedMs = performance.now();
    say({ event: "start" });
    const all = Promise.all(
      Array.from({ length: inFlight }, async () => {
        for (; !ended; answers += 1) await once();
      }),
    );
    await new Promise((resolve) => setTimeout(resolve, JSON.parse(line).seconds * 1_000));
    const result = { answers, seconds: (performance.now() - startedMs) / 1_000 };
    say({ event: "end" });
    ended = true;
    await all;
    say({ event: "result", ...result });
  }
}

function say(event: object): void {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}
