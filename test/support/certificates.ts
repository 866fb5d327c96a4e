import { createSign, generateKeyPairSync, type KeyObject, randomBytes, X509Certificate } from "node:crypto";

/** A certificate and its key, PEM. */
export interface TestIdentity {
  cert: string;
  key: string;
}

export interface TestCa {
  cert: string;
  issue(subject: Subject): TestIdentity;
}

export interface Subject {
  cn?: string;
  /** Alternative names. */
  uris?: string[];
  dns?: string[];
  ips?: string[];
  /** What it is good for. Default: anything. */
  usage?: "server" | "client";
  /** Its key is RSA's. Default: one on P-256. */
  rsa?: boolean;
  from?: Date;
  until?: Date;
}

const HOUR_MS = 3_600_000;
const OID = {
  ecdsaWithSha256: "2a8648ce3d040302",
  commonName: "550403",
  basicConstraints: "551d13",
  alternativeName: "551d11",
  extendedKeyUsage: "551d25",
  server: "2b06010505070301",
  client: "2b06010505070302",
};

/** Signs certificates as a real authority does; Node itself can't make any. */
export function createCa(cn = `ca ${randomBytes(4).toString("hex")}`, until?: Date): TestCa {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const isCa = extension(OID.basicConstraints, sequence(der(0x01, Buffer.of(0xff))));
  return {
    cert: certificate({
      issuer: cn,
      signedWith: privateKey,
      publicKey,
      subject: { cn, ...(until && { until }) },
      extensions: [isCa],
    }),
    issue(subject) {
      const keys = subject.rsa
        ? generateKeyPairSync("rsa", { modulusLength: 2048 })
        : generateKeyPairSync("ec", { namedCurve: "P-256" });
      const names = [
        ...(subject.uris ?? []).map((uri) => der(0x86, Buffer.from(uri))),
        ...(subject.dns ?? []).map((name) => der(0x82, Buffer.from(name))),
        ...(subject.ips ?? []).map((ip) => der(0x87, Buffer.from(ip.split(".").map(Number)))),
      ];
      const extensions = [
        ...(names.length > 0 ? [extension(OID.alternativeName, sequence(...names))] : []),
        ...(subject.usage ? [extension(OID.extendedKeyUsage, sequence(oid(OID[subject.usage])))] : []),
      ];
      const { publicKey } = keys;
      return {
        cert: certificate({ issuer: cn, signedWith: privateKey, publicKey, subject, extensions }),
        key: keys.privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
      };
    },
  };
}

interface Parts {
  issuer: string;
  signedWith: KeyObject;
  publicKey: KeyObject;
  subject: Subject;
  extensions: Buffer[];
}

function certificate({ issuer, signedWith, publicKey, subject, extensions }: Parts): string {
  const { from = new Date(Date.now() - HOUR_MS), until = new Date(Date.now() + HOUR_MS) } = subject;
  const algorithm = sequence(oid(OID.ecdsaWithSha256));
  const content = sequence(
    der(0xa0, der(0x02, Buffer.of(2))),
    der(0x02, Buffer.concat([Buffer.of(1), randomBytes(8)])),
    ...[algorithm, nameOf(issuer), sequence(time(from), time(until)), nameOf(subject.cn)],
    publicKey.export({ type: "spki", format: "der" }),
    ...(extensions.length > 0 ? [der(0xa3, sequence(...extensions))] : []),
  );
  const signature = createSign("sha256").update(content).sign(signedWith);
  return new X509Certificate(
    sequence(content, algorithm, der(0x03, Buffer.concat([Buffer.of(0), signature]))),
  ).toString();
}

function nameOf(cn: string | undefined): Buffer {
  if (cn === undefined) return sequence();
  return sequence(der(0x31, sequence(oid(OID.commonName), der(0x0c, Buffer.from(cn)))));
}

function extension(id: string, value: Buffer): Buffer {
  return sequence(oid(id), der(0x04, value));
}

function time(date: Date): Buffer {
  return der(0x18, Buffer.from(date.toISOString().replace(/[-:T]|\.\d+/g, "")));
}

function oid(hex: string): Buffer {
  return der(0x06, Buffer.from(hex, "hex"));
}

function sequence(...parts: Buffer[]): Buffer {
  return der(0x30, Buffer.concat(parts));
}

function der(tag: number, content: Buffer): Buffer {
  const { length } = content;
  const size = length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >>> 8, length & 0xff];
  return Buffer.concat([Buffer.of(tag, ...size), content]);
}
