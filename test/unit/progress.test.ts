import { expect, test } from "@jest/globals";
import { showProgress } from "../../src/embedded/progress.ts";

const MIB = 1_048_576;

function shown({ isTTY }: { isTTY: boolean }) {
  const lines: string[] = [];
  const drawn: string[] = [];
  let nowMs = 0;
  const terminal = { isTTY, write: (text: string) => drawn.push(text) } as unknown as NodeJS.WriteStream;
  const progress = showProgress("Fetching", { say: (line) => lines.push(line), terminal }, () => nowMs);
  return {
    lines,
    drawn,
    at(ms: number, doneMib: number) {
      nowMs = ms;
      progress.update(doneMib * MIB, 40 * MIB);
    },
    end: () => progress.end(),
  };
}

test("on a terminal a bar is drawn over itself, with bytes, rate and time left, at most ten times a second", () => {
  const { at, end, drawn, lines } = shown({ isTTY: true });
  at(1_000, 10);
  at(1_050, 11);
  at(2_000, 20);
  at(2_010, 40);
  end();
  end();
  // What pip has written is looked at beside it, and may come late.
  at(3_000, 40);
  expect(drawn).toEqual([
    "\r\x1b[KFetching [######                  ] 10.0 of 40.0 MiB, 10.0 MiB/s, 3 s left",
    "\r\x1b[KFetching [############            ] 20.0 of 40.0 MiB, 10.0 MiB/s, 2 s left",
    "\r\x1b[KFetching [########################] 40.0 of 40.0 MiB, 19.9 MiB/s, 0 s left",
    "\n",
  ]);
  expect(lines).toEqual([]);
});

test("a bar's line is ended only where there is one", () => {
  const { end, drawn } = shown({ isTTY: true });
  end();
  expect(drawn).toEqual([]);
});

test("elsewhere a plain line is said at each tenth of the way, and no more", () => {
  const { at, end, drawn, lines } = shown({ isTTY: false });
  for (let mib = 0; mib <= 40; mib += 1) at(100 * mib, mib);
  end();
  expect(lines).toHaveLength(11);
  expect(lines[0]).toBe("Fetching: 0.0 of 40.0 MiB, 0.0 MiB/s");
  expect(lines[5]).toBe("Fetching: 20.0 of 40.0 MiB, 10.0 MiB/s, 2 s left");
  expect(drawn).toEqual([]);
});

test("a size that is not known is no reason to fail", () => {
  const lines: string[] = [];
  let nowMs = 0;
  const progress = showProgress("Fetching", { say: (line) => lines.push(line) }, () => nowMs);
  nowMs = 500;
  progress.update(MIB, 0);
  expect(lines).toEqual(["Fetching: 1.0 MiB, 2.0 MiB/s"]);
});
