/** Pictures as media: one picture, or many that are a video's frames. */
import { LlamaVidError } from '@llamavid/errors';
import type { PixelChannel, Preprocessing } from '@llamavid/native';
import { contentType, HEAD_BYTES } from './content-type.js';
import { chooseFrames, DEFAULT_FPS, type FrameChoice, omissionNotes, type Sampling } from './frame-choice.js';
import type {
  Frame,
  FramesOptions,
  Media,
  MediaInfo,
  PixelBatch,
  PixelsOptions,
  SamplingReport,
} from './media.js';
import type { Picture, PictureList } from './picture-list.js';
import { pixelBatches } from './pixel-batches.js';
import { aborted, closed, invalidRange, truncated } from './video-errors.js';

export interface PictureSettings {
  readonly kind: 'image' | 'video';
  readonly name: string;
  readonly path: string | undefined;
  readonly sampling: Sampling;
  /** Frames a second that the pictures stand for. */
  readonly pictureFps: number;
  /** Seconds of each picture, where they are not spread evenly. */
  readonly pictureTimes: readonly number[] | undefined;
  readonly strict: boolean;
  readonly notes: readonly string[];
  readonly dispose: () => Promise<void>;
}

interface Decoded {
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
}

/** Chooses among the pictures and decodes the first, so that what cannot be read is known now. */
export async function openPictures(
  list: PictureList,
  settings: PictureSettings,
  signal?: AbortSignal,
): Promise<Media> {
  const { name, sampling, pictureFps, strict, kind } = settings;
  const { pictureTimes } = settings;
  if ((strict || pictureTimes !== undefined) && list.truncation !== undefined) {
    throw truncated(name, list.truncation);
  }
  const times = pictureTimes ?? list.pictures.map((_, picture) => secondsOf(picture, pictureFps));
  if (times.length !== list.pictures.length) {
    throw new LlamaVidError(
      'DATA_INVALID',
      `${name} holds ${list.pictures.length} pictures, and there are ${times.length} times for them.`,
      { hint: 'Give a time for each picture: those of another video are not these.' },
    );
  }
  const duration = times.length / pictureFps;
  const chosen =
    kind === 'image' ? { indices: [0], omitted: 0 } : chooseFrames(times, pictureFps, duration, sampling);
  if (chosen.indices.length === 0) throw invalidRange(name, sampling, duration);
  let failure: unknown;
  for (const picture of chosen.indices) {
    if (signal?.aborted) throw aborted(name, signal.reason);
    const first = list.pictures[picture];
    if (first === undefined) continue;
    try {
      const bytes = await first.read();
      const { width, height } = await decode(bytes, first.name);
      const type = contentType(
        Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.byteLength, HEAD_BYTES)),
      );
      return new PictureMedia(list, settings, times, chosen, {
        width,
        height,
        codec: type.replace('animated-', ''),
      });
    } catch (error) {
      if (strict || kind === 'image') throw error;
      failure ??= error;
    }
  }
  throw failure;
}

class PictureMedia implements Media {
  readonly kind: 'image' | 'video';
  readonly info: MediaInfo;
  readonly expectedFrames: number;
  readonly #pictures: readonly Picture[];
  readonly #settings: PictureSettings;
  readonly #times: readonly number[];
  readonly #chosen: FrameChoice;
  readonly #openingNotes: readonly string[];
  #notes: string[] = [];
  #timestamps: number[] = [];
  #decoded = 0;
  #closed: Promise<void> | undefined;

  constructor(
    list: PictureList,
    settings: PictureSettings,
    times: readonly number[],
    chosen: FrameChoice,
    facts: Pick<MediaInfo, 'width' | 'height' | 'codec'>,
  ) {
    const { kind, path, pictureFps } = settings;
    const frameCount = list.pictures.length;
    this.kind = kind;
    this.#pictures = list.pictures;
    this.#settings = settings;
    this.#times = times;
    this.#chosen = chosen;
    this.expectedFrames = chosen.indices.length;
    this.#openingNotes = [...list.notes, ...settings.notes];
    this.info = {
      ...(path !== undefined && { path }),
      ...(kind === 'video' && { durationSeconds: frameCount / pictureFps, fps: pictureFps }),
      frameCount,
      ...facts,
    };
  }

