const LANES = 30;
const CALLS = 300;

export function print(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

/** The last two lines of a program in JavaScript. `call` never rejects: "answered", "refused", or what it ended with. Ends the process. */
export async function load(call) {
  const counts = { answered: 0, refused: 0, failed: {} };
  let end = Number.POSITIVE_INFINITY;
  let isLoaded = false;
  process.stdin.once("data", () => {
    end = counts.answered + CALLS;
  });
  const lane = async () => {
    while (counts.answered < end) {
      const ended = await call();
      if (ended === "answered" || ended === "refused") counts[ended] += 1;
      else counts.failed[ended] = (counts.failed[ended] ?? 0) + 1;
      if (!isLoaded && counts.answered >= CALLS) {
        isLoaded = true;
        print({ loaded: true });
      }
    }
  };
  await Promise.all(Array.from({ length: LANES }, lane));
  print(counts);
  process.exit();
}
