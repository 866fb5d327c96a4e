import { once } from "node:events";
import { type AddressInfo, connect, createServer, Socket } from "node:net";
import { expect, test } from "@jest/globals";
import { type Db, MongoError, MongoErrorLabel, MongoNetworkError, MongoServerError } from "mongodb";
import { MONGODB_ERROR_CODES } from "mongodb/lib/error.js";
import { toKeyError } from "../../src/mongo/failures.ts";
import { atStart } from "../../src/mongo/schema.ts";
import { LABELS, SERVER_CODES } from "../../src/mongo/server-errors.ts";

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

test("what Node says of a socket whose other side has ended, or that is closed, means the same", async () => {
  const server = createServer((socket: Socket) => socket.end()).listen(0, "127.0.0.1");
  await once(server, "listening");
  const socket = connect({ host: "127.0.0.1", port: (server.address() as AddressInfo).port }).resume();
  await once(socket, "end");
  const written = (to: Socket): Promise<NodeJS.ErrnoException> =>
    new Promise((resolve) => {
      to.once("error", () => {});
      to.write("x", (error) => resolve(error as NodeJS.ErrnoException));
    });
  const causes = [await written(socket), await written(new Socket().destroy())];
  server.close();
  expect(causes.map(({ code, syscall }) => [code, syscall])).toEqual([
    ["EPIPE", undefined],
    ["ERR_STREAM_DESTROYED", undefined],
  ]);
  for (const cause of causes) expect(toKeyError(cause, 0)).toMatchObject({ reason: "DB_UNAVAILABLE", cause });
});

test("a commit that ran out of time may have been made: nobody is told that nothing was written", () => {
  const late = { code: SERVER_CODES.DB_UNAVAILABLE.MaxTimeMSExpired, errmsg: "operation exceeded time limit" };
  expect(toKeyError(new MongoServerError(late), 0)).toMatchObject({ reason: "DEADLINE_EXCEEDED" });
  const commit = new MongoServerError({ ...late, errorLabels: ["UnknownTransactionCommitResult"] });
  expect(toKeyError(commit, 0)).toMatchObject({ reason: "DB_UNAVAILABLE" });
});

test("what the database says no to is a refusal, and so is what nobody knows", () => {
  for (const cause of [
    new MongoServerError({ code: SERVER_CODES.DB_ERROR.Unauthorized, errmsg: "not authorized" }),
    new Error("?"),
    undefined,
  ])
    expect(toKeyError(cause, 0)).toMatchObject({ reason: "DB_ERROR", cause });
});

const labelled = (...errorLabels: string[]) =>
  new MongoServerError({ code: 462, errmsg: "rate exceeded", errorLabels });

test("overload is told as such where its labels say that nothing was done, and only there", () => {
  for (const undone of ["RetryableError", "NoWritesPerformed"])
    expect(toKeyError(labelled("SystemOverloadedError", undone), 0)).toMatchObject({
      ...{ reason: "OVERLOADED", retryAfterMs: 1_000 },
    });
  for (const labels of [
    [],
    ["SystemOverloadedError"],
    ["SystemOverloadedError", "RetryableError", "UnknownTransactionCommitResult"],
  ])
    expect(toKeyError(labelled(...labels), 0)).toMatchObject({ reason: "DB_UNAVAILABLE", retryAfterMs: 1_000 });
});

test("a server that is gone is DB_UNAVAILABLE, though the driver labels its connections as refused for overload", () => {
  const gone = new MongoNetworkError("connect ECONNREFUSED");
  for (const label of ["SystemOverloadedError", "RetryableError"]) gone.addErrorLabel(label);
  expect(toKeyError(gone, 0)).toMatchObject({ reason: "DB_UNAVAILABLE" });
});

test("a read that failed does not say that a change may have been made", () => {
  const gone = new MongoNetworkError("connection closed");
  expect(toKeyError(gone, 0).message).toContain("A change may still have been made.");
  const { reason, message } = toKeyError(gone, 0, "read");
  expect({ reason, message }).toEqual({
    reason: "DB_UNAVAILABLE",
    message: "The database can't be reached at the moment. Try again shortly.",
  });
});

test("every label and every code that the driver knows is in the tables, under its name", () => {
  expect(Object.keys(LABELS).sort()).toEqual(Object.values(MongoErrorLabel).sort());
  const named = Object.fromEntries(Object.values(SERVER_CODES).flatMap((codes) => Object.entries(codes)));
  const { Reauthenticate: ReauthenticationRequired, ...others } = MONGODB_ERROR_CODES;
  expect(named).toMatchObject({ ReauthenticationRequired, ...others });
  const codes = Object.values(named);
  expect(new Set(codes).size).toBe(codes.length);
});

test("a read that the primary can't prove, or a cursor that was killed, may be asked again", () => {
  const { LinearizableReadConcernError, CursorNotFound, QueryPlanKilled, KeyNotFound } = SERVER_CODES.DB_UNAVAILABLE;
  for (const code of [LinearizableReadConcernError, CursorNotFound, QueryPlanKilled, KeyNotFound])
    expect(toKeyError(new MongoServerError({ code }), 0)).toMatchObject({
      reason: "DB_UNAVAILABLE",
      retryAfterMs: 1_000,
    });
});

test("what gets no connection at the start is begun again, and any other word of MongoDB's is one for who starts the service", async () => {
  const db = { databaseName: "keys" } as Db;
  const noConnection = Object.defineProperty(new MongoError("no connection in time"), "name", {
    value: "MongoWaitQueueTimeoutError",
  });
  let begun = 0;
  const operation = async () => {
    begun += 1;
    if (begun < 3) throw noConnection;
    return "done";
  };
  expect(await atStart(db, operation)).toBe("done");
  expect(begun).toBe(3);
  const forbidden = new MongoServerError({ code: SERVER_CODES.DB_ERROR.Unauthorized, errmsg: "not authorized" });
  await expect(atStart(db, () => Promise.reject(forbidden))).rejects.toThrow(/"keys" can't be read.*roles readWrite/);
});
