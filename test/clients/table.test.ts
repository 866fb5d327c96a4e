import { expect, test } from "@jest/globals";
import { CLIENTS, programsHash, TABLE, tableText } from "./clients.ts";

test(`${TABLE} was written after the last change of the clients' programs (npm run clients -- --write), has each client, and no lost call`, () => {
  const table = tableText();
  expect(table).toContain(`<!-- programs ${programsHash()} -->`);
  expect(table).toMatch(/^Latchkey \S+, Node \S+, \d{4}-\d\d-\d\d\./);
  const [head, , ...rows] = table
    .split("\n")
    .filter((line) => line.startsWith("|"))
    .map((line) => line.split("|").map((cell) => cell.trim()));
  const cells = rows.map((row) => Object.fromEntries(head!.map((name, index) => [name, row[index]])));
  expect(cells.map(({ client, wire, lost }) => [client, wire, lost])).toEqual(
    CLIENTS.flatMap(({ name }) => ["TLS", "cleartext"].map((wire) => [name, wire, "0"])),
  );
});
