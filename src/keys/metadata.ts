import type { FieldViolation } from "./errors.ts";
import { textFaults } from "./policy.ts";
import { MAX_METADATA_ENTRIES } from "./record.ts";

// Metadata of a key: names and values that its admins set. An entry is kept as one text, `name=value`, so that a key is found by an
// entry in one index, in the order of ids. No name holds a `=`.

const NAME = /^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$/;
const NAME_RULE = "must have 1 to 64 of the characters a-z 0-9 - and begin and end with a letter or digit";
/** For what the service may say of a key one day. */
const RESERVED = "latchkey";
const MAX_VALUE = 256;
/** Names and values of a key together, in UTF-8. */
const MAX_BYTES = 2_048;

export function isMetadataName(name: string): boolean {
  return NAME.test(name) && !name.startsWith(RESERVED);
}

/** Entries as they are stored, sorted. */
export function toMetadata(map: Readonly<Record<string, string>>): string[] {
  return Object.entries(map)
    .map(([name, value]) => `${name}=${value}`)
    .sort();
}

export function metadataName(entry: string): string {
  return entry.slice(0, entry.indexOf("="));
}

export function fromMetadata(entries: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    entries.map((entry) => {
      const name = metadataName(entry);
      return [name, entry.slice(name.length + 1)];
    }),
  );
}

/** Tells what is wrong with single entries. */
export function checkMetadata(map: Readonly<Record<string, string>>, violations: FieldViolation[]): void {
  // Of far too many, the size is what is wrong.
  for (const [name, value] of Object.entries(map).slice(0, 2 * MAX_METADATA_ENTRIES)) {
    const report = (description: string) => violations.push({ field: `metadata.${name.slice(0, 64)}`, description });
    if (!NAME.test(name)) report(`the name ${NAME_RULE}`);
    else if (name.startsWith(RESERVED)) report(`names that begin with "${RESERVED}" are reserved`);
    for (const fault of textFaults(value, MAX_VALUE)) report(fault);
  }
}

/** Tells whether there is too much of it. */
export function checkMetadataSize(entries: readonly string[], violations: FieldViolation[]): void {
  const report = (description: string) => violations.push({ field: "metadata", description });
  if (entries.length > MAX_METADATA_ENTRIES)
    report(`must have at most ${MAX_METADATA_ENTRIES} entries, and has ${entries.length}`);
  const bytes = entries.reduce((sum, entry) => sum + Buffer.byteLength(entry) - 1, 0);
  if (bytes > MAX_BYTES) report(`must have at most ${MAX_BYTES} bytes, names and values together, and has ${bytes}`);
}
