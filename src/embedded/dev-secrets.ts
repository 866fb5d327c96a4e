import { randomBytes } from "node:crypto";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { StartupError } from "../observe/startup-error.ts";

/** Secrets that an embedded service needs and nobody configured. Made once, kept in the data directory, readable by its owner only. */
export interface DevSecrets {
  jwtSecret: string;
  pepper: string;
  /** New with each pepper: under the id of another one a key's fingerprint would be wrong, instead of one that must be made anew. */
  pepperId: string;
  requestKey: string;
  /** New with each request key, like `pepperId`. */
  requestKeyId: string;
}

/** The id of the pepper and of the request key of data directories from before they had ids of their own. */
export const DEV_ID = "dev";

const FILE = "secrets.json";

/** The secrets of this data directory, or undefined when there are none yet. */
export function readDevSecrets(dataDir: string): DevSecrets | undefined {
  const file = join(dataDir, FILE);
  try {
    const parsed = JSON.parse(readFileSync(file, "utf8")) as Partial<DevSecrets>;
    if (typeof parsed.jwtSecret === "string" && typeof parsed.pepper === "string") {
      // Files of before there were request keys have none; the service that holds the directory adds one.
      return { requestKey: "", pepperId: DEV_ID, requestKeyId: DEV_ID, ...parsed } as DevSecrets;
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    if (error instanceof SyntaxError) throw damaged(file);
    throw new StartupError(
      `${file} can't be read (${(error as Error).message}). Run as the user who owns the data directory.`,
    );
  }
  throw damaged(file);
}

/** As `readDevSecrets`, making them if need be. Only the holder of the data directory may call this. */
export function ensureDevSecrets(dataDir: string): DevSecrets {
  const present = readDevSecrets(dataDir);
  if (present !== undefined && present.requestKey !== "") return present;
  const made: DevSecrets = {
    jwtSecret: present?.jwtSecret ?? randomBytes(48).toString("base64url"),
    pepper: present?.pepper ?? randomBytes(32).toString("base64"),
    pepperId: present?.pepperId ?? newId(),
    requestKey: randomBytes(32).toString("base64"),
    requestKeyId: newId(),
  };
  const file = join(dataDir, FILE);
  // Written aside and renamed, so that a crash leaves the whole file or none.
  writeFileSync(`${file}.new`, `${JSON.stringify(made, null, 2)}\n`, { mode: 0o600 });
  renameSync(`${file}.new`, file);
  return made;
}

function newId(): string {
  return `${DEV_ID}-${randomBytes(4).toString("hex")}`;
}

function damaged(file: string): StartupError {
  return new StartupError(
    `${file} is damaged. Restore it, or delete it: user tokens are then void, and each key costs one argon2 to verify again.`,
  );
}
