import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import {
  checkSampling,
  chooseFrames,
  everyStep,
  frameStep,
  roundHalfToEven,
  spreadEvenly,
} from '../dist/frame-choice.js';

interface OracleCase {
  avg_fps: number;
  frames: number;
  target_fps: number;
  index?: number[];
  error?: string;
}

const oracle = new URL('../../../fixtures/oracle/text/frame_index.json', import.meta.url);
const { cases } = JSON.parse(readFileSync(oracle, 'utf8')) as { cases: OracleCase[] };

test('the reference chooses the same frames', () => {
  expect(cases.length).toBeGreaterThan(10);
  for (const { avg_fps, frames, target_fps, index } of cases) {
    const chosen = everyStep(frames, frameStep(avg_fps, target_fps));
    // Where the reference fails for a step of 0, every frame is taken.
    expect(chosen, `${avg_fps} fps, ${frames} frames, ${target_fps} wanted`).toEqual(
      index ?? everyStep(frames, 1),
    );
  }
});

test('halves are rounded to the even number', () => {
  expect([0.5, 1.5, 2.5, 12.5, 13.5, 12.49, 12.51].map(roundHalfToEven)).toEqual([0, 2, 2, 12, 14, 12, 13]);
});

test('a number of frames is spread from the first to the last', () => {
  expect(spreadEvenly(10, 4)).toEqual([0, 3, 6, 9]);
  expect(spreadEvenly(150, 1)).toEqual([0]);
  expect(spreadEvenly(3, 8)).toEqual([0, 1, 2]);
});

test('a range counts from its own first frame', () => {
  const times = everyStep(100, 1).map((frame) => frame / 10);
  expect(chooseFrames(times, 10, 10, { start: 2.05, end: 5 })).toEqual([21, 31, 41]);
  expect(chooseFrames(times, 10, 10, { start: 2, end: 5, frames: 2 })).toEqual([20, 49]);
  expect(chooseFrames(times, 10, 10, { end: 0.1 })).toEqual([0]);
});

test('a range between two frames gives the one on display, a range behind the end none', () => {
  expect(chooseFrames([0, 4, 8], 0.25, 12, { start: 5, end: 6 })).toEqual([1]);
  expect(chooseFrames([0, 4, 8], 0.25, 12, { start: 9 })).toEqual([2]);
  expect(chooseFrames([0, 4, 8], 0.25, 12, { start: 12 })).toEqual([]);
});

test.each([
  { fps: 0 },
  { fps: -1 },
  { fps: Number.NaN },
  { fps: Number.POSITIVE_INFINITY },
  { frames: 0 },
  { frames: 1.5 },
  { fps: 1, frames: 3 },
  { start: -1 },
  { start: Number.NaN },
  { end: Number.NaN },
  { end: 0 },
  { end: -2 },
  { start: 3, end: 3 },
  { start: 4, end: 3 },
])('%o is refused', (sampling) => {
  expect(() => checkSampling(sampling)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
});
