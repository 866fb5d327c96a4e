import { envoyGrpc } from "./gateways.ts";
import { matrixOf } from "./matrix.ts";

await matrixOf(envoyGrpc);
