import { envoyHttp } from "./gateways.ts";
import { matrixOf } from "./matrix.ts";

await matrixOf(envoyHttp);
