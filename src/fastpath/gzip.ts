import { crc32, inflateRawSync } from "node:zlib";

/**
 * Bytes of a message that is inflated here. It is done at once: a thread of the pool is slower for what is small, and this much
 * takes no longer than a few calls. What is larger is left to Node's own servers, which inflate elsewhere.
 */
const MAX_INFLATED_BYTES = 64 * 1024;

const HEAD_BYTES = 10;
/** CRC-32 and size, modulo 2³². */
const TAIL_BYTES = 8;
/** The magic number, deflate, and none of the flags that add fields. */
const PLAIN_HEAD = Buffer.of(0x1f, 0x8b, 8, 0);

/** Contents of one plain gzip member of at most `maxBytes` inflated; undefined for all else. */
export function gunzipped(bytes: Buffer, maxBytes: number): Buffer | undefined {
  const tailAt = bytes.length - TAIL_BYTES;
  if (tailAt <= HEAD_BYTES || !bytes.subarray(0, PLAIN_HEAD.length).equals(PLAIN_HEAD)) return undefined;
  const size = bytes.readUInt32LE(tailAt + 4);
  if (size === 0 || size > Math.min(maxBytes, MAX_INFLATED_BYTES)) return undefined;
  try {
    // Room for one byte more than there should be: else zlib asks whether there are more.
    const options = { info: true, maxOutputLength: size, chunkSize: Math.max(size + 1, MIN_CHUNK_BYTES) } as const;
    const { buffer, engine } = inflateRawSync(bytes.subarray(HEAD_BYTES, tailAt), options) as unknown as Inflated;
    const isWhole = buffer.length === size && engine.bytesWritten === tailAt - HEAD_BYTES;
    return isWhole && crc32(buffer) === bytes.readUInt32LE(tailAt) ? buffer : undefined;
  } catch {
    return undefined;
  }
}

/** As `info: true` gives it. */
interface Inflated {
  buffer: Buffer;
  /** `bytesWritten`: of what was given, those that were a part of it. */
  engine: { bytesWritten: number };
}

/** Of zlib. */
const MIN_CHUNK_BYTES = 64;
