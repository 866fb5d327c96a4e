import { spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { endAfterTest } from "./process.ts";

export interface Terminal {
  /** All that was written to it, without colours. */
  screen(): string;
  /** Waits until something stands there. Fails when the command ends before. */
  until(shown: RegExp): Promise<void>;
  pressCtrlC(): void;
  /** The command's exit code. */
  readonly ended: Promise<number | null>;
}

/** Runs a command line in a terminal of its own, as a person does. It is hung up after the test. */
export function inTerminal(command: string, cwd: string, env: Record<string, string>): Terminal {
  const child = spawn("script", ["-qefc", command, "/dev/null"], {
    cwd,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, TERM: "xterm", SHELL: "/bin/bash", ...env },
    stdio: ["pipe", "pipe", "inherit"],
  });
  endAfterTest(child);
  let text = "";
  child.stdout.on("data", (chunk) => {
    text += chunk;
  });
  // biome-ignore lint/suspicious/noControlCharactersInRegex: that is how a terminal is spoken to.
  const screen = () => text.replace(/\x1b\[[\d;]*[A-Za-z]/g, "").replaceAll("\r", "");
  return {
    screen,
    async until(shown) {
      while (!shown.test(screen())) {
        if (child.exitCode !== null) throw new Error(`it ended: ${screen()}`);
        await sleep(20);
      }
    },
    pressCtrlC: () => void child.stdin.write("\x03"),
    ended: once(child, "close").then(([code]) => code as number | null),
  };
}
