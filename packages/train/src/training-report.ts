import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { escapeMarkup, lossChart, smoothed } from './loss-chart.js';
import type { RecordFailure, StepReport } from './step-report.js';
import { durationText, sizeText } from './text.js';

/** What a report tells of the run besides its steps. */
export interface ReportedRun {
  title: string;
  /** Facts for the table on top, in order. */
  facts: readonly (readonly [name: string, value: string])[];
}

/** Writes `loss.svg` and `report.html` into the run's folder; the page needs no other file. */
export function writeTrainingReport(
  folder: string,
  { title, facts }: ReportedRun,
  reports: readonly StepReport[],
): void {
  const points = reports.flatMap(({ step, loss }) => (loss === null ? [] : [{ step, loss }]));
  const chart = lossChart(points, title);
  writeFileSync(join(folder, 'loss.svg'), chart);

  const failures = reports.flatMap((report) => report.failures);
  const sum = (of: (report: StepReport) => number) =>
    reports.reduce((total, report) => total + of(report), 0);
  const seconds = sum((report) => report.seconds);
  const end = smoothed(points).at(-1);
  const rows: (readonly [string, string])[] = [
    ...facts,
    ['steps', String(reports.length)],
    ['loss, first step', points[0]?.loss.toPrecision(5) ?? '–'],
    ['loss, smoothed, last step', end?.loss.toPrecision(5) ?? '–'],
    ['samples', String(sum((report) => report.samples))],
    ['tokens', String(sum((report) => report.tokens))],
    ['frames', String(sum((report) => report.frames))],
    ['time', durationText(seconds)],
    ['tokens a second', seconds > 0 ? (sum((report) => report.tokens) / seconds).toFixed(1) : '–'],
    ['frames a second', seconds > 0 ? (sum((report) => report.frames) / seconds).toFixed(1) : '–'],
    ['waiting for media', durationText(sum((report) => report.dataSeconds))],
    ['peak memory', sizeText(Math.max(0, ...reports.map((report) => report.peakRssBytes)))],
    ['records that failed', String(failures.length)],
  ];
  writeFileSync(
    join(folder, 'report.html'),
    `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>${escapeMarkup(title)}</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:900px;margin:2rem auto;padding:0 1rem}
svg{max-width:100%;height:auto}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #eee}
</style>
<h1>${escapeMarkup(title)}</h1>
${chart.trimEnd()}
<table>
${rows.map(([name, value]) => `<tr><th>${escapeMarkup(name)}</th><td>${escapeMarkup(value)}</td></tr>`).join('\n')}
</table>
${failureTable(failures)}</html>
`,
  );
}

/** More rows than this help nobody; `metrics.jsonl` has them all. */
const MOST_FAILURES = 500;

function failureTable(failures: readonly RecordFailure[]): string {
  if (failures.length === 0) return '';
  const shown = failures.slice(0, MOST_FAILURES);
  const rest = failures.length - shown.length;
  return `<h2>Records that failed</h2>
<table>
${shown.map(({ id, reason }) => `<tr><td>${escapeMarkup(id)}</td><td>${escapeMarkup(reason)}</td></tr>`).join('\n')}
</table>
${rest > 0 ? `<p>${rest} more are in metrics.jsonl.</p>\n` : ''}`;
}
