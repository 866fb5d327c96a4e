// How protobuf writes fields, for the messages that are encoded by hand. Text that is built piece by piece has one character a byte.

export const VARINT = 0;
export const LENGTH_DELIMITED = 2;

/** A field's number (below 16) and wire type, as they stand before its value. */
export function tag(field: number, type: number): number {
  return (field << 3) | type;
}

/** A whole number of up to 53 bits, one character a byte. */
export function varint(value: number): string {
  if (value < 0x80) return String.fromCharCode(value);
  let bytes = "";
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return bytes + String.fromCharCode(rest);
    bytes += String.fromCharCode((rest % 128) | 0x80);
  }
}

/** A length-delimited field, one character a byte. */
export function delimited(field: number, content: string): string {
  return String.fromCharCode(tag(field, LENGTH_DELIMITED)) + varint(content.length) + content;
}

/** Bytes of a whole number below 2^28. */
function sizeOfVarint(value: number): number {
  return value < 0x80 ? 1 : value < 0x4000 ? 2 : value < 0x200000 ? 3 : 4;
}

/** Of a length-delimited field with a number below 16. */
export function sizeOfField(size: number): number {
  return 1 + sizeOfVarint(size) + size;
}

/** Returns where it ends. */
export function writeVarint(target: Buffer, start: number, value: number): number {
  let at = start;
  for (let rest = value; ; rest >>>= 7) {
    if (rest < 0x80) {
      target[at] = rest;
      return at + 1;
    }
    target[at++] = (rest & 0x7f) | 0x80;
  }
}

/** A length-delimited field of text with one character a byte, after its `tag`. Returns where it ends. */
export function writeText(target: Buffer, start: number, fieldTag: number, text: string): number {
  target[start] = fieldTag;
  const at = writeVarint(target, start + 1, text.length);
  return at + target.write(text, at, "latin1");
}
