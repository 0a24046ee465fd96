import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import type { SamplingReport } from '@llamavid/video';
import { FeatureFile, type VisualEncoder } from '@llamavid/vision';
import type { OpenOptions } from './clip.js';
import { type ClipFacts, type EncodedClip, readReport } from './encoding.js';
import type { ReadSubtitles, SubtitleSource } from './subtitles.js';

/** Features that were made before, as a source: what the reference's `run_llamavid_movie` reads, or a video of a store. */
export interface Movie {
  facts: ClipFacts;
  sampling: SamplingReport;
  /** Its text, if it has one; refuses subtitles from elsewhere. */
  words: (source?: SubtitleSource) => ReadSubtitles | undefined;
  /** Whether features are read a few frames at a time. */
  isStored: boolean;
  encoded: (encoder: VisualEncoder, signal: AbortSignal) => Promise<EncodedClip>;
}

/** Whether a source is a feature file, by its ending, or a folder of a store. */
export function isMovie(source: unknown): source is string {
  if (typeof source !== 'string') return false;
  const isStore = () => ['store.json', 'entry.json'].some((name) => existsSync(join(source, name)));
  return /\.(pkl|pickle|safetensors)$/i.test(source) || isStore();
}

/** Opens a feature file, a store with one video, or the folder of a video in a store; reads no numbers. */
export async function openMovie(path: string, options: OpenOptions): Promise<Movie> {
  const { fps, frames, start, end, maxVisualTokens } = options;
  const choices = Object.entries({ fps, frames, start, end, maxVisualTokens });
  const refused = choices.filter(([, value]) => value !== undefined).map(([name]) => name);
  if (refused.length > 0) {
    throw new LlamaVidError(
      'INVALID_ARGUMENT',
      `${path}: its frames are chosen already: ${refused.join(', ')}`,
      {
        hint: 'Leave that out, or ask about the video itself.',
      },
    );
  }
  const words = (source: SubtitleSource = 'none'): ReadSubtitles | undefined => {
    if (source !== 'none' && source !== 'auto') {
      throw new LlamaVidError('INVALID_ARGUMENT', `${path}: what is said in it was fixed with its features`, {
        hint: 'Leave the subtitles out, or ask about the video itself.',
      });
    }
    return text;
  };
  const file = await FeatureFile.open(path);
  const { inputs, sampling, ...known } =
    file.report === undefined ? describeFile(file, path) : readReport(file.report, path);
  const text = inputs === undefined ? undefined : textOf(path, inputs);
  words(options.subtitles);
  return {
    facts: { ...known, subtitles: () => Promise.resolve(undefined) },
    sampling,
    words,
    isStored: file.report !== undefined,
    encoded: async (encoder, signal) => ({
      // The reference cuts the class rows of a movie off, whatever its model was trained on.
      features: await file.features(encoder, {
        kind: inputs === undefined ? 'pixels' : 'precomputed',
        signal,
      }),
      sampling: { ...sampling, notes: [...sampling.notes] },
      stored: 'found',
      framesDecoded: 0,
      framesEncoded: 0,
      decodeMs: 0,
      encodeMs: 0,
    }),
  };
}

/** A feature file tells no times and no sizes. */
function describeFile({ frameCount, inputs }: FeatureFile, path: string): ReturnType<typeof readReport> {
  const info = { path, frameCount, width: 0, height: 0, codec: 'features' };
  const sampling = {
    source: info,
    fps: 1,
    frames: frameCount,
    timestamps: Array.from({ length: frameCount }, (_, frame) => frame),
    framesDecoded: 0,
    dropped: 0,
    omitted: 0,
    notes: ['a feature file holds no times: frames are counted as seconds'],
  };
  return { kind: 'video', info, expectedFrames: frameCount, sampling, inputs };
}

function textOf(path: string, inputs: string): ReadSubtitles {
  const count = inputs.split('<image>').filter((text) => text !== '').length;
  return { subtitles: [], inputs, report: { path, count, notes: [] } };
}
