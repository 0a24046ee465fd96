/** A point of a curve. */
export interface CurvePoint {
  step: number;
  loss: number;
}

const WIDTH = 860;
const HEIGHT = 420;
const LEFT = 64;
const RIGHT = 20;
const TOP = 44;
const BOTTOM = 48;
/** More points than pixels only make the file larger. */
const MOST_POINTS = 2000;
/** The smoothed curve is the mean of a twentieth of the run on each side, but of no more steps than this. */
const MOST_NEIGHBOURS = 50;

/** The loss of each step and its smoothed course, as an SVG that needs nothing else. */
export function lossChart(points: readonly CurvePoint[], title: string): string {
  const finite = points.filter(({ loss }) => Number.isFinite(loss));
  const smooth = smoothed(finite);
  const shown = [thin(finite), thin(smooth)] as const;
  const first = finite[0]?.step ?? 0;
  const last = Math.max(finite.at(-1)?.step ?? 1, first + 1);
  const { least, most } = range(finite);
  const x = (step: number) => LEFT + ((step - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const y = (loss: number) =>
    TOP + ((most - Math.min(Math.max(loss, least), most)) / (most - least)) * (HEIGHT - TOP - BOTTOM);
  const path = (curve: readonly CurvePoint[]) =>
    curve
      .map(({ step, loss }, index) => `${index === 0 ? 'M' : 'L'}${x(step).toFixed(1)} ${y(loss).toFixed(1)}`)
      .join('');
  const horizontal = ticks(least, most, 6).map(
    (loss) =>
      `<line class="grid" x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${y(loss).toFixed(1)}" y2="${y(loss).toFixed(1)}"/>` +
      `<text x="${LEFT - 8}" y="${(y(loss) + 4).toFixed(1)}" text-anchor="end">${label(loss)}</text>`,
  );
  const vertical = ticks(first, last, 8)
    .filter(Number.isInteger)
    .map(
      (step) =>
        `<line class="grid" x1="${x(step).toFixed(1)}" x2="${x(step).toFixed(1)}" y1="${TOP}" y2="${HEIGHT - BOTTOM}"/>` +
        `<text x="${x(step).toFixed(1)}" y="${HEIGHT - BOTTOM + 18}" text-anchor="middle">${label(step)}</text>`,
    );
  const end = smooth.at(-1);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img" font-family="system-ui, sans-serif" font-size="12">
<title>${escapeMarkup(title)}</title>
<style>text{fill:#444}.grid{stroke:#e4e4e4}.each{fill:none;stroke:#9bb8e0;stroke-width:1}.smooth{fill:none;stroke:#1f5fbf;stroke-width:2.2;stroke-linejoin:round}</style>
<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>
<text x="${LEFT}" y="24" font-size="15" font-weight="600">${escapeMarkup(title)}</text>
<text x="${WIDTH - RIGHT}" y="24" text-anchor="end">${end === undefined ? 'no steps yet' : `smoothed loss at step ${end.step}: ${end.loss.toPrecision(4)}`}</text>
${horizontal.join('\n')}
${vertical.join('\n')}
<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${HEIGHT - BOTTOM}" y2="${HEIGHT - BOTTOM}" stroke="#888"/>
<line x1="${LEFT}" x2="${LEFT}" y1="${TOP}" y2="${HEIGHT - BOTTOM}" stroke="#888"/>
<text x="${(LEFT + WIDTH - RIGHT) / 2}" y="${HEIGHT - 10}" text-anchor="middle">step</text>
<text transform="translate(16 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">loss</text>
<path class="each" d="${path(shown[0])}"/>
<path class="smooth" d="${path(shown[1])}"/>
</svg>
`;
}

/** Means of the steps around each: such a curve does not lag behind. */
export function smoothed(points: readonly CurvePoint[]): CurvePoint[] {
  const neighbours = Math.min(Math.ceil(points.length / 20), MOST_NEIGHBOURS);
  const sums = [0];
  for (const { loss } of points) sums.push((sums.at(-1) as number) + loss);
  return points.map(({ step }, index) => {
    const start = Math.max(index - neighbours, 0);
    const end = Math.min(index + neighbours + 1, points.length);
    return { step, loss: ((sums[end] as number) - (sums[start] as number)) / (end - start) };
  });
}

/** For text and attribute values of XML and HTML. */
export function escapeMarkup(text: string): string {
  return text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}

/** Losses from 0 or a bit below the least to a bit above all but the rarest peaks. */
function range(points: readonly CurvePoint[]): { least: number; most: number } {
  const losses = points.map(({ loss }) => loss).sort((a, b) => a - b);
  const low = losses[0] ?? 0;
  // One step in a hundred may leave the picture at the top, so that a spike does not flatten everything else.
  const high = losses[Math.ceil(losses.length * 0.99) - 1] ?? 1;
  const most = high + Math.max((high - low) * 0.05, Math.abs(high) * 1e-3, 1e-6);
  const least = low >= 0 && low < high * 0.5 ? 0 : low - Math.max((high - low) * 0.05, Math.abs(low) * 1e-3);
  return { least, most };
}

/** Round numbers within a range, about `count` of them. */
function ticks(least: number, most: number, count: number): number[] {
  const rough = (most - least) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10) * power;
  const first = Math.ceil(least / step - 1e-9);
  return Array.from({ length: Math.floor(most / step + 1e-9) - first + 1 }, (_, index) =>
    Number(((first + index) * step).toPrecision(12)),
  );
}

function label(value: number): string {
  return Number.isInteger(value) ? value.toLocaleString('en') : String(Number(value.toPrecision(6)));
}

/** Means of neighbours, where there are more points than the picture can show. */
function thin(points: readonly CurvePoint[]): CurvePoint[] {
  const size = Math.ceil(points.length / MOST_POINTS);
  if (size <= 1) return [...points];
  return Array.from({ length: Math.ceil(points.length / size) }, (_, index) => {
    const group = points.slice(index * size, (index + 1) * size);
    const sum = group.reduce((total, { loss }) => total + loss, 0);
    return { step: (group.at(-1) as CurvePoint).step, loss: sum / group.length };
  });
}
