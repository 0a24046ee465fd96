import { callNative, relevantMoments as nativeMoments } from '@llamavid/native';

/** Frames in a row whose relevance stands out. */
export interface RelevantFrames {
  readonly first: number;
  readonly last: number;
  /** The most relevant one. */
  readonly peak: number;
}

/**
 * The stretches of a video that stand out by the relevance of their frames, the most relevant first: frames in a row that reach
 * more than half of the way from the median frame to the highest. Where all frames are alike there are none.
 */
export function relevantMoments(relevance: Float32Array): RelevantFrames[] {
  return callNative(() => nativeMoments(relevance));
}
