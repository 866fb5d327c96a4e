// argon2id alone, with the service's parameters.
import { randomBytes } from "node:crypto";
import { argon2id, hash, verify } from "argon2";
import { measureOnDemand, type ProgramOptions } from "./interval.ts";

const options: ProgramOptions = JSON.parse(process.argv[2] ?? "");
const secret = randomBytes(32).toString("hex");
const stored = await hash(secret, { type: argon2id, memoryCost: 19 * 1024, timeCost: 2, parallelism: 1 });
await measureOnDemand(options, () => verify(stored, secret));
