import Sequencer from "@jest/test-sequencer";

/**
 * The files that take longest, in the order in which they begin: a long one at the end would keep one worker busy while the
 * others have nothing left. Jest itself knows how long a file takes only where it has run before. The first two load the
 * machine most, and must not meet: between them stands what mostly waits.
 */
const FIRST = [
  ...["faults/histories", "integration/process", "integration/embedded-mongod", "soak/soak", "integration/freshness"],
  ...["clients/clients", "gateways/traefik", "faults/three-members", "integration/first-hour", "integration/mtls"],
  ...["integration/gateway-outage", "integration/workers", "gateways/envoy-grpc", "integration/schema"],
  ...["integration/rolling-restart", "integration/watch-rpc", "gateways/envoy-http", "gateways/haproxy"],
];

export default class SlowestFirst extends Sequencer {
  sort(tests) {
    const rank = ({ path }) => {
      const index = FIRST.findIndex((name) => path.endsWith(`/test/${name}.test.ts`));
      return index < 0 ? FIRST.length : index;
    };
    return super.sort(tests).sort((one, other) => rank(one) - rank(other));
  }
}
