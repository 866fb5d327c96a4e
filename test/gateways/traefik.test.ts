import { traefik } from "./gateways.ts";
import { matrixOf } from "./matrix.ts";

await matrixOf(traefik);
