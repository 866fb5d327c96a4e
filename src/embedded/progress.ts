export interface ProgressOutput {
  /** Takes a plain line. */
  say: (line: string) => void;
  /** Set: a bar is drawn there and redrawn in place. */
  terminal?: NodeJS.WriteStream | undefined;
}

export interface Progress {
  update(doneBytes: number, totalBytes: number): void;
  /** Ends the bar's line, if one was drawn, so that what is said next has a line of its own. Nothing is drawn after it. */
  end(): void;
}

const REDRAW_MS = 100;
const LINE_EVERY = 0.1;
const BAR_WIDTH = 24;

/** Shows how a download goes: bytes, rate and time left. A bar on a terminal; elsewhere a line at every tenth of the way. */
export function showProgress(
  what: string,
  { say, terminal }: ProgressOutput,
  clockMs = () => performance.now(),
): Progress {
  const startedMs = clockMs();
  let drawnMs = Number.NEGATIVE_INFINITY;
  let nextLine = 0;
  let ended = false;
  return {
    update(doneBytes, totalBytes) {
      if (ended) return;
      const share = totalBytes > 0 ? Math.min(doneBytes / totalBytes, 1) : 0;
      const text = describe(doneBytes, totalBytes, clockMs() - startedMs);
      if (terminal?.isTTY) {
        if (clockMs() - drawnMs < REDRAW_MS && share < 1) return;
        drawnMs = clockMs();
        const filled = Math.round(share * BAR_WIDTH);
        terminal.write(`\r\x1b[K${what} [${"#".repeat(filled)}${" ".repeat(BAR_WIDTH - filled)}] ${text}`);
      } else if (share >= nextLine) {
        nextLine = (Math.floor(share / LINE_EVERY) + 1) * LINE_EVERY;
        say(`${what}: ${text}`);
      }
    },
    end() {
      if (terminal?.isTTY && !ended && drawnMs !== Number.NEGATIVE_INFINITY) terminal.write("\n");
      ended = true;
    },
  };
}

function describe(doneBytes: number, totalBytes: number, elapsedMs: number): string {
  const mib = (bytes: number) => (bytes / 1_048_576).toFixed(1);
  const perSecond = elapsedMs > 0 ? (doneBytes / elapsedMs) * 1_000 : 0;
  const ofTotal = totalBytes > 0 ? ` of ${mib(totalBytes)}` : "";
  const left = totalBytes > 0 && perSecond > 0 ? `, ${Math.ceil((totalBytes - doneBytes) / perSecond)} s left` : "";
  return `${mib(doneBytes)}${ofTotal} MiB, ${mib(perSecond)} MiB/s${left}`;
}
