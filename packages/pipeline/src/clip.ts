import { LlamaVidError } from '@llamavid/errors';
import { type Media, type MediaSource, openMedia, type SamplingReport } from '@llamavid/video';
import { type VisualEncoder, VisualFeatures } from '@llamavid/vision';
import type { Looked } from './plan.js';
import { SharedWork } from './shared-work.js';
import { type ReadSubtitles, readSubtitles, type SubtitleSource, subtitlesWithin } from './subtitles.js';

export interface OpenOptions {
  /** Frames a second of video. Default 1. */
  fps?: number | undefined;
  /** Exactly this many frames, spread evenly; instead of `fps`. */
  frames?: number | undefined;
  /** Seconds where sampling starts. */
  start?: number | undefined;
  /** Seconds where sampling ends. */
  end?: number | undefined;
  /** A file that is damaged in places is an error instead of a note. */
  strict?: boolean | undefined;
  /** What messages and the sampling report call a source that has no path. */
  name?: string | undefined;
  /**
   * At most this many visual tokens: where more frames are chosen, as many as fit are taken, spread evenly over the whole range, and
   * the sampling report counts those left out. Default: no limit, and what does not fit the model's context is an error.
   */
  maxVisualTokens?: number | undefined;
  /**
   * What is said in the video: a file (`.srt`, `.vtt`, `.ass`), its bytes, subtitles from elsewhere, or `auto` for the file beside the
   * video or a text stream in it. Default `none`.
   */
  subtitles?: SubtitleSource | undefined;
  /** Features are not stored between runs yet. */
  store?: 'none' | undefined;
  /** Stops opening. The questions have signals of their own. */
  signal?: AbortSignal | undefined;
  /** Called while frames are encoded. */
  onProgress?: ((encodedFrames: number, totalFrames: number) => void) | undefined;
}

/** @internal What the encoder made of a clip, and what it took. */
export interface EncodedClip {
  features: VisualFeatures;
  sampling: SamplingReport;
  /** Milliseconds that the encoder waited for frames; decoding beside it is not in it. */
  decodeMs: number;
  encodeMs: number;
}

/**
 * An opened video or picture. Its frames are decoded and encoded once, when the first question (or `encode`)
 * needs them; all later questions share the features. Holds device memory until `close`.
 */
export class Clip implements AsyncDisposable {
  readonly #media: Media;
  readonly #options: OpenOptions;
  readonly #subtitles: ReadSubtitles | undefined;
  readonly #encoded: SharedWork<EncodedClip>;
  readonly #onClose: (clip: Clip) => void;
  #closed = false;

