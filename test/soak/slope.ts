export interface Slope {
  /** Least squares, in units of y a unit of x. */
  perX: number;
  /** Its standard error: noise alone gives a slope of up to about twice that. */
  error: number;
}

/** NaN for fewer than three points. */
export function slopeOf(points: readonly { x: number; y: number }[]): Slope {
  const n = points.length;
  const mean = (of: (point: { x: number; y: number }) => number) =>
    points.reduce((sum, point) => sum + of(point), 0) / n;
  const [meanX, meanY] = [mean(({ x }) => x), mean(({ y }) => y)];
  const spread = points.reduce((sum, { x }) => sum + (x - meanX) ** 2, 0);
  const perX = points.reduce((sum, { x, y }) => sum + (x - meanX) * (y - meanY), 0) / spread;
  const residual = points.reduce((sum, { x, y }) => sum + (y - meanY - perX * (x - meanX)) ** 2, 0);
  return n < 3 ? { perX: Number.NaN, error: Number.NaN } : { perX, error: Math.sqrt(residual / (n - 2) / spread) };
}
