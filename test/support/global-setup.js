import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startMongod } from "../../dist/src/embedded/mongod.js";
import { readConfig } from "../../dist/src/service/config.js";

/** One real mongod for all tests; each test file uses a database of its own. */
export default async function globalSetup() {
  const dataDir = mkdtempSync(join(tmpdir(), "latchkey test "));
  const { cacheDir, path, mongodBinary: binary } = readConfig({ ...process.env, MONGODB_URI: "" });
  const mongod = await startMongod({
    ...{ dataDir, cacheDir, path, binary },
    say: (line) => process.stderr.write(`${line}\n`),
    onLost: (error) => {
      throw error;
    },
  });
  process.env.TEST_MONGODB_URI = mongod.uri;
  process.env.TEST_DATA_DIR = dataDir;
  globalThis.latchkeyMongod = mongod;
}
