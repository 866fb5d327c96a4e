import { expect, test } from "@jest/globals";
import { MongoClient } from "mongodb";
import { OPTIONS } from "mongodb/lib/connection_string.js";
import { openVerifyClient } from "../../src/mongo/connection.ts";
import { judgeUri, type OptionFate, URI_OPTIONS } from "../../src/mongo/connection-string.ts";
import { readConfig } from "../../src/service/config.ts";

const PLACE = "mongodb://user:canary@db.internal:27017,db2.internal/records";
const namesOf = (fate: OptionFate) => [...URI_OPTIONS].filter(([, own]) => own === fate).map(([name]) => name);

/** Values that the driver takes, other than its own and our defaults. */
const VALUES: Record<string, string> = {
  ...{
    readConcernLevel: "local",
    w: "0",
    wtimeout: "7",
    wtimeoutMS: "7",
    journal: "false",
    j: "false",
    fsync: "false",
  },
  ...{ readPreference: "secondary", readPreferenceTags: "dc:a", maxStalenessSeconds: "120", localThresholdMS: "7" },
  ...{ retryReads: "false", retryWrites: "false", maxAdaptiveRetries: "7", enableOverloadRetargeting: "true" },
  ...{ serverMonitoringMode: "poll", noDelay: "false", compressors: "snappy", zlibCompressionLevel: "9" },
};

test("every option that the driver knows is in the table, and no other", () => {
  expect([...URI_OPTIONS.keys()].sort()).toEqual(Object.keys(OPTIONS).sort());
});

test("what Latchkey sets itself is left out of MONGODB_URI, whatever it says and in whatever case", () => {
  const options = (uri: string) => JSON.stringify(openVerifyClient(uri).options);
  const plain = `${PLACE}?replicaSet=rs0`;
  for (const name of namesOf("overridden"))
    for (const spelt of [name, name.toUpperCase()]) {
      const uri = `${plain}&${spelt}=${VALUES[name] ?? "7"}`;
      expect(judgeUri(uri)).toMatchObject({ overridden: [spelt], refused: [] });
      expect(options(uri)).toBe(options(plain));
    }
});

test("an option of MONGODB_URI that is refused is refused at the start by its name, and one that nobody knows too", () => {
  const secrets = { LATCHKEY_JWT_SECRET: "s".repeat(40), LATCHKEY_PEPPERS: `p:${Buffer.alloc(32).toString("base64")}` };
  const start = (uri: string) => () => readConfig({ ...secrets, MONGODB_URI: uri });
  for (const name of [...namesOf("refused"), "maxPoolSzie", "tls "]) {
    expect(start(`${PLACE}?replicaSet=rs0&${name}=true`)).toThrow(`it must not have the option ${name}, `);
    expect(start(`${PLACE}?${name}=true`)).not.toThrow("canary");
  }
  for (const text of ["", " ", "db:27017", "mongodb:/db", "http://db/", `"${PLACE}"`, " mongodb://db/"].filter(Boolean))
    expect(start(text)).toThrow(/MONGODB_URI (?:is|has) .*(?:it must be mongodb:|set it|leave them out)/);
  expect(start(`${PLACE}?w=majority&retryWrites=true&appName=Cluster0`)).not.toThrow();
});

test("what says where, as whom and how MongoDB is reached comes to the driver as it was written", () => {
  for (const rest of [
    ...["", "/", "/records", "?replicaSet=rs0", "/?authSource=%24external&authMechanism=MONGODB-X509&tls=true"],
    ...["/a%20b?tlsCAFile=%2Fetc%2Fca+1.pem&appName=a%26b", "/?readPreference=secondary&proxyHost=p%40q&w=1"],
  ]) {
    const uri = `mongodb://us%40er${rest.includes("X509") ? "" : ":p%3Fwd"}@h1:1,[::1]:2${rest}`;
    const { hosts, credentials, dbName, tls, tlsCAFile, replicaSet, proxyHost, appName } =
      openVerifyClient(uri).options;
    const own = new MongoClient(uri).options;
    expect({ hosts, credentials, dbName, tls, tlsCAFile, replicaSet, proxyHost }).toEqual({
      ...{ hosts: own.hosts, credentials: own.credentials, dbName: own.dbName, tls: own.tls, tlsCAFile: own.tlsCAFile },
      ...{ replicaSet: own.replicaSet, proxyHost: own.proxyHost },
    });
    expect(appName).toBe(own.appName ?? "latchkey");
  }
});

test("what the driver says of a connection string is repeated, unless it quotes what may be secret", () => {
  const said = (uri: string) => {
    try {
      return openVerifyClient(uri);
    } catch (error) {
      return (error as Error).message;
    }
  };
  expect(said(`${PLACE}?tls=yes`)).toContain('(tls/ssl must be either "true" or "false")');
  expect(said(`${PLACE}?replicaSet=a&replicaSet=b`)).toContain("cannot appear more than once");
  for (const uri of [
    "mongodb://user:canary@@@",
    "mongodb://user:can@ary@db/",
    `${PLACE}?tlsCertificateKeyFilePassword=canary&tls=canary`,
    "mongodb://u:canary%@db/",
  ])
    expect(said(uri)).toMatch(/^MONGODB_URI is not a valid MongoDB connection string(?!.*(?:canary|ary@)).*Expected/);
});
