/** RGB frames to an H.264 file. */
import { randomUUID } from 'node:crypto';
import { open, rename, rm } from 'node:fs/promises';
import { LlamaVidError } from '@llamavid/errors';
import { unwritable, writingAborted } from './video-errors.js';

/** The presets of x264, from the fastest to the smallest file. */
export const videoPresets = [
  'ultrafast',
  'superfast',
  'veryfast',
  'faster',
  'fast',
  'medium',
  'slow',
  'slower',
  'veryslow',
] as const;

export type VideoPreset = (typeof videoPresets)[number];

export interface WriteVideoOptions {
  /** Pixels in a row: an even number. */
  readonly width: number;
  /** Rows: an even number. */
  readonly height: number;
  /** Frames a second. */
  readonly fps: number;
  /** H.264's constant rate factor, 0 (best) to 51. Default 23. */
  readonly crf?: number | undefined;
  /** How long x264 looks for a smaller file. Default `'medium'`. */
  readonly preset?: VideoPreset | undefined;
  /** Threads of the encoder. Default 1, which gives equal bytes for equal frames. */
  readonly threads?: number | undefined;
  /** Stops with `ABORTED` and leaves no file. */
  readonly signal?: AbortSignal | undefined;
  /** Called behind each frame with the number of frames written. */
  readonly onProgress?: ((frames: number) => void) | undefined;
}

export interface WrittenVideo {
  /** Frames written. */
  readonly frames: number;
  /** Length of the video. */
  readonly seconds: number;
}

const LARGEST_SIDE = 8192;

/**
 * Writes frames as an MP4 file with H.264 (yuv420p, BT.709). A frame is `width * height * 3` bytes: red, green and
 * blue, rows from top to bottom. The file appears at `path` when it is complete, in place of one that was there; until
 * then it has another name in the same folder. A source that throws ends the writing with its error.
 *
 * @throws `INVALID_ARGUMENT` (sizes, rates, no frames, a frame of another size, a path that cannot be written),
 * `MEDIA_NOT_FOUND` (no such folder), `DISK_FULL`, `ABORTED`.
 */
export async function writeVideo(
  path: string,
  frames: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  options: WriteVideoOptions,
): Promise<WrittenVideo> {
  const { signal, onProgress } = options;
  const settings = checked(options);
  if (signal?.aborted) throw writingAborted(path, signal.reason);
  const unfinished = `${path}.${randomUUID()}.part`;
  await create(unfinished, path);
  try {
    let written = 0;
    const { VideoEncoder } = await import('./video-encoder.js');
    const encoder = await VideoEncoder.open(unfinished, path, settings);
    try {
      for await (const frame of frames) {
        if (signal?.aborted) throw writingAborted(path, signal.reason);
        await encoder.write(frame);
        written += 1;
        onProgress?.(written);
      }
      if (signal?.aborted) throw writingAborted(path, signal.reason);
      if (written === 0) throw wrong(`${path} would have no frames`, 'Give at least one.');
      await encoder.finish();
    } finally {
      await encoder.close();
    }
    await rename(unfinished, path).catch((error: unknown) => {
      throw unwritable(path, error);
    });
    return { frames: written, seconds: written / settings.fps };
  } catch (error) {
    await rm(unfinished, { force: true });
    throw error;
  }
}

function checked(options: WriteVideoOptions) {
  const { width, height, fps, crf = 23, preset = 'medium', threads = 1 } = options;
  for (const [name, side] of Object.entries({ width, height })) {
    if (!Number.isInteger(side) || side < 2 || side > LARGEST_SIDE || side % 2 !== 0) {
      throw wrong(`${name} is ${side}, but must be an even number from 2 to ${LARGEST_SIDE}`);
    }
  }
  if (!(fps >= 0.001 && fps <= 1000)) throw wrong(`fps is ${fps}, but must be from 0.001 to 1000`);
  if (!(crf >= 0 && crf <= 51)) throw wrong(`crf is ${crf}, but must be from 0 to 51`);
  if (!Number.isInteger(threads) || threads < 1 || threads > 128) {
    throw wrong(`threads is ${threads}, but must be a whole number from 1 to 128`);
  }
  if (!videoPresets.includes(preset)) {
    throw wrong(`preset is ${preset}, but must be one of ${videoPresets.join(', ')}`);
  }
  return { width, height, fps, crf, preset, threads };
}

/** Makes the empty file, because Node says better than FFmpeg why it cannot. */
async function create(unfinished: string, path: string): Promise<void> {
  try {
    const file = await open(unfinished, 'wx');
    await file.close();
  } catch (error) {
    throw unwritable(path, error);
  }
}

function wrong(message: string, hint?: string): LlamaVidError {
  return new LlamaVidError('INVALID_ARGUMENT', `${message}.`, { hint });
}
