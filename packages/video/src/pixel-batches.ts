/** Frames as the visual encoder takes them, some at a time. */
import { LlamaVidError } from '@llamavid/errors';
import type { PixelChannel, Preprocessing } from '@llamavid/native';
import { DEFAULT_BATCH_SIZE, type PixelBatch, type PixelsOptions } from './media.js';

/**
 * Batches of frames that `push` puts into a channel and tells one after the other. It is asked for the frame behind a batch once the
 * caller is done with that. `expected` is how many frames there are as far as is known.
 */
export async function* pixelBatches(
  preprocessing: Preprocessing,
  { batchSize = DEFAULT_BATCH_SIZE, after = [], onProgress }: PixelsOptions,
  expected: number,
  push: (channel: PixelChannel, batchSize: number) => AsyncIterable<{ readonly timestamp: number }>,
): AsyncGenerator<PixelBatch, void, undefined> {
  if (!Number.isSafeInteger(batchSize) || batchSize <= 0) {
    throw new LlamaVidError('INVALID_ARGUMENT', `batchSize is ${batchSize}.`, {
      hint: 'Give a whole number above 0.',
    });
  }
  const { callNative, PixelChannel } = await import('@llamavid/native');
  const channel = callNative(() => new PixelChannel(preprocessing));
  let done = after.length;
  let timestamps: number[] = [];
  const batch = (): PixelBatch => {
    const full = { pixels: callNative(() => channel.take(timestamps.length)), timestamps };
    timestamps = [];
    return full;
  };
  try {
    for await (const { timestamp } of push(channel, batchSize)) {
      timestamps.push(timestamp);
      done += 1;
      onProgress?.(done, Math.max(done, expected));
      if (timestamps.length === batchSize) yield batch();
    }
    if (timestamps.length > 0) yield batch();
  } finally {
    channel.close();
  }
}
