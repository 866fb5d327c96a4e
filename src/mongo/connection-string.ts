/** Where the deployment is, who asks and how it is reached: whoever sets MONGODB_URI says so. */
const KEPT = [
  ...["appName", "replicaSet", "directConnection"],
  ...["authMechanism", "authMechanismProperties", "authSource"],
  ...["tls", "ssl", "tlsCAFile", "tlsCRLFile", "tlsCertificateKeyFile", "tlsCertificateKeyFilePassword"],
  ...["tlsAllowInvalidCertificates", "tlsAllowInvalidHostnames", "tlsInsecure", "servername"],
  ...["proxyHost", "proxyPort", "proxyUsername", "proxyPassword"],
  ...["srvMaxHosts", "srvServiceName", "srvAllowedHostsSuffix"],
  ...["family", "autoSelectFamily", "autoSelectFamilyAttemptTimeout"],
  // Networks forget connections that are silent for long. Those that a pool always has are made anew.
  "maxIdleTimeMS",
];

/** Options that Latchkey's promises rest on, and that it sets itself. Connection strings that others share may have them: left out. */
const OVERRIDDEN = [
  // A change stream takes no read concern but `majority`; a write that no majority keeps is none.
  ...["readConcernLevel", "w", "wtimeout", "wtimeoutMS", "journal", "j", "fsync"],
  // Each read says which member it needs.
  ...["readPreference", "readPreferenceTags", "maxStalenessSeconds", "localThresholdMS"],
  // Repeats end with the call's deadline.
  ...["retryReads", "retryWrites", "maxAdaptiveRetries", "enableOverloadRetargeting"],
  // Verify must not wait behind transactions, nor either of them for a connection that is never made.
  ...["minPoolSize", "maxPoolSize", "maxConnecting", "waitQueueTimeoutMS"],
  // How soon an outage is noticed.
  ...["connectTimeoutMS", "socketTimeoutMS", "serverSelectionTimeoutMS", "timeoutMS"],
  ...["heartbeatFrequencyMS", "minHeartbeatFrequencyMS", "serverMonitoringMode", "noDelay"],
  // Messages are small, and the time of a Verify counts.
  ...["compressors", "zlibCompressionLevel"],
];

/** Of programs that use the driver: as text they are nothing, or change what is read and written, or need what we do not do. */
const REFUSED = [
  ...["loadBalanced", "serverApi", "auth", "dbName", "autoEncryption", "readConcern", "writeConcern"],
  ...["bsonRegExp", "checkKeys", "enableUtf8Validation", "fieldsAsRaw", "forceServerObjectId", "ignoreUndefined"],
  ...["pkFactory", "promoteBuffers", "promoteLongs", "promoteValues", "raw", "serializeFunctions", "useBigInt64"],
  ...["connectionType", "driverInfo", "index", "minInternalBufferSize", "monitorCommands", "name", "runtimeAdapters"],
  ...[
    "mongodbLogComponentSeverities",
    "mongodbLogMaxDocumentLength",
    "mongodbLogPath",
    "srvHostValidator",
    "srvPoller",
  ],
  ...["ALPNProtocols", "SNICallback", "allowPartialTrustChain", "ca", "cert", "checkServerIdentity", "ciphers", "crl"],
  ...["ecdhCurve", "enableTrace", "key", "minDHSize", "passphrase", "pfx", "pskCallback", "rejectUnauthorized"],
  ...["requestCert", "requestOCSP", "secureContext", "secureProtocol", "session", "hints", "keepAliveInitialDelay"],
  ...["localAddress", "localPort", "lookup", "__skipPingOnConnect"],
];

export type OptionFate = "kept" | "overridden" | "refused";

/** Every option of the driver (7.9) and what becomes of it in MONGODB_URI. Case does not count there. */
export const URI_OPTIONS: ReadonlyMap<string, OptionFate> = new Map([
  ...KEPT.map((name) => [name, "kept"] as const),
  ...OVERRIDDEN.map((name) => [name, "overridden"] as const),
  ...REFUSED.map((name) => [name, "refused"] as const),
]);

const FATES = new Map([...URI_OPTIONS].map(([name, fate]) => [name.toLowerCase(), fate]));

/** Whether the driver knows an option of this name, in any case. */
export function isUriOption(name: string): boolean {
  return FATES.has(name.toLowerCase());
}

interface JudgedUri {
  /** As the driver may have it: without the overridden options. */
  uri: string;
  /** Names as they stand in it. */
  kept: string[];
  overridden: string[];
  /** Options that are refused, or that nobody knows. */
  refused: string[];
}

/** undefined: no connection string. What is in it beside options is the driver's to judge. */
export function judgeUri(text: string): JudgedUri | undefined {
  // As the driver splits it: an `@` ends the user and password, in which a `?` may stand.
  const [, place, query = ""] = /^(mongodb(?:\+srv)?:\/\/(?:[^@]*@)?[^/?@]+[^?]*)(?:\?(.*))?$/s.exec(text) ?? [];
  if (place === undefined) return undefined;
  const options = new URLSearchParams(query);
  const names = [...new Set(options.keys())];
  const ofFate = (fate: OptionFate) => names.filter((name) => (FATES.get(name.toLowerCase()) ?? "refused") === fate);
  const [kept, overridden, refused] = [ofFate("kept"), ofFate("overridden"), ofFate("refused")];
  for (const name of overridden) options.delete(name);
  return { uri: options.size === 0 ? place : `${place}?${options}`, kept, overridden, refused };
}
