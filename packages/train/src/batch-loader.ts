import { availableParallelism } from 'node:os';
import { LlamaVidError } from '@llamavid/errors';
import type { Pixels, Preprocessing, TrainingBatch, TrainingSample } from '@llamavid/native';
import { openMedia } from '@llamavid/video';
import type { Recipe } from './recipe.js';
import type { RecordFailure } from './step-report.js';

/** A batch whose pictures and videos are read. */
export interface LoadedBatch {
  batch: TrainingBatch;
  /** For each sample its pixels, none for text and features, null where reading them failed. */
  pixels: (Pixels[] | null)[];
  failures: RecordFailure[];
}

/** How pictures and videos become pixels: videos are never padded. */
export interface MediaReading {
  preprocessing: Preprocessing;
  data: Pick<Recipe['data'], 'imageAspectRatio' | 'videoFps'>;
}

/** Files that are read side by side; decoding one takes a thread of its own. */
const READERS = Math.min(availableParallelism(), 4);

/** Reads the media of a batch. Rejects only when `signal` is aborted or nothing more can be read at all. */
export async function loadBatch(
  batch: TrainingBatch,
  reading: MediaReading,
  signal: AbortSignal,
): Promise<LoadedBatch> {
  const pixels: (Pixels[] | null)[] = batch.samples.map(() => null);
  const failures: RecordFailure[] = [...batch.failures];
  const waiting = batch.samples.entries();
  // All readers end before this does, so that nothing is opened behind a failure.
  const ends = await Promise.allSettled(
    Array.from({ length: READERS }, async () => {
      for (const [index, sample] of waiting) {
        try {
          pixels[index] = await readMedia(sample, reading, signal);
        } catch (error) {
          failures.push({ id: sample.id, reason: reasonToSkip(error) });
        }
      }
    }),
  );
  const loaded = { batch, pixels, failures: sortLike(batch, failures) };
  const broken = ends.find((end) => end.status === 'rejected');
  if (broken === undefined) return loaded;
  closeBatch(loaded);
  throw broken.reason;
}

/** Frees the pixels. */
export function closeBatch({ pixels }: LoadedBatch): void {
  for (const part of pixels.flatMap((parts) => parts ?? [])) part.close();
}

async function readMedia(
  sample: TrainingSample,
  reading: MediaReading,
  signal: AbortSignal,
): Promise<Pixels[]> {
  if (sample.path === undefined || (sample.media !== 'image' && sample.media !== 'video')) return [];
  const { imageAspectRatio, videoFps } = reading.data;
  const fit = sample.media === 'image' && imageAspectRatio === 'pad' ? 'pad' : 'crop';
  // One thread a decoder: several files are read at once.
  await using media = await openMedia(sample.path, { fps: videoFps, decoderThreads: 1, signal });
  if (sample.media === 'image' && media.kind !== 'image') {
    throw new LlamaVidError('DATA_INVALID', `${sample.path} is a video, but the record says image`);
  }
  const parts: Pixels[] = [];
  try {
    for await (const { pixels } of media.pixels({ ...reading.preprocessing, fit }, { signal }))
      parts.push(pixels);
    if (parts.length === 0)
      throw new LlamaVidError('MEDIA_NO_VIDEO', `${sample.path} has no frame that can be read`);
    return parts;
  } catch (error) {
    for (const part of parts) part.close();
    throw error;
  }
}

/** What the record's failure is called; throws what is none of the record's fault. */
function reasonToSkip(error: unknown): string {
  if (error instanceof LlamaVidError && (error.code.startsWith('MEDIA_') || error.code === 'DATA_INVALID')) {
    return `${error.code}: ${error.message}`;
  }
  throw error;
}

/** In the order of the batch, whichever reader was first: two runs report the same. */
function sortLike(batch: TrainingBatch, failures: RecordFailure[]): RecordFailure[] {
  const place = new Map(batch.samples.map(({ id }, index) => [id, index]));
  return failures.sort((a, b) => (place.get(a.id) ?? -1) - (place.get(b.id) ?? -1));
}
