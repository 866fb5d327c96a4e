import { expect, test } from "@jest/globals";
import { checked, deadlineExceeded, KeyError } from "../../src/keys/errors.ts";

test("an error says nothing that it was not given", () => {
  const error = new KeyError("NO_KEY", "none");
  expect(error).toMatchObject({ name: "KeyError", reason: "NO_KEY", message: "none", violations: [], metadata: {} });
  expect([error.retryAfterMs, error.cause]).toEqual([undefined, undefined]);
  const details = { violations: [{ field: "a", description: "b" }], metadata: { c: "d" }, retryAfterMs: 5, cause: "e" };
  expect(new KeyError("CONFLICT", "again", details)).toMatchObject(details);
});

test("a check that reported nothing returns what it found; else all of it is INVALID_ARGUMENT, in one message", () => {
  expect(checked(() => 7)).toBe(7);
  const violations = ["a", "b"].map((field) => ({ field, description: "is bad" }));
  const check = () => checked((reported) => reported.push(...violations));
  expect(check).toThrow(expect.objectContaining({ reason: "INVALID_ARGUMENT", violations }));
  expect(check).toThrow("a: is bad; b: is bad");
});

test("a deadline that passed says that nothing was written", () => {
  expect(deadlineExceeded()).toMatchObject({
    reason: "DEADLINE_EXCEEDED",
    message: expect.stringMatching(/Nothing was/),
  });
});
