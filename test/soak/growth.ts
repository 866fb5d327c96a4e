import { type Census, IN_ALL } from "./census.ts";

/** Of what is counted in all, more than these are a leak; fewer may be a heartbeat, or code that ran for the first time. */
const LEFT = 200;
const LEFT_BY_A_CALL = 0.01;
/** Arrays are grown and cut by whoever uses them, the driver's lists above all. */
const ELEMENTS_LEFT = 1_000;

/** What is held in all of them: what is under way for a moment is in some only. */
export function leastOf(censuses: readonly Census[]): Census["counts"] {
  const names = Object.keys(Object.assign({}, ...censuses.map(({ counts }) => counts)));
  return Object.fromEntries(names.map((name) => [name, Math.min(...censuses.map(({ counts }) => counts[name] ?? 0))]));
}

/** What there is more of than there was `calls` calls before. */
export function grown(before: Census["counts"], now: Census["counts"], calls: number): string[] {
  const allowed = (name: string) => {
    if (!IN_ALL.has(name)) return 0;
    return (name === "elements of arrays" ? ELEMENTS_LEFT : LEFT) + calls * LEFT_BY_A_CALL;
  };
  return Object.keys(now)
    .filter((name) => now[name]! - (before[name] ?? 0) > allowed(name))
    .map((name) => `${name}: ${before[name] ?? 0}, now ${now[name]}`);
}
