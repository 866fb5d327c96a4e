/** A reason not to start: one sentence for people, with what to do. Printed without a stack trace; exit code 1. */
export class StartupError extends Error {
  override readonly name = "StartupError";
}
