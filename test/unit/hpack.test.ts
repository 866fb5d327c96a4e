import { once } from "node:events";
import { connect } from "node:http2";
import { type AddressInfo, createServer } from "node:net";
import { describe, expect, test } from "@jest/globals";
import fc from "fast-check";
import { createFrameReader, PREFACE, settingsFrame, Type } from "../../src/fastpath/http2/frames.ts";
import { createHpackDecoder, encodeFields, HpackError } from "../../src/fastpath/http2/hpack.ts";

const decoderOf = ({ maxTableBytes = 4_096, maxListBytes = 100_000 } = {}) =>
  createHpackDecoder({ maxTableBytes, maxListBytes });
const bytes = (hex: string): Buffer => Buffer.from(hex.replaceAll(" ", ""), "hex");
const decode = (hex: string): string[] => decoderOf().decode(bytes(hex));

const REQUEST = [":method", "GET", ":scheme", "http", ":path", "/", ":authority", "www.example.com"];
const SECURE = [":method", "GET", ":scheme", "https", ":path", "/index.html", ":authority", "www.example.com"];
const REQUESTS = [REQUEST, [...REQUEST, "cache-control", "no-cache"], [...SECURE, "custom-key", "custom-value"]];
const AT_21 = [
  "cache-control",
  "private",
  "date",
  "Mon, 21 Oct 2013 20:13:21 GMT",
  "location",
  "https://www.example.com",
];
const COOKIE = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
const RESPONSES = [
  [":status", "302", ...AT_21],
  [":status", "307", ...AT_21],
  [
    ...[":status", "200", "cache-control", "private", "date", "Mon, 21 Oct 2013 20:13:22 GMT"],
    ...["location", "https://www.example.com", "content-encoding", "gzip", "set-cookie", COOKIE],
  ],
];

