import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { Code } from "@connectrpc/connect";
import { expect, test } from "@jest/globals";
import { ErrorReason } from "#gen/latchkey/v1/error_reason_pb";
import { CODES } from "../../src/keys/errors.ts";

const sources = readdirSync("src", { recursive: true, encoding: "utf8" })
  .filter((file) => file.endsWith(".ts"))
  .map((file) => join("src", file));

const FIRST = /^(?:import|export)\s[^;]*?from\s+"([^"]+)"/gms;
const EVER = /(?:^(?:import|export)\s[^;]*?from\s+|\bimport\()"([^"]+)"/gms;

/** All that a file imports, or with FIRST all that it can't be loaded without. */
const importsOf = (file: string, imports = EVER): string[] =>
  [...readFileSync(file, "utf8").matchAll(imports)].map((match) =>
    match[1]!.startsWith(".") ? relative("", join(dirname(file), match[1]!)) : match[1]!,
  );

/** The rooms and packages that each room may import, beside its own files and Node. Arrows point one way: each row names rows above it alone. */
const ROOMS: Record<string, string[]> = {
  keys: ["argon2", "lru-cache"],
  observe: ["pino", "pino-pretty", "prom-client"],
  fastpath: [],
  client: ["#gen/", "@connectrpc/", "@bufbuild/"],
  mongo: ["src/keys/", "src/observe/", "mongodb"],
  edge: ["src/keys/", "src/observe/", "src/fastpath/", "#gen/", "@connectrpc/", "@bufbuild/", "jose", "lru-cache"],
  embedded: ["src/observe/", "src/mongo/", "mongodb", "mongodb-memory-server-core/"],
  service: [
    ...["src/keys/", "src/observe/", "src/fastpath/", "src/mongo/", "src/edge/", "src/embedded/"],
    ...["#gen/", "mongodb", "zod"],
  ],
  cli: [
    ...["src/keys/", "src/observe/", "src/client/", "src/mongo/", "src/embedded/", "src/service/"],
    ...["#gen/", "@connectrpc/", "@bufbuild/", "commander", "jose"],
  ],
};
const roomOf = (file: string) => file.split("/")[1]!;

test("every file has a room, and the rooms' arrows point one way", () => {
  expect(new Set(sources.map(roomOf))).toEqual(new Set(Object.keys(ROOMS)));
  const rooms = Object.keys(ROOMS);
  for (const [index, room] of rooms.entries())
    for (const target of ROOMS[room]!.filter((name) => name.startsWith("src/")))
      expect(rooms.slice(0, index)).toContain(roomOf(target));
});

test.each(Object.entries(ROOMS))("%s imports only what lies below it", (room, allowed) => {
  const files = sources.filter((file) => roomOf(file) === room);
  expect(files.length).toBeGreaterThan(0);
  const strays = files.flatMap((file) =>
    importsOf(file)
      .filter((target) => ![`src/${room}/`, "node:", ...allowed].some((prefix) => target.startsWith(prefix)))
      .map((target) => `${file} imports ${target}`),
  );
  expect(strays).toEqual([]);
});

test("no file imports itself by way of others", () => {
  const circles: string[] = [];
  const done = new Set<string>();
  const visit = (file: string, path: readonly string[]) => {
    if (path.includes(file)) circles.push([...path.slice(path.indexOf(file)), file].join(" -> "));
    else if (!done.has(file)) {
      for (const target of importsOf(file).filter((name) => name.startsWith("src/"))) visit(target, [...path, file]);
      done.add(file);
    }
  };
  for (const file of sources) visit(file, []);
  expect(circles).toEqual([]);
});

test("whatever a file exports is used by another, but for what the client package publishes", () => {
  const tests = readdirSync("test", { recursive: true, encoding: "utf8" })
    .filter((file) => /\.(ts|js)$/.test(file) && !file.includes("node_modules"))
    .map((file) => join("test", file));
  const words = new Map(
    [...sources, ...tests].map((file) => [file, new Set(readFileSync(file, "utf8").match(/\w+/g))] as const),
  );
  const dead = sources
    .filter((file) => roomOf(file) !== "client")
    .flatMap((file) => {
      const names = [
        ...readFileSync(file, "utf8").matchAll(
          /^export (?:async |abstract )?(?:function\*?|const|let|class|interface|type|enum) (\w+)/gm,
        ),
      ];
      return names
        .map((match) => match[1]!)
        .filter((name) => ![...words].some(([other, seen]) => other !== file && seen.has(name)))
        .map((name) => `${file} exports ${name}`);
    });
  expect(dead).toEqual([]);
});

