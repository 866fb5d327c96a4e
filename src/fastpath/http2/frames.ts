// HTTP/2's frames, RFC 9113.

export const PREFACE: Buffer = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");

export const FRAME_HEAD_BYTES = 9;
/** The frame size that either end must take without having said anything, and all that is asked for here. */
export const MAX_FRAME_BYTES = 16_384;
export const DEFAULT_WINDOW_BYTES = 65_535;
/** Of a header table. */
export const DEFAULT_TABLE_BYTES = 4_096;
export const MAX_WINDOW_BYTES = 2 ** 31 - 1;
export const MAX_STREAM_ID = 2 ** 31 - 1;

export const Type = {
  DATA: 0,
  HEADERS: 1,
  PRIORITY: 2,
  RST_STREAM: 3,
  SETTINGS: 4,
  PUSH_PROMISE: 5,
  PING: 6,
  GOAWAY: 7,
  WINDOW_UPDATE: 8,
  CONTINUATION: 9,
} as const;

export const Flag = { END_STREAM: 1, ACK: 1, END_HEADERS: 4, PADDED: 8, PRIORITY: 32 } as const;

export const Setting = {
  HEADER_TABLE_SIZE: 1,
  ENABLE_PUSH: 2,
  MAX_CONCURRENT_STREAMS: 3,
  INITIAL_WINDOW_SIZE: 4,
  MAX_FRAME_SIZE: 5,
  MAX_HEADER_LIST_SIZE: 6,
} as const;

export const Fault = {
  NO_ERROR: 0,
  PROTOCOL_ERROR: 1,
  INTERNAL_ERROR: 2,
  FLOW_CONTROL_ERROR: 3,
  STREAM_CLOSED: 5,
  FRAME_SIZE_ERROR: 6,
  REFUSED_STREAM: 7,
  CANCEL: 8,
  COMPRESSION_ERROR: 9,
  ENHANCE_YOUR_CALM: 11,
} as const;

export interface Frame {
  type: number;
  flags: number;
  id: number;
  /** A part of the buffer that the frame came in. */
  payload: Buffer;
}

/** Returns where the head ends. */
export function putHead(target: Buffer, at: number, length: number, type: number, flags: number, id: number): number {
  target[at] = length >>> 16;
  target[at + 1] = length >>> 8;
  target[at + 2] = length;
  target[at + 3] = type;
  target[at + 4] = flags;
  target[at + 5] = id >>> 24;
  target[at + 6] = id >>> 16;
  target[at + 7] = id >>> 8;
  target[at + 8] = id;
  return at + FRAME_HEAD_BYTES;
}

export function frame(type: number, flags: number, id: number, payload: Uint8Array): Buffer {
  const bytes = Buffer.allocUnsafe(FRAME_HEAD_BYTES + payload.length);
  bytes.set(payload, putHead(bytes, 0, payload.length, type, flags, id));
  return bytes;
}

/** With CONTINUATION frames where the block is too long for one. */
export function headersFrames(flags: number, id: number, block: Buffer): Buffer {
  if (block.length <= MAX_FRAME_BYTES) return frame(Type.HEADERS, flags | Flag.END_HEADERS, id, block);
  const frames: Buffer[] = [];
  for (let at = 0; at < block.length; at += MAX_FRAME_BYTES) {
    const type = at === 0 ? Type.HEADERS : Type.CONTINUATION;
    const isLast = at + MAX_FRAME_BYTES >= block.length;
    const own = (at === 0 ? flags : 0) | (isLast ? Flag.END_HEADERS : 0);
    frames.push(frame(type, own, id, block.subarray(at, at + MAX_FRAME_BYTES)));
  }
  return Buffer.concat(frames);
}

export function number32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function settingsFrame(settings: Iterable<readonly [number, number]>): Buffer {
  const payload = [...settings].map(([id, value]) => Buffer.from([id >>> 8, id, ...number32(value)]));
  return frame(Type.SETTINGS, 0, 0, Buffer.concat(payload));
}

export function goawayFrame(lastId: number, fault: number): Buffer {
  return frame(Type.GOAWAY, 0, 0, Buffer.concat([number32(lastId), number32(fault)]));
}

/**
 * Cuts a sequence of bytes into frames, whatever pieces it comes in. A frame of more than `maxBytes` ends it. What `mayTake`
 * does not let through is held: there is "more", for the next call.
 */
export function createFrameReader(
  maxBytes: number,
  take: (frame: Frame) => void,
  mayTake: () => boolean = () => true,
): (chunk: Buffer) => "ok" | "more" | "too large" {
  let rest: Buffer | undefined;
  return (chunk) => {
    const bytes = rest === undefined ? chunk : chunk.length === 0 ? rest : Buffer.concat([rest, chunk]);
    let at = 0;
    let more = false;
    while (bytes.length - at >= FRAME_HEAD_BYTES) {
      const length = (bytes[at]! << 16) | (bytes[at + 1]! << 8) | bytes[at + 2]!;
      if (length > maxBytes) return "too large";
      const start = at + FRAME_HEAD_BYTES;
      if (bytes.length - start < length) break;
      more = !mayTake();
      if (more) break;
      take({
        type: bytes[at + 3]!,
        flags: bytes[at + 4]!,
        id: bytes.readUInt32BE(at + 5) & 0x7fffffff,
        payload: bytes.subarray(start, start + length),
      });
      at = start + length;
    }
    rest = at < bytes.length ? bytes.subarray(at) : undefined;
    return more ? "more" : "ok";
  };
}