describe("the examples of RFC 7541, appendix C", () => {
  test.each([
    ["C.2.1", "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", "custom-key", "custom-header"],
    ["C.2.2", "040c 2f73 616d 706c 652f 7061 7468", ":path", "/sample/path"],
    ["C.2.3", "1008 7061 7373 776f 7264 0673 6563 7265 74", "password", "secret"],
    ["C.2.4", "82", ":method", "GET"],
  ])("%s: a field", (_section, hex, name, value) => {
    expect(decode(hex)).toEqual([name, value]);
  });

  test.each<[string, string[][], number, ...string[]]>([
    [
      "C.3: requests",
      REQUESTS,
      4_096,
      "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
      "8286 84be 5808 6e6f 2d63 6163 6865",
      "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ],
    [
      "C.4: requests in Huffman code",
      REQUESTS,
      4_096,
      "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
      "8286 84be 5886 a8eb 1064 9cbf",
      "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ],
    [
      "C.5: responses, with entries evicted",
      RESPONSES,
      256,
      `4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 546e
       1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d`,
      "4803 3330 37c1 c0bf",
      `88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f 6f3d
       4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572
       7369 6f6e 3d31`,
    ],
    [
      "C.6: responses in Huffman code, with entries evicted",
      RESPONSES,
      256,
      `4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b
       97c8 e9ae 82ae 43d3`,
      "4883 640e ffc1 c0bf",
      `88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf
       cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07`,
    ],
  ])("%s", (_section, lists, maxTableBytes, ...blocks) => {
    const decoder = decoderOf({ maxTableBytes });
    expect(blocks.map((hex) => decoder.decode(bytes(hex.replaceAll(/\s/g, ""))))).toEqual(lists);
  });
});

/** All bytes from 0 to 255 in Huffman code, by another implementation (Python's hpack). */
const ALL_BYTES = `
ffc7fffd8fffffe2fffffe3fffffe4fffffe5fffffe6fffffe7fffffe8ffffeafffffff3fffffa7fffffabffffffdfffffebfffffecfffff
edfffffeefffffefffffff0ffffff1ffffff2fffffffbfffffcffffffd3fffffd7fffffdbfffffdffffffe3fffffe7fffffebfffffed4fe3
f9ffaffcabf1febfafefe7fdfd2cbb00089969b71d79fb9f7fff20ffbff3ff50ddbd7f061c58f265cd9f469d5af66dddbf871e5f9cff7ff7
fffc3ff9ffe45fff4719242cb34e6e9d68a6a3d7dac426defe3cfaf7fffbfe7ffbffdffffffcfffe6ffff4bfff9ffffa3fffd3ffff53fffd
5ffffb3fffeb7fffdaffffb7ffff73fffeeffffdeffffebffffbfffffd9ffffdbfffebffffe0ffffeeffffc3ffff8bffff1ffffe4fffee7f
ffb1ffff97fffd9ffffcdffff9fffffbffffdafffeeffff4ffffb7fffee7fffe8ffffd3fffdeffffd5fffeeffffbdffffe1fffdfffff7fff
ff5ffffecffff07fff87fffe0ffff17fffedffff87ffff77fffeffffeaffff8bfffe3ffff93ffff87fffcbffff37ffff1fffff83ffffe1ff
febfffe3ffff3fffff2ffffa3ffffd9fffff17ffffc7fffff27ffffdefffffbffffff2fffff8fffffb7fff97fff8fffffe6fffffc1fffff8
7ffffe7fffffc5ffffe5fffe4ffff2fffffd1fffff4ffffffefffffe3fffffc9fffff97fffb3ffffcffffb7fffcdffff4ffff9ffffd1ffff
cffffeaffffafffffddffffeffffff4fffff5fffffabffffa7ffffd7fffff9bffffecfffffb7fffff3fffffe8fffffd3fffffabfffff5fff
ffff7ffffecfffffdbfffffbbfffff7ffffff0fffffbbf
`.replaceAll("\n", "");

/** A name of one letter, and a value in Huffman code. */
const inHuffman = (code: Buffer): Buffer =>
  Buffer.concat([Buffer.of(0x00, 1, 0x78), integer(code.length, 7, 0x80), code]);

/** RFC 7541, 5.1. */
function integer(value: number, bits: number, kind: number): Buffer {
  const most = 2 ** bits - 1;
  if (value < most) return Buffer.of(kind | value);
  const rest = [];
  let left = value - most;
  for (; left >= 0x80; left = Math.floor(left / 0x80)) rest.push((left % 0x80) | 0x80);
  return Buffer.of(kind | most, ...rest, left);
}

const text = (value: string): Buffer => Buffer.concat([integer(value.length, 7, 0), Buffer.from(value, "latin1")]);
const kept = (name: string, value: string): Buffer => Buffer.concat([Buffer.of(0x40), text(name), text(value)]);
const indexed = (index: number): Buffer => integer(index, 7, 0x80);
const resized = (size: number): Buffer => integer(size, 5, 0x20);

describe("Huffman code", () => {
  test("has each byte", () => {
    const [, value] = decoderOf().decode(inHuffman(bytes(ALL_BYTES)));
    expect(Buffer.from(value!, "latin1")).toEqual(Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)));
  });

  test("of nothing is nothing", () => {
    expect(decoderOf().decode(inHuffman(Buffer.alloc(0)))).toEqual(["x", ""]);
  });

  test.each([
    ["padded by zeros", "18"],
    ["padded by a whole byte", "1fff"],
    ["padded by more than a byte", "1fffff"],
    ["with its end within", "ffff fffc"],
    ["with its end, and bytes after it", "ffff ffff ffff"],
    ["that ends within a long character", "fffffe"],
  ])("%s is refused", (_what, hex) => {
    expect(() => decoderOf().decode(inHuffman(bytes(hex)))).toThrow(HpackError);
  });

  test("padded by up to seven ones is not", () => {
    // "a" has five bits, "&" eight.
    expect(decoderOf().decode(inHuffman(bytes("1f")))).toEqual(["x", "a"]);
    expect(decoderOf().decode(inHuffman(bytes("f8")))).toEqual(["x", "&"]);
  });
});

