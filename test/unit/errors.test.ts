import { expect, test } from "@jest/globals";
import { toConnectError } from "../../src/edge/errors.ts";
import { checked, deadlineExceeded, invalid, KeyError } from "../../src/keys/errors.ts";

test("an error says nothing that it was not given", () => {
  const error = new KeyError("NO_KEY", "none");
  expect(error).toMatchObject({ name: "KeyError", reason: "NO_KEY", message: "none", violations: [], metadata: {} });
  expect([error.retryAfterMs, error.cause]).toEqual([undefined, undefined]);
  const details = { violations: [{ field: "a", description: "b" }], metadata: { c: "d" }, retryAfterMs: 5, cause: "e" };
  expect(new KeyError("CONFLICT", "again", details)).toMatchObject(details);
});

test("a check that reported nothing returns what it found; else all of it is INVALID_ARGUMENT, in one message", () => {
  expect(checked(() => 7)).toBe(7);
  const violations = [
    { field: "a", description: "is bad" },
    { field: "b", description: "is bad" },
    { field: "c", description: "is worse" },
  ];
  const check = () => checked((reported) => reported.push(...violations));
  expect(check).toThrow(expect.objectContaining({ reason: "INVALID_ARGUMENT", violations, metadata: {} }));
  expect(check).toThrow("a, b: is bad; c: is worse");
});

test("each field is named once, the first ten of them, and of more their number", () => {
  const twice = invalid([
    { field: "name", description: "is too long" },
    { field: "name", description: "has a tab" },
  ]);
  expect(twice.violations).toEqual([{ field: "name", description: "is too long; has a tab" }]);
  const many = Array.from({ length: 12 }, (_, index) => ({ field: `f${index}`, description: "is bad" }));
  const { violations, metadata, message } = invalid(many);
  expect(violations).toEqual(many.slice(0, 10));
  expect(metadata).toEqual({ violations: "12" });
  expect(message).toBe("f0, f1, f2, f3, f4, f5, f6, f7, f8, f9: is bad; and 2 more");
});

test("a message that is too long for metadata is cut, and between characters", () => {
  const { rawMessage } = toConnectError(new KeyError("NO_KEY", `a${"\u{1F511}".repeat(600)}`), "id");
  expect(rawMessage).toMatch(/^a(\u{1F511})+\.\.\.$/u);
  expect(rawMessage.length).toBeLessThanOrEqual(600);
  expect(toConnectError(new KeyError("NO_KEY", "x".repeat(600)), "id").rawMessage).toBe("x".repeat(600));
});

test("a deadline that passed says that nothing was written", () => {
  expect(deadlineExceeded()).toMatchObject({
    reason: "DEADLINE_EXCEEDED",
    message: expect.stringMatching(/Nothing was/),
  });
});
