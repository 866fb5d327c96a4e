import { haproxy } from "./gateways.ts";
import { matrixOf } from "./matrix.ts";

await matrixOf(haproxy);
