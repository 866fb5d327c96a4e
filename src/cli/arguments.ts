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

/** `before`: what was read of the option's values before this one. */
export function metadata(text: string, before: Record<string, string> = {}): Record<string, string> {
  const equals = text.indexOf("=");
  if (equals < 1) throw new InvalidArgumentError("It must be NAME=VALUE.");
  const name = text.slice(0, equals);
  if (Object.hasOwn(before, name)) throw new InvalidArgumentError(`There is a value for ${name} already.`);
  return { ...before, [name]: text.slice(equals + 1) };
}

/** In Unix milliseconds. */
export function moment(text: string): number {
  const agoMs = parseDuration(text);
  const ms = agoMs === undefined ? Date.parse(text) : Date.now() - agoMs;
  if (Number.isNaN(ms)) throw new InvalidArgumentError("It must be a time, 2026-11-25T08:00Z, or a span, 24h.");
  return ms;
}