/** Files of more than 400 lines, and why they are. */
const LONG: Record<string, string> = {
  "src/fastpath/http2/connection.ts": "one state machine: every frame changes the same few counts",
  "src/mongo/key-store.ts": "reads and the transaction share the deadline, the retries and the proof of an index",
  "src/embedded/mongod.ts": "one process from its lock to its end, restarts included",
};

test("a file of more than 400 lines has a reason", () => {
  const long = sources.filter((file) => readFileSync(file, "utf8").split("\n").length > 401);
  expect(long.sort()).toEqual(Object.keys(LONG).sort());
});

test("a comment begins with its subject, and says the field's words", () => {
  const comments = sources.flatMap((file) =>
    [...readFileSync(file, "utf8").matchAll(/\/\*\*?[\s\S]*?\*\/|(?<=^|\s)\/\/ .*/g)].map((match) => ({
      file,
      text: match[0].replace(/^\/(?:\*\*?|\/)\s*(?:\*\s*)?/, ""),
    })),
  );
  expect(comments.length).toBeGreaterThan(500);
  const strays = comments.filter(
    ({ text }) =>
      /^(?:What|Who)\b/.test(text) ||
      /\b(?:hot (?:method|path|call)|stock|lane|untaken|intake|told|bidi)\b/i.test(text),
  );
  expect(strays.map(({ file, text }) => `${file}: ${text.slice(0, 80)}`)).toEqual([]);
});

test("no identifier is a house word", () => {
  const HOUSE =
    /\b\w*(?:(?<!naps)[hH]ot[A-Z]|[sS]tock|[lL]ane\b|[lL]ane[A-Z]|[uU]ntaken|[iI]ntake|[bB]idi(?!rectional))\w*\b/g;
  expect(sources.flatMap((file) => readFileSync(file, "utf8").match(HOUSE) ?? [])).toEqual([]);
});

