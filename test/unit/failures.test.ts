import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { expect, test } from "@jest/globals";
import { MongoServerError } from "mongodb";
import { toKeyError } from "../../src/store/failures.ts";

/** What a socket fails with when it is written to after its peer has reset it. */
async function writeFailure(): Promise<unknown> {
  const server = createServer((socket: Socket) => socket.resetAndDestroy()).listen(0, "127.0.0.1");
  await once(server, "listening");
  const socket = connect({ host: "127.0.0.1", port: (server.address() as AddressInfo).port });
  const failed = new Promise((resolve) => socket.once("error", resolve));
  const writing = setInterval(() => socket.write("x"), 1);
  const error = await failed;
  clearInterval(writing);
  server.close();
  return error;
}

test("what the system says of a connection means that the database can't be reached, not that it refused", async () => {
  const cause = await writeFailure();
  expect(cause).toMatchObject({ code: expect.stringMatching(/^(ECONNRESET|EPIPE)$/) });
  expect(toKeyError(cause, 0)).toMatchObject({ reason: "DB_UNAVAILABLE", retryAfterMs: 1_000, cause });
});

test("a commit that ran out of time may have been made: nobody is told that nothing was written", () => {
  const late = { code: 50, errmsg: "operation exceeded time limit" };
  expect(toKeyError(new MongoServerError(late), 0)).toMatchObject({ reason: "DEADLINE_EXCEEDED" });
  const commit = new MongoServerError({ ...late, errorLabels: ["UnknownTransactionCommitResult"] });
  expect(toKeyError(commit, 0)).toMatchObject({ reason: "DB_UNAVAILABLE" });
});

test("what the database says no to is a refusal, and so is what nobody knows", () => {
  for (const cause of [new MongoServerError({ code: 13, errmsg: "not authorized" }), new Error("?"), undefined])
    expect(toKeyError(cause, 0)).toMatchObject({ reason: "DB_ERROR", cause });
});
