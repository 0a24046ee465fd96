import { relevantMoments, type TokenGenerator } from '@llamavid/tokens';
import type { EncodedClip } from './encoding.js';

/** Where in a video what a question is about is seen. */
export interface Timeline {
  question: string;
  /** Every frame that the model saw: its second, and how much it has to do with the question (the higher, the more). */
  frames: { time: number; relevance: number }[];
  /** Stretches that stand out, the most relevant first; none where all frames are alike. */
  moments: Moment[];
}

/** A stretch of a video, in seconds. */
export interface Moment {
  start: number;
  end: number;
  /** Its most relevant frame. */
  peak: number;
  /** Of that frame. */
  relevance: number;
}

/** @internal The timeline of a question about frames that are encoded. */
export async function timelineOf(
  tokenGenerator: TokenGenerator,
  { features, sampling }: EncodedClip,
  question: string,
  signal?: AbortSignal,
): Promise<Timeline> {
  const { timestamps } = sampling;
  const relevance = await tokenGenerator.relevance(features, question, { signal });
  const at = (frame: number) => timestamps[frame] ?? 0;
  // A frame stands for the time up to the next one, the last for as long as the one before.
  const last = timestamps.length - 1;
  const until = (frame: number) =>
    frame < last ? at(frame + 1) : at(last) + (last > 0 ? at(last) - at(last - 1) : 0);
  return {
    question,
    frames: timestamps.map((time, frame) => ({ time, relevance: relevance[frame] ?? 0 })),
    moments: relevantMoments(relevance).map(({ first, last, peak }) => ({
      start: at(first),
      end: until(last),
      peak: at(peak),
      relevance: relevance[peak] ?? 0,
    })),
  };
}

/** The moments of a timeline as a WebVTT file, in order of time: chapters for a player. */
export function timelineToVtt({ question, moments }: Timeline): string {
  const text = question
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll(/\s+/g, ' ');
  const cues = moments
    .map((moment, rank) => ({ ...moment, rank: rank + 1 }))
    .sort((left, right) => left.start - right.start)
    .map(({ start, end, rank }) => `${clock(start)} --> ${clock(end)}\n${rank}. ${text}\n`);
  return `WEBVTT\n\n${cues.join('\n')}`;
}

function clock(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds * 1000));
  const pad = (value: number, length: number) => String(Math.floor(value)).padStart(length, '0');
  return `${pad(whole / 3_600_000, 2)}:${pad((whole / 60_000) % 60, 2)}:${pad((whole / 1000) % 60, 2)}.${pad(whole % 1000, 3)}`;
}