test("fastpath knows nothing of what is served: no setting, no route and no name of the product", () => {
  const strays = sources
    .filter((file) => roomOf(file) === "fastpath")
    .filter((file) => /latchkey|LATCHKEY|\/v1\//i.test(readFileSync(file, "utf8")));
  expect(strays).toEqual([]);
});

test("keys imports neither http nor the network", () => {
  const network = sources
    .filter((file) => file.startsWith("src/keys/"))
    .filter((file) => importsOf(file).some((name) => /^node:(http|net|tls)/.test(name)));
  expect(network).toEqual([]);
});

test("help, the version and wrong usage of the command line load commander and nothing heavier", () => {
  const reached = new Set<string>(["src/cli/main.ts"]);
  for (const file of reached)
    if (file.startsWith("src/")) for (const target of importsOf(file, FIRST)) reached.add(target);
  expect([...reached].filter((name) => !/^(?:src\/|node:)/.test(name))).toEqual(["commander"]);
});

test("the database's error codes have names: no number of one stands outside their table", () => {
  const bare = sources
    .filter((file) => file.startsWith("src/mongo/") && file !== "src/mongo/server-errors.ts")
    .filter((file) =>
      /\bcode\b[^\n]{0,20}[=<>]==? *[1-9]|hasCode\([^)]*\d|new Set\(\[\s*\d/.test(readFileSync(file, "utf8")),
    );
  expect(bare).toEqual([]);
});

test("process.env is read in config.ts alone", () => {
  const readers = sources.filter((file) => readFileSync(file, "utf8").includes("process.env"));
  expect(readers).toEqual(["src/service/config.ts"]);
});

const pages = [
  ...["README.md", "SECURITY.md", "CHANGELOG.md"],
  ...["docs", "deploy"].flatMap((folder) =>
    readdirSync(folder, { recursive: true, encoding: "utf8" })
      .filter((name) => name.endsWith(".md") && !name.includes("node_modules"))
      .map((name) => join(folder, name)),
  ),
];

test("every link from one page to another leads to a heading that is there", () => {
  const headings = (page: string) =>
    [...readFileSync(page, "utf8").matchAll(/^#+ (.*)$/gm)].map((match) =>
      match[1]!
        .toLowerCase()
        .replaceAll(/[^\w\- ]/g, "")
        .trim()
        .replaceAll(" ", "-"),
    );
  const links = pages.flatMap((page) =>
    [...readFileSync(page, "utf8").matchAll(/\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)/g)].map((match) => ({
      link: `${page}: ${match[0]}`,
      target: match[1] === "" ? page : join(dirname(page), match[1]!),
      heading: match[2],
    })),
  );
  expect(links.length).toBeGreaterThan(40);
  const broken = links.filter(
    ({ target, heading }) => !existsSync(target) || (heading !== undefined && !headings(target).includes(heading)),
  );
  expect(broken.map(({ link }) => link)).toEqual([]);
});

test("every source file that a page names is there", () => {
  const named = pages.flatMap((page) => readFileSync(page, "utf8").match(/\bsrc\/[\w/-]+\.ts\b/g) ?? []);
  expect(named.length).toBeGreaterThan(20);
  expect(named.filter((file) => !sources.includes(file))).toEqual([]);
});

test("every metric and every event of the log stands in docs/operations.md, and none that is gone", () => {
  const page = readFileSync("docs/operations.md", "utf8");
  const [, metrics = "", log = ""] = /\n## Metrics\n([\s\S]*?)\n## Log\n([\s\S]*?)\n## /.exec(page)!;
  const firstCells = (text: string) =>
    [...text.matchAll(/^\| (`.*?) \|/gm)].flatMap((row) => row[1]!.match(/\w+/g) ?? []).sort();
  const code = sources.map((file) => readFileSync(file, "utf8")).join("\n");
  const named = (pattern: RegExp) => [...new Set([...code.matchAll(pattern)].map((match) => match[1]!))].sort();
  expect(firstCells(metrics)).toEqual(named(/"(latchkey_[a-z_]+)"/g));
  const events = [
    ...named(/\b(?:log\??\.\w+|log\[\w+\]|const how =)\(?\s*\{\s*event: "([a-z_]+)"/g),
    ...named(/\bevent: up \? "([a-z_]+)"/g),
    ...named(/\bevent: up \? "[a-z_]+" : "([a-z_]+)"/g),
    ...named(/\.\.\.\{ event: "([a-z_]+)"/g),
    ...named(/level: "warn", time: [^,]+, event: "([a-z_]+)"/g),
  ];
  expect(firstCells(log)).toEqual(events.sort());
});

type Reason = keyof typeof CODES;
const canonicalName = (code: number) => Code[code]!.replaceAll(/(?<!^)(?=[A-Z])/g, "_").toUpperCase();

test("every error reason stands in the table of docs/api.md, with its code", () => {
  const page = readFileSync("docs/api.md", "utf8");
  const reasons = Object.keys(ErrorReason).filter((name) => /^[A-Z]/.test(name) && name !== "UNSPECIFIED");
  expect(reasons.length).toBeGreaterThan(10);
  const rows = [...page.matchAll(/^\| `([A-Z_]+)` \| ([A-Z_]+)/gm)].map((row) => [row[1], row[2]] as const);
  expect(rows.map(([reason]) => reason).sort()).toEqual(reasons.sort());
  for (const [reason, code] of rows)
    expect(`${reason} ${code}`).toBe(`${reason} ${canonicalName(CODES[reason as Reason])}`);
});

test("every error reason of the domain is in the proto, and the other way round", () => {
  const reasons = Object.keys(ErrorReason).filter((name) => /^[A-Z]/.test(name) && name !== "UNSPECIFIED");
  expect(Object.keys(CODES).sort()).toEqual(reasons.sort());
});

test("every package with an install script is named in SECURITY.md and in allowScripts, and no other; argon2's alone is meant to run", () => {
  const { packages } = JSON.parse(readFileSync("package-lock.json", "utf8")) as {
    packages: Record<string, { hasInstallScript?: boolean }>;
  };
  const scripted = Object.keys(packages)
    .filter((path) => packages[path]!.hasInstallScript === true)
    .map((path) => path.slice(path.lastIndexOf("node_modules/") + "node_modules/".length));
  const [, section = ""] = readFileSync("SECURITY.md", "utf8").split("## Install scripts");
  const named = [...section.matchAll(/^\| (`.*`) \|/gm)].flatMap((row) => row[1]!.replaceAll("`", "").split(", "));
  expect(named.sort()).toEqual([...new Set(scripted)].sort());
  const { allowScripts } = JSON.parse(readFileSync("package.json", "utf8")) as {
    allowScripts: Record<string, boolean>;
  };
  expect(Object.keys(allowScripts).sort()).toEqual(named.sort());
  expect(Object.keys(allowScripts).filter((name) => allowScripts[name])).toEqual(["argon2"]);
});

// npm notes none of builds for other platforms than the one that the lockfile was made on.
test("every package in the lockfile has its hash, but for builds for one platform", () => {
  const { packages } = JSON.parse(readFileSync("package-lock.json", "utf8")) as {
    packages: Record<string, { integrity?: string; optional?: boolean; link?: boolean; os?: string[] }>;
  };
  const without = Object.keys(packages)
    .filter((path) => path.startsWith("node_modules/") && packages[path]!.link !== true)
    .filter((path) => packages[path]!.integrity === undefined && !packages[path]!.os);
  expect(without).toEqual([]);
});
