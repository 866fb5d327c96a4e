import type { Socket } from "node:net";
import { afterEach, beforeEach, expect, jest, test } from "@jest/globals";
import { cutSlowReaders } from "../../src/fastpath/slow-readers.ts";

beforeEach(() => void jest.useFakeTimers());
afterEach(() => void jest.useRealTimers());

/** What the rule looks at of a socket; sockets themselves are in the tests of the lanes. */
function start() {
  const socket = { writableLength: 0, bytesWritten: 0, queued: 0, parentQueued: 0, cut: false, closed: () => {} };
  const untaken = cutSlowReaders({ requestTimeoutMs: 5_000 });
  untaken.watch({
    ...{ once: (_: string, closed: () => void) => Object.assign(socket, { closed }) },
    destroy: () => {
      socket.cut = true;
    },
    get _handle() {
      return { writeQueueSize: socket.queued, _parent: { writeQueueSize: socket.parentQueued } };
    },
    get writableLength() {
      return socket.writableLength;
    },
    get bytesWritten() {
      return socket.bytesWritten;
    },
  } as unknown as Socket);
  return {
    ...{ socket, untaken },
    write: (bytes: number) => {
      socket.bytesWritten += bytes;
      socket.writableLength += bytes;
    },
    pass: (seconds: number) => {
      jest.advanceTimersByTime(seconds * 1_000);
      return socket.cut;
    },
  };
}

test("who takes nothing for the time of a request is cut, though more is written", () => {
  const { write, pass } = start();
  write(100_000);
  expect(pass(1)).toBe(false);
  for (let second = 1; second <= 4; second += 1) {
    write(1);
    expect(pass(1)).toBe(false);
  }
  expect(pass(1)).toBe(true);
});

test("who takes some of it from time to time, or has taken all, is not", () => {
  const { socket, write, pass } = start();
  write(100_000);
  for (let round = 0; round < 5; round += 1) {
    expect(pass(5)).toBe(false);
    socket.writableLength -= 1;
  }
  socket.writableLength = 0;
  expect(pass(60)).toBe(false);
  // Time without anything to take does not count.
  write(10);
  expect(pass(5)).toBe(false);
  expect(pass(1)).toBe(true);
});

test.each(["queued", "parentQueued"] as const)("who takes some of one large write is not: %s", (queue) => {
  const { socket, write, pass } = start();
  write(100_000);
  socket[queue] = 100_000;
  for (let round = 0; round < 5; round += 1) {
    expect(pass(3)).toBe(false);
    // More is written than is taken.
    socket[queue] += 1_000;
    pass(1);
    socket[queue] -= 1;
  }
  expect(pass(5)).toBe(false);
  expect(pass(1)).toBe(true);
});

test("a closed connection is let go", () => {
  const { socket, write, pass, untaken } = start();
  write(10);
  pass(1);
  socket.closed();
  expect(pass(60)).toBe(false);
  untaken.stop();
  expect(jest.getTimerCount()).toBe(0);
});
