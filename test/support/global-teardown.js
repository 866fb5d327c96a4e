import { rm } from "node:fs/promises";

export default async function globalTeardown() {
  await globalThis.latchkeyMongod.stop();
  await rm(process.env.TEST_DATA_DIR, { recursive: true, force: true });
}
