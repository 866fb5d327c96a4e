import { springCloudGateway } from "./gateways.ts";
import { matrixOf } from "./matrix.ts";

await matrixOf(springCloudGateway);
