/**
 * Which frames of a video are looked at.
 *
 * The rule is the reference's: every `step`-th displayed frame, `step = round(average fps / wanted fps)`.
 */
import { LlamaVidError } from '@llamavid/errors';

/** How to choose frames. All values are checked by {@link checkSampling}. */
export interface Sampling {
  /** Frames a second. */
  readonly fps?: number | undefined;
  /** This many frames, spread evenly over the range. */
  readonly frames?: number | undefined;
  /** At most this many of the frames that `fps` or `frames` choose, spread evenly over them. */
  readonly maxFrames?: number | undefined;
  /** First second looked at. */
  readonly start?: number | undefined;
  /** Second to stop before. */
  readonly end?: number | undefined;
}

/** One frame a second is what every released model was trained with. */
export const DEFAULT_FPS = 1;

/** Frame times are whole microseconds, so range borders within one are equal. */
const TIME_TOLERANCE = 1e-6;

/** Throws `INVALID_ARGUMENT` for values that no video can satisfy. */
export function checkSampling(sampling: Sampling): void {
  const { fps, frames, maxFrames, start, end } = sampling;
  if (fps !== undefined && !(Number.isFinite(fps) && fps > 0)) {
    throw invalid(`fps is ${fps}`, 'Give a number of frames a second above 0, such as 1 or 0.5.');
  }
  for (const [name, value] of Object.entries({ frames, maxFrames })) {
    if (value !== undefined && !(Number.isSafeInteger(value) && value > 0)) {
      throw invalid(`${name} is ${value}`, 'Give a whole number of frames above 0.');
    }
  }
  if (fps !== undefined && frames !== undefined) {
    throw invalid(
      'fps and frames are both given',
      'Give fps or frames: each alone decides which frames are taken.',
    );
  }
  if (start !== undefined && !(Number.isFinite(start) && start >= 0)) {
    throw invalid(`start is ${start}`, 'Give seconds from the beginning, 0 or more.');
  }
  if (end !== undefined && !(end > 0)) {
    throw invalid(`end is ${end}`, 'Give seconds from the beginning, above 0.');
  }
  if (start !== undefined && end !== undefined && end <= start) {
    throw invalid(`the range from ${start} s to ${end} s is empty`, 'Give an end behind the start.');
  }
}

/** Rounds to the nearest whole number, ties to the even one, as Python's `round` does. */
export function roundHalfToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Distance between two samples in frames; 1 where the reference would compute 0 and fail. */
export function frameStep(averageFps: number, fps: number): number {
  return Math.max(1, roundHalfToEven(averageFps / fps));
}

/** Indices 0, step, 2·step… below `count`. */
export function everyStep(count: number, step: number): number[] {
  return Array.from({ length: Math.ceil(count / step) }, (_, sample) => sample * step);
}

/** `wanted` indices spread evenly from the first to the last of `count`; all of them where there are fewer. */
export function spreadEvenly(count: number, wanted: number): number[] {
  if (wanted >= count) return everyStep(count, 1);
  if (wanted === 1) return [0];
  return Array.from({ length: wanted }, (_, sample) => Math.floor((sample * (count - 1)) / (wanted - 1)));
}

/** The frames that are taken. */
export interface FrameChoice {
  /** Places among the displayed frames, rising. */
  readonly indices: number[];
  /** How many more there would be without `maxFrames`. */
  readonly omitted: number;
}

/** Chooses among the `count` displayed frames of a range. */
export function chooseInside(
  count: number,
  averageFps: number,
  { fps = DEFAULT_FPS, frames, maxFrames = Number.POSITIVE_INFINITY }: Sampling,
): FrameChoice {
  const all =
    frames === undefined ? everyStep(count, frameStep(averageFps, fps)) : spreadEvenly(count, frames);
  const kept = spreadEvenly(all.length, maxFrames);
  return { indices: kept.map((place) => all[place] ?? 0), omitted: all.length - kept.length };
}

/** Whether `seconds` comes before the range. */
export function beforeRange(seconds: number, { start = 0 }: Sampling): boolean {
  // Without a start the range has no lower border: a frame before second 0 is still displayed.
  return start > 0 && seconds < start - TIME_TOLERANCE;
}

/** Whether `seconds` comes behind the range. */
export function behindRange(seconds: number, { end = Number.POSITIVE_INFINITY }: Sampling): boolean {
  return seconds >= end - TIME_TOLERANCE;
}

/** Says what `maxFrames` left out; nothing where that is nothing. */
export function omissionNotes(omitted: number, { maxFrames = 0 }: Sampling): string[] {
  if (omitted === 0) return [];
  return [`frames: ${omitted} more were asked for, ${maxFrames} at most; those taken are spread evenly`];
}

/**
 * Chooses among the displayed frames, whose times in seconds are given in order.
 *
 * The range counts from its own first frame, so a part of a video is sampled like a video cut there.
 * A range that falls between two frames gives the frame on display at its start; a range behind the last
 * frame gives nothing.
 */
export function chooseFrames(
  times: ArrayLike<number>,
  averageFps: number,
  duration: number,
  sampling: Sampling,
): FrameChoice {
  let first = 0;
  while (first < times.length && beforeRange(times[first] ?? 0, sampling)) first += 1;
  let last = first;
  while (last < times.length && !behindRange(times[last] ?? 0, sampling)) last += 1;
  if (first === last) {
    const { start = 0 } = sampling;
    return { indices: first > 0 && start < duration ? [first - 1] : [], omitted: 0 };
  }
  const { indices, omitted } = chooseInside(last - first, averageFps, sampling);
  return { indices: indices.map((index) => first + index), omitted };
}

function invalid(what: string, hint: string): LlamaVidError {
  return new LlamaVidError('INVALID_ARGUMENT', `Frames cannot be chosen: ${what}.`, { hint });
}
