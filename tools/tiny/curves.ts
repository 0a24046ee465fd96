// Draws the losses of the embedded model's courses: `pnpm curves:tiny [folder]` behind `pnpm train:tiny [folder]`.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import process from 'node:process';
import { type CurvePoint, lossChart } from '../../packages/train/dist/loss-chart.js';

const root = resolve(import.meta.dirname, '../..');
const folder = resolve(process.argv[2] ?? join(root, '.tiny'));
const charts = join(root, 'packages/tiny/curves');

/** Courses in the order in which they run. */
const COURSES = ['vision', 'text', 'language', 'query', 'stage1', 'stage2', 'stage3'];
/** A chart in a README is a few hundred pixels wide. */
const MOST_POINTS = 300;

mkdirSync(charts, { recursive: true });
for (const course of COURSES) {
  const lines = readFileSync(join(folder, course, 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n');
  const points = lines.map((line) => JSON.parse(line) as CurvePoint);
  const size = Math.ceil(points.length / MOST_POINTS);
  const means = Array.from({ length: Math.floor(points.length / size) }, (_, index) => {
    const group = points.slice(index * size, (index + 1) * size);
    const sum = group.reduce((total, { loss }) => total + loss, 0);
    return { step: group.at(-1)?.step ?? 0, loss: Number((sum / group.length).toPrecision(5)) };
  });
  const title = size === 1 ? course : `${course}, means of ${size} steps`;
  writeFileSync(join(charts, `${course}.svg`), lossChart(means, title));
}
