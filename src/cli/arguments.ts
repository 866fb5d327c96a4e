import { InvalidArgumentError } from "commander";
import { parseDuration } from "../service/duration.ts";

/** In milliseconds. */
export function duration(text: string): number {
  const ms = parseDuration(text);
  if (ms === undefined) throw new InvalidArgumentError("It must be a number with a unit: 90s, 15m, 24h or 7d.");
  return ms;
}

export function wholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError("It must be a whole number.");
  return Number(text);
}

/** In Unix milliseconds. */
export function moment(text: string): number {
  const agoMs = parseDuration(text);
  const ms = agoMs === undefined ? Date.parse(text) : Date.now() - agoMs;
  if (Number.isNaN(ms)) throw new InvalidArgumentError("It must be a time, 2026-11-25T08:00Z, or a span, 24h.");
  return ms;
}
