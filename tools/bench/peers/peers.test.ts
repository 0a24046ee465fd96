// The arithmetic of `pnpm bench:peers`, on numbers that can be checked by hand.
import { describe, expect, it } from 'vitest';
import { type Comparison, compare, judge, type Measured } from './comparison.ts';
import { digits, type Entry, markdown, merged } from './report.ts';
import { median, ratio, spread } from './statistics.ts';

describe('statistics', () => {
  it('take the middle, whatever the order', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([7])).toBe(7);
    expect(() => median([])).toThrow('no median');
    expect(spread([3, 1, 2])).toEqual({ median: 2, lowest: 1, highest: 3 });
  });

  it('compare runs that followed each other', () => {
    // The second round is half as fast for both.
    expect(ratio([30, 15, 33], [20, 10, 20])).toEqual({ median: 1.5, lowest: 1.5, highest: 1.65 });
  });
});

describe('a comparison', () => {
  it('lets contenders take turns', async () => {
    const order: string[] = [];
    const contender = (by: string, value: number) => ({
      by,
      run: async () => {
        order.push(by);
        return { speed: value + order.length };
      },
    });
    const comparison: Comparison = {
      lines: { speed: { title: 'x', unit: 'm/s', kind: 'speed' } },
      ours: contender('ours', 10),
      peers: [contender('a', 20), contender('b', 30)],
    };
    const [line] = await compare(comparison, 2);
    expect(order).toEqual(['ours', 'a', 'b', 'ours', 'a', 'b']);
    expect(line?.ours).toEqual([11, 14]);
    expect(line?.peers).toEqual([
      { by: 'a', values: [22, 25] },
      { by: 'b', values: [33, 36] },
    ]);
  });

  it('names a contender that gives nothing', async () => {
    const silent = { by: 'silent', run: async () => ({}) };
    const comparison: Comparison = {
      lines: { speed: { title: 'x', unit: 'm/s', kind: 'speed' } },
      ours: silent,
      peers: [],
    };
    await expect(compare(comparison, 1)).rejects.toThrow('silent gave nothing for speed');
  });
});

const line = (changes: Partial<Measured>): Measured => ({
  title: 'x',
  unit: 's',
  kind: 'speed',
  ours: [26],
  peers: [
    { by: 'slow', values: [10] },
    { by: 'fast', values: [20] },
  ],
  ...changes,
});

describe('a verdict', () => {
  it('is about the best peer', () => {
    expect(judge(line({ goal: { ratio: 1.3 } }))).toMatchObject({ ratio: { median: 1.3 }, reached: true });
    expect(judge(line({ goal: { ratio: 1.4 } }))).toMatchObject({ reached: false });
    // Of costs the least is the best.
    expect(judge(line({ kind: 'cost', ours: [7], goal: { ratio: 0.65 } }))).toMatchObject({
      ratio: { median: 0.7 },
      reached: false,
    });
    expect(judge(line({ kind: 'cost', ours: [1], goal: { value: 1.5 } }))).toMatchObject({ reached: true });
  });

  it('is open without a goal or a peer', () => {
    expect(judge(line({})).reached).toBeUndefined();
    expect(judge(line({ peers: [], goal: { ratio: 2 } }))).toMatchObject({
      ratio: undefined,
      reached: undefined,
    });
  });
});

const entry = (changes: Partial<Entry>): Entry => ({
  ...line({ goal: { ratio: 1.3 } }),
  row: 'lm',
  machine: 'a machine',
  date: '2026-01-01',
  commit: 'abc',
  versions: { peer: '1.0' },
  ...changes,
});

describe('the report', () => {
  it('replaces a line that is measured again, on its machine alone', () => {
    const earlier = [entry({}), entry({ machine: 'another' }), entry({ title: 'y' })];
    const entries = merged(earlier, [entry({ ours: [40] }), entry({ title: 'z' })]);
    expect(entries.map(({ machine, title, ours }) => [machine, title, ours[0]])).toEqual([
      ['a machine', 'x', 40],
      ['another', 'x', 26],
      ['a machine', 'y', 26],
      ['a machine', 'z', 26],
    ]);
  });

  it('shows a table for each machine', () => {
    const text = markdown([entry({}), entry({ machine: 'another', ours: [22] })]);
    expect(text.match(/^## .*$/gm)).toEqual(['## a machine', '## another']);
    const lines = text.split('\n').filter((each) => each.startsWith('| `lm`'));
    expect(lines).toHaveLength(2);
    expect(lines[0]).toContain('fast 20.0 (20.0–20.0)');
    expect(lines[0]).toContain('| 1.30 (1.30–1.30) | **≥ 1.3 ×** |');
    expect(lines[1]).toContain('| 1.10 (1.10–1.10) | ≥ 1.3 × |');
  });

  it('says what contenders do differently, and replaces a line from before', () => {
    const entries = merged([entry({})], [entry({ note: 'ours: interleaved rows' })]);
    expect(entries).toHaveLength(1);
    expect(markdown(entries)).toContain('| `lm` | x (ours: interleaved rows) |');
  });

  it('shows three digits', () => {
    expect([0.012345, 1.2345, 99.95, 1234.5].map(digits)).toEqual(['0.0123', '1.23', '100', '1235']);
  });
});
