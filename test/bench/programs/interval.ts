/** What a program that is measured on its own is told, as JSON in its first argument. */
export interface ProgramOptions {
  warmUpSeconds: number;
  seconds: number;
  inFlight: number;
}

/** Keeps `inFlight` calls of `once` going, and prints how many ended in the measured time. */
export async function measureCalls(
  { warmUpSeconds, seconds, inFlight }: ProgramOptions,
  once: () => Promise<unknown>,
): Promise<void> {
  let ended = false;
  let answers = 0;
  const all = Promise.all(
    Array.from({ length: inFlight }, async () => {
      for (; !ended; answers += 1) await once();
    }),
  );
  await sleep(warmUpSeconds);
  say({ event: "start" });
  const before = answers;
  const startedMs = performance.now();
  await sleep(seconds);
  const result = { answers: answers - before, seconds: (performance.now() - startedMs) / 1_000 };
  say({ event: "end" });
  ended = true;
  await all;
  say({ event: "result", ...result });
}

function sleep(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1_000));
}

function say(event: object): void {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}
