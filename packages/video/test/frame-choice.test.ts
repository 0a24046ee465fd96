import { readFileSync } from 'node:fs';
import fc from 'fast-check';
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

const all = (indices: number[]) => ({ indices, omitted: 0 });

test('a range counts from its own first frame', () => {
  const times = everyStep(100, 1).map((frame) => frame / 10);
  expect(chooseFrames(times, 10, 10, { start: 2.05, end: 5 })).toEqual(all([21, 31, 41]));
  expect(chooseFrames(times, 10, 10, { start: 2, end: 5, frames: 2 })).toEqual(all([20, 49]));
  expect(chooseFrames(times, 10, 10, { end: 0.1 })).toEqual(all([0]));
});

test('a range between two frames gives the one on display, a range behind the end none', () => {
  expect(chooseFrames([0, 4, 8], 0.25, 12, { start: 5, end: 6 })).toEqual(all([1]));
  expect(chooseFrames([0, 4, 8], 0.25, 12, { start: 9 })).toEqual(all([2]));
  expect(chooseFrames([0, 4, 8], 0.25, 12, { start: 12 })).toEqual(all([]));
});

test('a limit leaves frames out evenly, and says how many', () => {
  const times = everyStep(100, 1);
  expect(chooseFrames(times, 1, 100, { maxFrames: 4 })).toEqual({ indices: [0, 33, 66, 99], omitted: 96 });
  expect(chooseFrames(times, 1, 100, { frames: 10, maxFrames: 4 })).toEqual({
    indices: [0, 33, 66, 99],
    omitted: 6,
  });
  expect(chooseFrames(times, 1, 100, { maxFrames: 100 })).toEqual(all(times));
});

/** Display times of videos: steady rates odd and even, varying ones, single frames, a start behind 0. */
const videos = fc
  .record({
    fps: fc.oneof(
      fc.constantFrom(0.2, 1, 10, 23.976, 24000 / 1001, 25, 29.97, 30, 59.94, 120),
      fc.double({ min: 0.05, max: 240, noNaN: true }),
    ),
    count: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 5000 })),
    offset: fc.constantFrom(0, 0.023, 3),
    // How much later than a steady rate would have it a frame may come, in frames.
    jitter: fc.constantFrom(0, 0.9, 20),
    seed: fc.integer({ min: 1, max: 2 ** 31 - 2 }),
  })
  .map(({ fps, count, offset, jitter, seed }) => {
    let random = seed;
    let time = offset;
    const times = Array.from({ length: count }, () => {
      const now = Math.round(time * 1e6) / 1e6;
      random = (random * 48271) % (2 ** 31 - 1);
      time += (1 + (jitter * random) / 2 ** 31) / fps;
      return now;
    });
    return { times, duration: time, averageFps: count / (time - offset) };
  });
const samplings = fc.record(
  {
    fps: fc.oneof(fc.constant(1), fc.double({ min: 0.01, max: 300, noNaN: true })),
    maxFrames: fc.integer({ min: 1, max: 300 }),
    start: fc.double({ min: 0, max: 500, noNaN: true }),
    length: fc.double({ min: 0.001, max: 500, noNaN: true }),
  },
  { requiredKeys: [] },
);

test('whatever the rate, the whole range is covered', () => {
  fc.assert(
    fc.property(videos, samplings, ({ times, duration, averageFps }, { fps, maxFrames, start, length }) => {
      const end = length === undefined ? undefined : (start ?? 0) + length;
      const { indices, omitted } = chooseFrames(times, averageFps, duration, { fps, maxFrames, start, end });
      const inside = times.flatMap((time, index) =>
        time >= (start ?? 0) - 1e-6 && time < (end ?? Number.POSITIVE_INFINITY) - 1e-6 ? [index] : [],
      );
      const [first, last] = [inside[0], inside.at(-1)];
      if (first === undefined || last === undefined) {
        // One frame is on display in a gap; behind the end there is nothing.
        expect(indices.length).toBe(
          times[0] !== undefined && times[0] < (start ?? 0) && (start ?? 0) < duration ? 1 : 0,
        );
        return;
      }
      const step = frameStep(averageFps, fps ?? 1);
      expect(indices.every((index, place) => place === 0 || index > (indices[place - 1] ?? 0))).toBe(true);
      expect(indices[0]).toBe(first);
      // Nothing of a step's length is left over at the end, unless one frame is all that may be taken.
      if (maxFrames !== 1) expect(last - (indices.at(-1) ?? 0)).toBeLessThan(step);
      expect(indices.length + omitted).toBe(Math.ceil(inside.length / step));
      expect(indices.length).toBeLessThanOrEqual(maxFrames ?? Number.POSITIVE_INFINITY);
      // Gaps differ by less than two steps: thinned evenly.
      const gaps = indices.slice(1).map((index, place) => index - (indices[place] ?? 0));
      if (gaps.length > 0) expect(Math.max(...gaps) - Math.min(...gaps)).toBeLessThanOrEqual(step);
    }),
    { numRuns: 2000 },
  );
});

test('a wanted number is met, from the first frame to the last', () => {
  fc.assert(
    fc.property(videos, fc.integer({ min: 1, max: 300 }), ({ times, duration, averageFps }, frames) => {
      const { indices, omitted } = chooseFrames(times, averageFps, duration, { frames });
      expect(indices).toHaveLength(Math.min(frames, times.length));
      expect(new Set(indices).size).toBe(indices.length);
      expect([indices[0], omitted]).toEqual([0, 0]);
      if (indices.length > 1) expect(indices.at(-1)).toBe(times.length - 1);
    }),
  );
});

test.each([
  { fps: 0 },
  { fps: -1 },
  { fps: Number.NaN },
  { fps: Number.POSITIVE_INFINITY },
  { frames: 0 },
  { frames: 1.5 },
  { maxFrames: 0 },
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
