/** A moment on both clocks: callers see the wall's, the monotonic one decides. */
export interface Moment {
  wallMs: number;
  monotonicMs: number;
}

interface FreshnessOptions {
  /** How old a proof may be for the view to be believed. */
  maxStalenessMs: number;
  /** How old a proof may be for records to be answered from while the database does not answer. 0: not at all. */
  outageGraceMs: number;
  /** Monotonic milliseconds. */
  clockMs?: () => number;
}

/**
 * Up to when the view is complete. Only proof moves it: silence proves nothing, since a stream on a primary that was cut
 * off from its majority goes on without an error.
 */
export interface Freshness {
  /** Every write acknowledged before `moment` is in the view. Earlier moments than the last are ignored. */
  prove(moment: Moment): void;
  /** Whether the view may be believed. `ofMs`: what rests on the proof of then; default: the last one. */
  isFresh(ofMs?: number): boolean;
  /** Whether records may be answered from during an outage. */
  isWithinGrace(ofMs?: number): boolean;
  /** Unix milliseconds of the last proof; 0 before the first. */
  readonly asOfMs: number;
  /** The last proof on the monotonic clock; -Infinity before the first. */
  readonly provenMs: number;
}

export function createFreshness({
  maxStalenessMs,
  outageGraceMs,
  clockMs = () => performance.now(),
}: FreshnessOptions): Freshness {
  let asOfMs = 0;
  let provenMs = Number.NEGATIVE_INFINITY;
  return {
    prove({ wallMs, monotonicMs }) {
      if (monotonicMs <= provenMs) return;
      provenMs = monotonicMs;
      asOfMs = wallMs;
    },
    isFresh: (ofMs = provenMs) => clockMs() - ofMs <= maxStalenessMs,
    isWithinGrace: (ofMs = provenMs) => clockMs() - ofMs <= outageGraceMs,
    get asOfMs() {
      return asOfMs;
    },
    get provenMs() {
      return provenMs;
    },
  };
}