describe("a block that can't be read", () => {
  test.each([
    ["the index 0", "80"],
    ["an index beyond both tables", "be"],
    ["a name by an index beyond both tables", "7f00 01 61"],
    ["a name without a value", "0001 61"],
    ["a text that is longer than the block", "0005 61"],
    ["a text without a length", "00"],
    ["an integer that does not end", "ffff ffff"],
    ["an integer beyond all sizes", "ffff ffff ff0f"],
    ["an integer beyond 32 bits", "00 7f ffff ffff ffff ffff 7f"],
    ["a table larger than was offered", "3fe2 1f"],
    ["a change of the table's size after a field", "82 20"],
  ])("%s", (_what, hex) => {
    expect(() => decode(hex)).toThrow(HpackError);
  });

  test("a change of the table's size after fields that were too large", () => {
    const decoder = decoderOf({ maxListBytes: 10 });
    expect(() => decoder.decode(bytes("82 20"))).toThrow(HpackError);
  });
});

describe("the table", () => {
  test("has the newest entry first, and none that was evicted", () => {
    // Each entry has 34 bytes: two fit.
    const decoder = decoderOf({ maxTableBytes: 70 });
    decoder.decode(Buffer.concat([kept("a", "1"), kept("b", "2"), kept("c", "3")]));
    expect(decoder.decode(Buffer.concat([indexed(62), indexed(63)]))).toEqual(["c", "3", "b", "2"]);
    expect(() => decoder.decode(indexed(64))).toThrow(HpackError);
  });

  test("is emptied by an entry that is larger than all of it", () => {
    const decoder = decoderOf({ maxTableBytes: 70 });
    expect(decoder.decode(Buffer.concat([kept("a", "1"), kept("b", "x".repeat(99))]))).toEqual([
      "a",
      "1",
      "b",
      "x".repeat(99),
    ]);
    expect(() => decoder.decode(indexed(62))).toThrow(HpackError);
  });

  test("keeps an entry whose name is that of one which it evicts", () => {
    const decoder = decoderOf({ maxTableBytes: 40 });
    decoder.decode(kept("a", "1"));
    expect(decoder.decode(Buffer.concat([integer(62, 6, 0x40), text("2"), indexed(62)]))).toEqual(["a", "2", "a", "2"]);
  });

  test("is made smaller, emptied, and larger again within what was offered", () => {
    const decoder = decoderOf();
    decoder.decode(Buffer.concat([kept("a", "1"), kept("b", "2")]));
    expect(decoder.decode(Buffer.concat([resized(34), indexed(62)]))).toEqual(["b", "2"]);
    expect(() => decoder.decode(indexed(63))).toThrow(HpackError);
    decoder.decode(Buffer.concat([resized(0), resized(4_096)]));
    expect(() => decoder.decode(indexed(62))).toThrow(HpackError);
    decoder.decode(Buffer.concat([kept("a", "1"), kept("b", "2")]));
    expect(decoder.decode(indexed(63))).toEqual(["a", "1"]);
  });

  test("follows a block to its end that has too much in it, and the block counts as empty", () => {
    const decoder = decoderOf({ maxListBytes: 1_000 });
    const bomb = Buffer.concat([
      kept("x", "y".repeat(900)),
      ...Array.from({ length: 1_000 }, () => indexed(62)),
      kept("a", "1"),
    ]);
    expect(decoder.decode(bomb)).toEqual([]);
    expect(decoder.decode(indexed(62))).toEqual(["a", "1"]);
  });

  test("tells when a block may mean something else than before", () => {
    const decoder = decoderOf();
    const changes = (block: Buffer) => {
      const { version } = decoder;
      decoder.decode(block);
      return decoder.version !== version;
    };
    expect(changes(kept("a", "1"))).toBe(true);
    expect(changes(indexed(62))).toBe(false);
    expect(changes(encodeFields(["a", "1"]))).toBe(false);
    expect(changes(resized(0))).toBe(true);
    expect(changes(kept("a", "1"))).toBe(true);
  });

  test("is the same as its encoder's, whatever that does", () => {
    const name = fc.constantFrom("a", "b", "content-type", ":path", "x-long-name");
    const field = fc.record({
      ...{
        name,
        value: fc.string({
          unit: fc.integer({ min: 0, max: 255 }).map((code) => String.fromCharCode(code)),
          maxLength: 60,
        }),
      },
      kind: fc.constantFrom("kept", "passing", "never", "reference"),
    });
    const block = fc.record({
      sizes: fc.array(fc.integer({ min: 0, max: 300 }), { maxLength: 2 }),
      fields: fc.array(field),
    });
    fc.assert(
      fc.property(fc.array(block, { maxLength: 8 }), (blocks) => {
        const encoder = plainEncoder(300);
        const decoder = decoderOf({ maxTableBytes: 300 });
        for (const { sizes, fields } of blocks) {
          const parts = [...sizes.map(encoder.resize), ...fields.map(encoder.encode)];
          expect(decoder.decode(Buffer.concat(parts))).toEqual(fields.flatMap(({ name, value }) => [name, value]));
        }
      }),
    );
  });
});

