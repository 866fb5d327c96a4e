import type { Timestamp } from "mongodb";

/**
 * The newest moment of the database that this process has seen: an event, a heartbeat, a write of its own. Reads are asked
 * to be no older, so that a member that lags or was cut off can't answer them with what was already known to be past.
 */
export interface ClusterTime {
  advance(seen: Timestamp | undefined): void;
  readonly latest: Timestamp | undefined;
}

export function createClusterTime(): ClusterTime {
  let latest: Timestamp | undefined;
  return {
    advance(seen) {
      if (seen !== undefined && (latest === undefined || seen.greaterThan(latest))) latest = seen;
    },
    get latest() {
      return latest;
    },
  };
}
