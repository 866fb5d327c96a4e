import type { FastMethods, Recognised } from "../unary.ts";
import { DEFAULT_TABLE_BYTES, Fault, Flag, type Frame, MAX_FRAME_BYTES } from "./frames.ts";
import { createHpackDecoder, type HpackDecoder, HpackError } from "./hpack.ts";

interface HeaderBlocksParts {
  recognise: FastMethods["recognise"];
  maxHeaderBytes: number;
  /** A whole block. */
  take(id: number, flags: number, block: Buffer): void;
  fail(fault: number): void;
}

/** Blocks that are known by heart, a connection; longer ones are not. */
const MAX_MEMORIES = 16;
const MAX_MEMORY_BYTES = 1_024;
/** Of one block. */
const MAX_FRAGMENTS = 64;

/** A connection's blocks of headers: makes them whole, and reads them. */
export class HeaderBlocks {
  private readonly parts: HeaderBlocksParts;
  private readonly decoder: HpackDecoder;
  private readonly memories = new Map<string, Recognised>();
  private memoriesVersion = 0;
  /** More of it is to come. */
  private partial: { id: number; flags: number; fragments: Buffer[]; bytes: number } | undefined;

  constructor(parts: HeaderBlocksParts) {
    this.parts = parts;
    this.decoder = createHpackDecoder({ maxTableBytes: DEFAULT_TABLE_BYTES, maxListBytes: parts.maxHeaderBytes });
  }

  /** The stream of the only frames that may come now. */
  get partialId(): number | undefined {
    return this.partial?.id;
  }

  takeHeaders({ flags, id, payload }: Frame) {
    const { parts } = this;
    if (id % 2 === 0) return parts.fail(Fault.PROTOCOL_ERROR);
    let start = 0;
    let end = payload.length;
    if ((flags & Flag.PADDED) !== 0) {
      start = 1;
      end -= payload[0] ?? 0;
    }
    if ((flags & Flag.PRIORITY) !== 0) start += 5;
    if (end < start) return parts.fail(Fault.PROTOCOL_ERROR);
    const fragment = payload.subarray(start, end);
    if ((flags & Flag.END_HEADERS) !== 0) return parts.take(id, flags, fragment);
    this.partial = { id, flags, fragments: [fragment], bytes: fragment.length };
  }

  takeContinuation({ flags, payload }: Frame) {
    const { partial, parts } = this;
    if (partial === undefined) return parts.fail(Fault.PROTOCOL_ERROR);
    partial.fragments.push(payload);
    partial.bytes += payload.length;
    // A block that never ends, or of endless empty parts, would fill the memory (CONTINUATION flood).
    if (partial.bytes > parts.maxHeaderBytes + MAX_FRAME_BYTES || partial.fragments.length > MAX_FRAGMENTS) {
      return parts.fail(Fault.ENHANCE_YOUR_CALM);
    }
    if ((flags & Flag.END_HEADERS) === 0) return;
    this.partial = undefined;
    parts.take(partial.id, partial.flags, Buffer.concat(partial.fragments));
  }

  /** A block that was seen before, and means the same since the table did not change. */
  recall(block: Buffer): Recognised | undefined {
    if (this.memoriesVersion !== this.decoder.version) {
      this.memories.clear();
      this.memoriesVersion = this.decoder.version;
    }
    if (this.memories.size === 0 || block.length > MAX_MEMORY_BYTES) return undefined;
    return this.memories.get(block.toString("latin1"));
  }

  /** A fast call, from the block and what it was decoded to. */
  recognise(block: Buffer, list: string[]): Recognised | undefined {
    const recognised = this.parts.recognise(list);
    // One that changed the table means something else the next time.
    const isLasting = block.length <= MAX_MEMORY_BYTES && this.memoriesVersion === this.decoder.version;
    if (recognised !== undefined && isLasting) {
      if (this.memories.size >= MAX_MEMORIES) this.memories.clear();
      this.memories.set(block.toString("latin1"), recognised);
    }
    return recognised;
  }

  /** undefined: the connection is over. */
  decode(block: Buffer): string[] | undefined {
    try {
      return this.decoder.decode(block);
    } catch (error) {
      if (!(error instanceof HpackError)) throw error;
      this.parts.fail(Fault.COMPRESSION_ERROR);
      return undefined;
    }
  }
}