/** As simple as can be: a table in the order of its indices. */
function plainEncoder(maxTableBytes: number) {
  let table: [string, string][] = [];
  let limit = maxTableBytes;
  const evict = () => {
    const sizeOf = () => table.reduce((sum, [name, value]) => sum + name.length + value.length + 32, 0);
    while (sizeOf() > limit) table.pop();
  };
  return {
    resize(size: number): Buffer {
      limit = size;
      evict();
      return resized(size);
    },
    encode({ name, value, kind }: { name: string; value: string; kind: string }): Buffer {
      const whole = table.findIndex(([a, b]) => a === name && b === value);
      if (kind === "reference" && whole >= 0) return indexed(62 + whole);
      const named = table.findIndex(([a]) => a === name);
      const [bits, first] = kind === "kept" ? [6, 0x40] : kind === "never" ? [4, 0x10] : [4, 0x00];
      const head = named >= 0 ? integer(62 + named, bits!, first!) : Buffer.concat([Buffer.of(first!), text(name)]);
      if (kind === "kept") {
        table = [[name, value], ...table];
        evict();
      }
      return Buffer.concat([head, text(value)]);
    },
  };
}

test("what node:http2 writes is read as it was meant, call after call", async () => {
  const lists: string[][] = [];
  const decoder = decoderOf();
  const server = createServer((socket) => {
    const read = createFrameReader(16_384, ({ type, payload }) => {
      // node:http2 puts no priority and no padding.
      if (type === Type.HEADERS) lists.push(decoder.decode(payload));
    });
    let before = PREFACE.length;
    socket.write(settingsFrame([]));
    socket
      .on("error", () => {})
      .on("data", (chunk: Buffer) => {
        const skipped = Math.min(before, chunk.length);
        before -= skipped;
        read(chunk.subarray(skipped));
      });
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const session = connect(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  session.on("error", () => {});
  const printable = Buffer.from(Array.from({ length: 94 }, (_, index) => index + 0x21)).toString();
  const calls = Array.from({ length: 50 }, (_, index) => ({
    ...{ ":method": "POST", ":path": `/call/${index % 7}`, authorization: `Bearer ${index % 3}` },
    "x-all": `${printable} ${index}`,
    "x-long": printable.repeat(index),
  }));
  for (const headers of calls) session.request(headers).on("error", () => {});
  while (lists.length < calls.length) await new Promise((resolve) => setTimeout(resolve, 2));
  calls.forEach((headers, index) => {
    const list = lists[index]!;
    const seen = Object.fromEntries(
      Array.from({ length: list.length / 2 }, (_, at) => [list[2 * at], list[2 * at + 1]]),
    );
    expect(seen).toMatchObject(headers);
  });
  session.destroy();
  server.close();
});

test("fields that are encoded here are read by any decoder, however long", () => {
  for (const length of [0, 1, 126, 127, 128, 254, 255, 16_383 + 127, 16_384 + 127, 20_000]) {
    expect(decoderOf().decode(encodeFields(["name", "v".repeat(length)]))).toEqual(["name", "v".repeat(length)]);
  }
});
