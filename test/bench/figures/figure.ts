import type { Series } from "../arms.ts";
import type { Lab } from "../lab.ts";
import type { Row } from "../rows.ts";

/** A part of the benchmark that can be taken alone. */
export interface Figure {
  /** As `--only` has it. */
  name: string;
  title: string;
  take(lab: Lab): Promise<Findings>;
}

export interface Findings {
  series: Series[];
  rows: Row[];
}