  async *frames({ signal, after = [] }: FramesOptions = {}): AsyncGenerator<Frame, void, undefined> {
    this.#timestamps = [...after];
    this.#notes = [];
    this.#decoded = 0;
    // One that could not be decoded is tried, and told, again.
    const given = new Set(after);
    for (const index of this.#chosen.indices) {
      this.#checkOpen(signal);
      const picture = this.#pictures[index];
      const timestamp = this.#times[index] ?? 0;
      if (picture === undefined || given.has(timestamp)) continue;
      const decoded = await this.#decode(picture);
      this.#checkOpen(signal);
      if (decoded === undefined) continue;
      this.#timestamps.push(timestamp);
      this.#decoded += 1;
      yield { ...decoded, index, timestamp };
    }
    if (this.#timestamps.length === 0)
      throw truncated(this.#settings.name, 'none of its pictures can be decoded any more');
  }

  pixels(
    preprocessing: Preprocessing,
    options: PixelsOptions = {},
  ): AsyncGenerator<PixelBatch, void, undefined> {
    const expected = this.#chosen.indices.length;
    return pixelBatches(preprocessing, options, expected, (channel) => this.#push(channel, options));
  }

  subtitles(): Promise<undefined> {
    return Promise.resolve(undefined);
  }

  report(): SamplingReport {
    const timestamps = [...this.#timestamps];
    const { sampling, pictureFps } = this.#settings;
    const { omitted } = this.#chosen;
    const seconds = this.#pictures.length / pictureFps;
    const { frames, fps = DEFAULT_FPS, start = 0, end = seconds } = sampling;
    return {
      source: { ...this.info },
      fps: frames === undefined && omitted === 0 ? fps : timestamps.length / (Math.min(end, seconds) - start),
      frames: timestamps.length,
      timestamps,
      framesDecoded: this.#decoded,
      dropped: this.#notes.length,
      omitted,
      notes: [...this.#openingNotes, ...omissionNotes(omitted, sampling), ...this.#notes],
    };
  }

  close(): Promise<void> {
    this.#closed ??= this.#settings.dispose();
    return this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async *#push(channel: PixelChannel, options: FramesOptions): AsyncGenerator<Frame, void, undefined> {
    const { callNative } = await import('@llamavid/native');
    for await (const frame of this.frames(options)) {
      const { data, width, height } = frame;
      callNative(() => channel.push(data, width, height, width * 3));
      yield frame;
    }
  }

  /** Undefined for a broken one among many, which is reported. */
  async #decode(picture: Picture): Promise<Decoded | undefined> {
    try {
      return await decode(await picture.read(), picture.name);
    } catch (error) {
      if (this.kind === 'image' || this.#settings.strict) throw error;
      this.#notes.push(`dropped: ${error instanceof Error ? error.message : String(error)}`);
      return undefined;
    }
  }

  #checkOpen(signal: AbortSignal | undefined): void {
    const { name } = this.#settings;
    if (signal?.aborted) throw aborted(name, signal.reason);
    if (this.#closed !== undefined) throw closed(name);
  }
}

async function decode(bytes: Uint8Array, name: string): Promise<Decoded> {
  const { callNativeAsync, decodeImage } = await import('@llamavid/native');
  try {
    return await callNativeAsync(decodeImage(bytes));
  } catch (error) {
    if (!(error instanceof LlamaVidError)) throw error;
    const { code, message, hint } = error;
    throw new LlamaVidError(code, `${name} cannot be decoded: ${message}`, { hint, cause: error });
  }
}

function secondsOf(picture: number, fps: number): number {
  return Math.round((picture / fps) * 1e6) / 1e6;
}
