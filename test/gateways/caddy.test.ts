import { caddy } from "./gateways.ts";
import { matrixOf } from "./matrix.ts";

await matrixOf(caddy);
