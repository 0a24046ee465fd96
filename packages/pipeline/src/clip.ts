import { LlamaVidError } from '@llamavid/errors';
import { type Media, type MediaSource, openMedia, type SamplingReport } from '@llamavid/video';
import type { VisualEncoder } from '@llamavid/vision';
import {
  type ClipFacts,
  type EncodedClip,
  encodeClip,
  type OnProgress,
  placeInStore,
  type StoreOptions,
  type StorePlace,
  storedClip,
} from './encoding.js';
import { isMovie, type Movie, openMovie } from './movie.js';
import type { Looked } from './plan.js';
import { SharedWork } from './shared-work.js';
import { type ReadSubtitles, readSubtitles, type SubtitleSource, subtitlesWithin } from './subtitles.js';

export interface OpenOptions extends StoreOptions {
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
  /** Stops opening. The questions have signals of their own. */
  signal?: AbortSignal | undefined;
  /** Called while frames are encoded: with those that are there, all, and those that an earlier run had stored. */
  onProgress?: OnProgress | undefined;
}

/**
 * An opened video or picture. Its frames are decoded and encoded once, when the first question (or `encode`) needs them, or found
 * in the store; all later questions share the features. Holds memory until `close`.
 */
export class Clip implements AsyncDisposable {
  readonly #facts: ClipFacts;
  /** Not opened where the store has all that is asked of it. */
  readonly #media: Media | undefined;
  readonly #place: StorePlace | undefined;
  readonly #options: OpenOptions;
  readonly #subtitles: ReadSubtitles | undefined;
  readonly #movie: Movie | undefined;
  readonly #encoded: SharedWork<EncodedClip>;
  readonly #onClose: (clip: Clip) => void;
  #closed = false;

  private constructor(
    facts: ClipFacts,
    media: Media | undefined,
    place: StorePlace | undefined,
    subtitles: ReadSubtitles | undefined,
    encoder: VisualEncoder,
    options: OpenOptions,
    onClose: (clip: Clip) => void,
    movie?: Movie,
  ) {
    this.#facts = facts;
    this.#media = media;
    this.#place = place;
    this.#subtitles = subtitles;
    this.#options = options;
    this.#movie = movie;
    this.#encoded = new SharedWork(
      (signal) =>
        movie?.encoded(encoder, signal) ?? encodeClip(media, encoder, place, { ...options, signal }),
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
    if (isMovie(source)) {
      const movie = await openMovie(source, options);
      return new Clip(movie.facts, undefined, undefined, movie.words(), encoder, options, onClose, movie);
    }
    const maxFrames = frameLimit(options.maxVisualTokens, tokensPerFrame);
    const place = await placeInStore(source, encoder, { ...options, maxFrames });
    const stored = place && storedClip(place);
    if (stored !== undefined) {
      const subtitles = await readSubtitles(options.subtitles ?? 'none', stored, options.signal);
      return new Clip(stored, undefined, place, subtitles, encoder, options, onClose);
    }
    const { media, subtitles } = await openWithSubtitles(source, tokensPerFrame, options);
    return new Clip(media, media, place, subtitles, encoder, options, onClose);
  }

  get kind(): Media['kind'] {
    return this.#facts.kind;
  }

  /** Size, length and codec of the source. */
  get info(): Media['info'] {
    return this.#facts.info;
  }

  /** Frames that the first question will decode and encode, as far as the file tells. */
  get expectedFrames(): number {
    return this.#facts.expectedFrames;
  }

  /** @internal What its header tells. */
  looked(subtitles: ReadSubtitles | undefined): Looked {
    return { info: this.info, frames: this.expectedFrames, subtitles, options: this.#options };
  }

  /** @internal Whether the features are read from a store a few frames at a time. */
  get isStored(): boolean {
    return this.#movie?.isStored ?? this.#place !== undefined;
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
    if (source === undefined) return this.#subtitles;
    return this.#movie === undefined
      ? await readSubtitles(source, this.#facts, signal)
      : this.#movie.words(source);
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
    await this.#media?.close();
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
  const { fps, frames, start, end, strict, name, signal } = options;
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
