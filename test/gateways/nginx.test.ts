import { nginx } from "./gateways.ts";
import { matrixOf } from "./matrix.ts";

await matrixOf(nginx);
