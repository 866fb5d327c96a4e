import { apache } from "./gateways.ts";
import { matrixOf } from "./matrix.ts";

await matrixOf(apache);
