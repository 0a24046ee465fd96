import { LlamaVidError } from '@llamavid/errors';
import type { Looked } from './plan.js';
import type { RunPlan } from './run-plan.js';

/** What the context has room for. */
export interface ContextFit {
  /** Frames of all sources together; 0 where the text alone is too long. */
  frames: number;
  /** The same as a limit for each source; null where the frames of one were chosen with its features. */
  maxVisualTokens: number | null;
  /** A rate at which one video has so few frames; null for several, and where its own rate is not known. */
  fps: number | null;
  /** How much of one video that is, at the rate that was asked for; null for several, and where its length is not known. */
  seconds: number | null;
  /** The longest answer beside them. */
  maxNewTokens: number;
}

/** What fits where the prompt does not; null where it fits. */
export function fitContext(plan: RunPlan, looked: readonly Looked[]): ContextFit | null {
  const { promptTokens, visualTokens, contextLength, tokensPerFrame } = plan;
  if (promptTokens < contextLength) return null;
  const room = contextLength - (promptTokens - visualTokens);
  // Where a long answer would leave no frame, it may be cut short.
  const beside = Math.floor((room - plan.maxNewTokens) / tokensPerFrame);
  const frames = Math.max(0, beside >= looked.length ? beside : Math.floor((room - 1) / tokensPerFrame));
  const each = looked.length === 0 ? 0 : Math.floor(frames / looked.length);
  const only = looked.length === 1 ? looked[0] : undefined;
  const seconds = only && secondsOf(only);
  const rate = only?.info.fps;
  const isKnown = only !== undefined && seconds !== undefined && rate !== undefined && frames > 0;
  return {
    frames,
    maxVisualTokens: looked.some(({ subtitles }) => subtitles?.inputs !== undefined)
      ? null
      : each * tokensPerFrame,
    // Every step-th of the displayed frames is taken.
    fps: isKnown ? Number((rate / Math.ceil((seconds * rate + 1) / frames)).toPrecision(6)) : null,
    seconds: isKnown ? Math.floor((seconds * frames) / only.frames) : null,
    maxNewTokens: Math.min(plan.maxNewTokens, Math.max(0, room - frames * tokensPerFrame)),
  };
}

/** Seconds of the chosen part; undefined where the header does not tell. */
export function secondsOf({ info, options }: Looked): number | undefined {
  const { start = 0, end = Number.POSITIVE_INFINITY } = options;
  const { durationSeconds } = info;
  return durationSeconds === undefined ? undefined : Math.max(0, Math.min(end, durationSeconds) - start);
}

/** The error of a prompt that the context has no room for, with its numbers and what would fit. */
export function overflow(plan: RunPlan & { contextFit: ContextFit | null }): LlamaVidError | undefined {
  const { contextFit, promptTokens, visualTokens, frames, contextLength } = plan;
  if (contextFit === null) return undefined;
  return new LlamaVidError(
    'CONTEXT_OVERFLOW',
    `the prompt has ${promptTokens} tokens, ${visualTokens} of ${frames} frames and ${promptTokens - visualTokens} of text, and the ` +
      `model's context holds ${contextLength}, the answer included`,
    { hint: hintOf(contextFit) },
  );
}

function hintOf({ frames, maxVisualTokens, fps, seconds, maxNewTokens }: ContextFit): string {
  if (maxVisualTokens === null && frames === 0) {
    return 'The text alone leaves no room: take a model with a longer context.';
  }
  if (maxVisualTokens === null) {
    return `${frames} frames fit: make the features of fewer, or take a model with a longer context.`;
  }
  if (maxVisualTokens === 0) {
    return 'The text alone leaves no room: ask without subtitles, about a part (--start, --end), or in a new conversation.';
  }
  const ways = [
    ...(fps === null ? [] : [`--fps ${fps}`, `--frames ${frames}`]),
    `--max-visual-tokens ${maxVisualTokens}`,
    ...(seconds === null ? [] : [`${seconds} seconds of the video (--start, --end)`]),
  ];
  return `With room for an answer of ${maxNewTokens} tokens this fits: ${ways.join(', or ')}.`;
}
