import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import {
  byMedia,
  isRight,
  likelihoodOfSoFew,
  namesNeverTrainedPair,
  readRows,
  scenesRight,
} from './questions.ts';

const folder = mkdtempSync(join(tmpdir(), 'llamavid-questions-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const row = (changes: object = {}) => ({
  media: 'media/a.mp4',
  kind: 'clip',
  type: 'at',
  question: 'what is in the center?',
  answer: 'a pink ring',
  unseen_phrasing: true,
  frames: 3,
  subtitles: null,
  ...changes,
});
const read = (...lines: string[]) => {
  writeFileSync(join(folder, 'qa.jsonl'), lines.join('\n'));
  return readRows(folder);
};

it('reads rows, with paths from the folder', () => {
  const rows = read(
    JSON.stringify(row()),
    '',
    JSON.stringify(row({ media: '/b.mp4', subtitles: 'b.srt' })),
    JSON.stringify(row()),
  );
  expect(rows[0]).toMatchObject({ media: join(folder, 'media/a.mp4'), unseenPhrasing: true });
  expect(rows[0]?.subtitles).toBeUndefined();
  expect(rows[1]).toMatchObject({ media: '/b.mp4', subtitles: join(folder, 'b.srt') });
  expect(byMedia(rows).map((group) => group.length)).toEqual([2, 1]);
});

it('names the line that is wrong', () => {
  expect(() => read(JSON.stringify(row()), '{"media":')).toThrow('qa.jsonl, line 2: ');
  expect(() => read(JSON.stringify(row({ answer: 7 })))).toThrow('line 1: answer is missing');
});

it('knows the pairs that are never trained, in question and answer', () => {
  const [plain, asked, answered] = read(
    JSON.stringify(row()),
    JSON.stringify(row({ question: 'Where is the Red Star?' })),
    JSON.stringify(row({ answer: 'a purple circle' })),
  );
  for (const [each, expected] of [
    [plain, false],
    [asked, true],
    [answered, true],
  ] as const) {
    expect(each && namesNeverTrainedPair(each)).toBe(expected);
  }
});

it('compares answers to the letter, but for case and white space', () => {
  expect(isRight(' A pink\n ring ', 'a pink ring')).toBe(true);
  expect(isRight('pink ring', 'a pink ring')).toBe(false);
});

it('counts the scenes that a description tells right, in whatever order their objects are', () => {
  const truth =
    'a red ring grows and a blue star stays still in the desert , then a green ring moves left in the day';
  expect(scenesRight(truth, truth)).toBe(1);
  expect(
    scenesRight(
      'a blue star stays still and a red ring grows in the desert, then a green ring moves left in the day',
      truth,
    ),
  ).toBe(1);
  expect(scenesRight('a green ring moves left in the day', truth)).toBe(0);
  expect(scenesRight(`${truth} , then a red ring grows in the night`, truth)).toBe(2 / 3);
  expect(scenesRight('', truth)).toBe(0);
});

it('knows how likely few right answers are', () => {
  expect(likelihoodOfSoFew([0.5, 0.5], 0)).toBeCloseTo(0.25);
  expect(likelihoodOfSoFew([0.9, 0.1, 0.5], 3)).toBeCloseTo(1);
  expect(likelihoodOfSoFew([0.9, 0.1], 0)).toBeCloseTo(0.09);
  expect(likelihoodOfSoFew([1, 1, 1], 2)).toBe(0);
  expect(likelihoodOfSoFew([], 0)).toBe(1);
});
