import { LlamaVidError } from '@llamavid/errors';
import type { LoadOptions as StageOptions } from '@llamavid/llm';
import { openMedia, type SamplingReport } from '@llamavid/video';
import { VisualEncoder } from '@llamavid/vision';
import type { AnswerWork } from './answer.js';
import {
  encodeClip,
  type OnProgress,
  placeInStore,
  type SamplingOptions,
  type StoreOptions,
} from './encoding.js';
import { EMBEDDED } from './model-name.js';
import { planLoad } from './planned-load.js';

export interface EncodeVideosOptions extends SamplingOptions, StoreOptions, StageOptions {
  /** Folder or name of the model. Default: the embedded one. */
  model?: string | undefined;
  /** Called when a video's turn comes. */
  onVideo?: ((path: string) => void) | undefined;
  onProgress?: OnProgress | undefined;
}

/** A video whose features are all in the store. */
export interface EncodedVideo {
  path: string;
  /** Folder of the store. */
  store: string;
  /** Its name in the store. */
  key: string;
  sampling: SamplingReport;
  work: AnswerWork;
  /** Milliseconds; decoding beside the encoder is not in `decodeMs`. */
  timings: { decodeMs: number; encodeMs: number };
}

/**
 * Encodes videos into a store, one after the other, so that questions about them begin at once. Loads the visual encoder alone. What
 * was stored when it is stopped stays, and the next call goes on from there.
 */
export async function* encodeVideos(
  paths: readonly string[],
  options: EncodeVideosOptions = {},
): AsyncGenerator<EncodedVideo, void, void> {
  const { model = EMBEDDED, onVideo, onProgress, fps, frames, start, end, strict, ...others } = options;
  const { signal = new AbortController().signal, whenLocked = 'fail' } = others;
  const { folder, small } = await planLoad(model, others);
  using encoder = await VisualEncoder.load(folder, small);
  const sampling = { fps, frames, start, end, strict };
  for (const path of paths) {
    onVideo?.(path);
    const place = await placeInStore(path, encoder, { ...others, ...sampling });
    const isStored = place?.entry.report !== undefined;
    const media = isStored ? undefined : await openMedia(path, { ...sampling, signal });
    try {
      if (place === undefined) {
        throw new LlamaVidError('INVALID_ARGUMENT', 'there is no store to encode into', {
          hint: 'Give a folder; LLAMAVID_STORE may say `none`.',
        });
      }
      const required = { ...place, optional: false };
      const encoded = await encodeClip(media, encoder, required, { signal, whenLocked, onProgress });
      encoded.features.close();
      const { framesDecoded, framesEncoded, decodeMs, encodeMs } = encoded;
      yield {
        path,
        store: place.folder,
        key: place.entry.key,
        sampling: encoded.sampling,
        work: { framesDecoded, framesEncoded, storeHit: encoded.stored === 'found' },
        timings: { decodeMs, encodeMs },
      };
    } finally {
      await media?.close();
    }
  }
}
