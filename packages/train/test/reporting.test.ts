import {
  appendFileSync,
  closeSync,
  existsSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { lossChart, smoothed } from '../dist/loss-chart.js';
import { MetricsLog } from '../dist/metrics-log.js';
import type { StepReport } from '../dist/step-report.js';
import { TerminalProgress } from '../dist/terminal-progress.js';
import { countText, durationText, sizeText } from '../dist/text.js';
import { writeTrainingReport } from '../dist/training-report.js';
import { writing } from '../dist/written-file.js';
import { temporaryFolder } from './temporary-folder.js';

const folder = temporaryFolder();

function report(step: number, loss: number | null = 4 / step): StepReport {
  return {
    ...{
      step,
      steps: 200,
      epoch: step / 200,
      loss,
      learningRate: 1e-3,
      gradientNorm: 1,
      samples: 4,
      tokens: 100,
    },
    ...{ frames: 8, seconds: 0.5, dataSeconds: 0.1, tokensPerSecond: 200, framesPerSecond: 16 },
    ...{ remainingSeconds: 100, peakRssBytes: 123_456_789, failures: [] },
  };
}

describe('metrics.jsonl', () => {
  it('goes on behind the resumed step', () => {
    const path = join(folder, 'metrics.jsonl');
    {
      using log = new MetricsLog(path, 0);
      expect(log.earlier).toEqual([]);
      for (let step = 1; step <= 9; step += 1) log.append(report(step));
    }
    appendFileSync(path, '{"step":10,"lo');
    using log = new MetricsLog(path, 6);
    expect(log.earlier).toEqual([1, 2, 3, 4, 5, 6].map((step) => report(step)));
    log.append(report(7, 3));
    const steps = readFileSync(path, 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(steps.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6, 7]);
    expect(steps[6].loss).toBe(3);
  });

  it('says which line is damaged', () => {
    const path = join(folder, 'damaged.jsonl');
    writeFileSync(path, `${JSON.stringify(report(1))}\nnonsense\n`);
    expect(() => new MetricsLog(path, 5)).toThrow(expect.objectContaining({ code: 'DATA_INVALID' }));
    expect(() => new MetricsLog(path, 5)).toThrow(/line 2/);
  });
});

describe('the chart', () => {
  it('is well-formed and within its frame', () => {
    for (const losses of [
      [],
      [3],
      [2, 2, 2],
      [0, 0],
      Array.from({ length: 5000 }, (_, i) => 4 / (i + 1)),
      [1, Number.NaN, 1e9, 2],
    ]) {
      const svg = lossChart(
        losses.map((loss, index) => ({ step: index + 1, loss })),
        'a < b & "c"',
      );
      expect(svg).toContain('<title>a &#60; b &#38; &#34;c&#34;</title>');
      expect(svg).not.toContain('NaN');
      expect(svg.length).toBeLessThan(150_000);
      const [, opened, closed] = [svg, svg.match(/<[a-z]/g)?.length, svg.match(/<\/[a-z]|\/>/g)?.length];
      expect(opened).toBe(closed);
      for (const [, x, y] of svg.matchAll(/[ML](-?[\d.]+) (-?[\d.]+)/g)) {
        expect(Number(x)).toBeGreaterThanOrEqual(0);
        expect(Number(x)).toBeLessThanOrEqual(860);
        expect(Number(y)).toBeGreaterThanOrEqual(0);
        expect(Number(y)).toBeLessThanOrEqual(420);
      }
    }
  });

  it('smooths', () => {
    expect(smoothed([]).length).toBe(0);
    const means = smoothed([1, 2, 6].map((loss, index) => ({ step: index, loss })));
    expect(means.map(({ loss }) => loss)).toEqual([1.5, 3, 4]);
  });
});

describe('the report', () => {
  it('needs no other file and names what failed', () => {
    const failed = { ...report(2, null), failures: [{ id: 'v<7>', reason: 'MEDIA_UNREADABLE: broken' }] };
    writeTrainingReport(folder, { title: 'Run', facts: [['recipe', 'tiny']] }, [
      report(1),
      failed,
      report(3),
    ]);
    const html = readFileSync(join(folder, 'report.html'), 'utf8');
    expect(html).toContain('v&#60;7&#62;');
    expect(html).toContain('MEDIA_UNREADABLE');
    expect(html).not.toMatch(/(src|href)=/);
    expect(readFileSync(join(folder, 'loss.svg'), 'utf8')).toContain('<svg');
  });
});

describe('progress', () => {
  const lines: string[] = [];
  const stream = (isTTY: boolean, columns = 60) => ({
    isTTY,
    columns,
    write: (text: string) => lines.push(text) > 0,
  });

  it('is one line on a terminal', () => {
    lines.length = 0;
    const progress = new TerminalProgress(stream(true));
    progress.step(report(1));
    progress.step({ ...report(2, null), failures: [{ id: 'a\u001b[2J', reason: 'gone' }] });
    progress.clear();
    expect(lines[0]).toBe('\r\x1b[2Kstep 1/200 · loss 4.000 · rate 0.001 · 200 tokens/s · 16 fr');
    expect(lines.join('')).toContain('note: record a\ufffd[2J failed: gone\n');
    expect(lines.at(-1)).toBe('\r\x1b[2K');
  });

  it('is a line now and then elsewhere', () => {
    lines.length = 0;
    const progress = new TerminalProgress(stream(false));
    for (let step = 1; step <= 200; step += 1) progress.step(report(step));
    expect(lines.length).toBe(2);
    expect(lines[1]).toMatch(/^step 200\/200 .* left\n$/);
  });

  it('writes numbers for people', () => {
    expect([0.24, 59.7, 61, 3700, 90_000].map(durationText)).toEqual([
      ...['0.2 s', '1 min 0 s', '1 min 1 s', '1 h 1 min', '1 d 1 h'],
    ]);
    expect([0, 999, 1500, 2.34e9, 5.6e13].map(sizeText)).toEqual([
      '0 B',
      '999 B',
      '1.5 kB',
      '2.3 GB',
      '56 TB',
    ]);
    expect([7, 1234, 2.4e6, 7.06e9].map(countText)).toEqual(['7', '1,234', '2.40 M', '7.06 B']);
  });
});

describe('files that cannot be written', () => {
  it.skipIf(!existsSync('/dev/full'))('tell a full disk', () => {
    const file = openSync('/dev/full', 'w');
    expect(() => writing('metrics.jsonl', () => writeSync(file, 'x'))).toThrow(
      expect.objectContaining({ code: 'DISK_FULL' }),
    );
    closeSync(file);
    expect(() => writing('metrics.jsonl', () => openSync('/nowhere/metrics.jsonl', 'a'))).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });
});
