import { machineLine, type Report } from "./report.ts";
import { round } from "./rows.ts";
import { median, perCpuSecond } from "./statistics.ts";

interface Bar {
  label: string;
  text: string;
  /** Of the plot's width, 0 to 1. */
  length: number;
  /** Where the text may begin, likewise. */
  textFrom: number;
  colour: string;
}

const WIDTH = 1_100;
const LABEL_WIDTH = 430;
const PLOT_WIDTH = 400;
const LINE = 22;
/** Bars of what is to be reached end here: more than twice is not told apart. */
const MOST_SHARE = 2;
const [REACHED, MISSED, PLAIN] = ["#2e7d5b", "#b3402f", "#4a6fa5"];

/** The figures as bars: first each against what is to be reached, then each arm's answers per CPU-second. */
export function toSvg(report: Report): string {
  const rows = report.figures.flatMap((figure) => figure.rows).filter(({ share }) => share !== undefined);
  const shares = rows.map(
    ({ label, found, reach, share, reached }): Bar => ({
      ...{ label, text: `${found} (${reach})`, colour: reached ? REACHED! : MISSED! },
      ...{ length: Math.min(share!, MOST_SHARE) / MOST_SHARE, textFrom: 1 / MOST_SHARE },
    }),
  );
  const series = report.figures.flatMap((figure) => figure.series);
  const rates = series.map(({ samples }) => median(samples.map(perCpuSecond)));
  const most = Math.max(...rates, 1);
  const arms = series.map(
    ({ name }, index): Bar => ({
      ...{ label: name, text: round(rates[index]!), colour: PLAIN! },
      ...{ length: rates[index]! / most, textFrom: 0 },
    }),
  );

  const top = 60;
  const middle = top + (shares.length + 2) * LINE;
  const height = middle + (arms.length + 2) * LINE;
  const reachX = LABEL_WIDTH + PLOT_WIDTH / MOST_SHARE;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="12">`,
    `<rect width="${WIDTH}" height="${height}" fill="#ffffff"/>`,
    text(20, 20, machineLine(report), 'font-size="9" fill="#555555"'),
    text(20, top - 14, "What is to be reached (the line)", 'font-weight="bold"'),
    ...shares.flatMap((bar, index) => draw(bar, top + index * LINE)),
    `<line x1="${reachX}" x2="${reachX}" y1="${top - 4}" y2="${top + shares.length * LINE}" stroke="#222222"/>`,
    text(20, middle - 14, "Answers (or keys) per second of the server's CPU time", 'font-weight="bold"'),
    ...arms.flatMap((bar, index) => draw(bar, middle + index * LINE)),
    "</svg>",
    "",
  ].join("\n");
}

function draw({ label, text: value, length, textFrom, colour }: Bar, y: number): string[] {
  const width = Math.max(1, Math.round(length * PLOT_WIDTH));
  return [
    text(LABEL_WIDTH - 8, y + 12, label, 'text-anchor="end"'),
    `<rect x="${LABEL_WIDTH}" y="${y}" width="${width}" height="${LINE - 6}" fill="${colour}"/>`,
    text(LABEL_WIDTH + Math.max(width, textFrom * PLOT_WIDTH) + 6, y + 12, value, 'fill="#333333"'),
  ];
}

function text(x: number, y: number, content: string, attributes: string): string {
  const escaped = content.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return `<text x="${x}" y="${y}" ${attributes}>${escaped}</text>`;
}