  private constructor(
    media: Media,
    subtitles: ReadSubtitles | undefined,
    encoder: VisualEncoder,
    options: OpenOptions,
    onClose: (clip: Clip) => void,
  ) {
    this.#media = media;
    this.#subtitles = subtitles;
    this.#options = options;
    this.#encoded = new SharedWork(
      (signal) => encode(media, encoder, signal, options.onProgress),
      ({ features }) => features.close(),
    );
    this.#onClose = onClose;
  }

  /** @internal Made by `LlamaVid.open`. */
  static async open(
    source: MediaSource,
    encoder: VisualEncoder,
    tokensPerFrame: number,
    options: OpenOptions,
    onClose: (clip: Clip) => void,
  ): Promise<Clip> {
    const { media, subtitles } = await openWithSubtitles(source, tokensPerFrame, options);
    return new Clip(media, subtitles, encoder, options, onClose);
  }

  get kind(): Media['kind'] {
    return this.#media.kind;
  }

  /** Size, length and codec of the source. */
  get info(): Media['info'] {
    return this.#media.info;
  }

  /** Frames that the first question will decode and encode, as far as the file tells. */
  get expectedFrames(): number {
    return this.#media.expectedFrames;
  }

  /** @internal What its header tells. */
  looked(subtitles: ReadSubtitles | undefined): Looked {
    return { info: this.info, frames: this.expectedFrames, subtitles, options: this.#options };
  }

  /** @internal Whether the features are there already. */
  get isEncoded(): boolean {
    return this.#encoded.isDone;
  }

  /** Decodes and encodes now instead of at the first question. */
  async encode(options: { signal?: AbortSignal } = {}): Promise<SamplingReport> {
    const { value } = await this.encoded(options.signal);
    return value.sampling;
  }

  /** @internal What is said in the video: by `source`, else as the clip was opened. */
  async subtitles(source?: SubtitleSource, signal?: AbortSignal): Promise<ReadSubtitles | undefined> {
    return source === undefined ? this.#subtitles : await readSubtitles(source, this.#media, signal);
  }

  /** @internal What is said in the part of the video that was opened. */
  within(subtitles: ReadSubtitles, frameTimes: readonly number[]): ReadSubtitles {
    return subtitlesWithin(subtitles, this.#options, frameTimes);
  }

  /** @internal The features, and whether this call was the one that made them. */
  encoded(signal?: AbortSignal): Promise<{ value: EncodedClip; fresh: boolean }> {
    if (this.#closed)
      return Promise.reject(new LlamaVidError('HANDLE_CLOSED', 'the video or picture is closed'));
    return this.#encoded.wait(signal);
  }

  /** Stops encoding, frees the features and the decoder. Closing twice does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#onClose(this);
    await this.#encoded.stop();
    await this.#media.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** @internal Opens a source, with what is said in it. */
export async function openWithSubtitles(
  source: MediaSource,
  tokensPerFrame: number,
  options: OpenOptions,
): Promise<{ media: Media; subtitles: ReadSubtitles | undefined }> {
  const { fps, frames, start, end, strict, name, store = 'none', signal } = options;
  if (store !== 'none') {
    throw new LlamaVidError('INVALID_ARGUMENT', `store \`${store}\` is not supported yet`, {
      hint: '`none` is the only value of store so far.',
    });
  }
  const maxFrames = frameLimit(options.maxVisualTokens, tokensPerFrame);
  const media = await openMedia(source, { fps, frames, maxFrames, start, end, strict, name, signal });
  try {
    return { media, subtitles: await readSubtitles(options.subtitles ?? 'none', media, signal) };
  } catch (error) {
    await media.close();
    throw error;
  }
}

/** Frames whose tokens are at most `maxVisualTokens`. */
function frameLimit(maxVisualTokens: number | undefined, tokensPerFrame: number): number | undefined {
  if (maxVisualTokens === undefined) return undefined;
  if (Number.isSafeInteger(maxVisualTokens) && maxVisualTokens >= tokensPerFrame) {
    return Math.floor(maxVisualTokens / tokensPerFrame);
  }
  throw new LlamaVidError(
    'INVALID_ARGUMENT',
    `maxVisualTokens is ${maxVisualTokens}, but must be a whole number of at least ${tokensPerFrame}, the tokens of one frame`,
  );
}

async function encode(
  media: Media,
  encoder: VisualEncoder,
  signal: AbortSignal,
  onProgress: OpenOptions['onProgress'],
): Promise<EncodedClip> {
  const parts: VisualFeatures[] = [];
  let [decodeMs, encodeMs, encodedFrames, totalFrames] = [0, 0, 0, 0];
  const countFrames = (_done: number, total: number) => {
    totalFrames = total;
  };
  try {
    let waiting = performance.now();
    for await (const { pixels } of media.pixels(encoder.preprocessing, { signal, onProgress: countFrames })) {
      const begun = performance.now();
      decodeMs += begun - waiting;
      try {
        const part = await encoder.encode(pixels, { signal });
        parts.push(part);
        encodedFrames += part.frameCount;
      } finally {
        pixels.close();
      }
      waiting = performance.now();
      encodeMs += waiting - begun;
      onProgress?.(encodedFrames, Math.max(encodedFrames, totalFrames));
    }
    if (parts.length === 0) {
      throw new LlamaVidError('MEDIA_NO_VIDEO', 'no frame lies in the part that was chosen', {
        hint: 'Widen start and end.',
      });
    }
    const whole = VisualFeatures.concatenate(parts);
    // Now and not at the end: a part that nobody holds is freed once it is copied, so the features never exist twice.
    for (const part of parts) part.close();
    return {
      features: await whole,
      sampling: media.report(),
      decodeMs,
      encodeMs,
    };
  } finally {
    for (const part of parts) part.close();
  }
}
