import { LlamaVidError } from '@llamavid/errors';
import type { Media, SamplingReport } from '@llamavid/video';
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
import { frameLimit, type LookedSource } from './looked-source.js';
import type { Movie } from './movie.js';
import type { Looked } from './plan.js';
import { SharedWork } from './shared-work.js';
import type { SpeechOptions } from './speech.js';
import { type ReadSubtitles, readSubtitles, type SubtitleSource, subtitlesWithin } from './subtitles.js';

export interface OpenOptions extends StoreOptions, SpeechOptions {
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
   * What is said in the video: a file (`.srt`, `.vtt`, `.ass`), its bytes, subtitles from elsewhere, `speech` for what a Whisper model
   * hears, or `auto` for the first that there is: the file beside the video, a text stream in it, speech. Default `none`.
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
  /** What was looked for in the file for a question, by what was asked for. */
  readonly #found = new Map<SubtitleSource, SharedWork<ReadSubtitles | undefined>>();
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
    looked: LookedSource,
    encoder: VisualEncoder,
    tokensPerFrame: number,
    onClose: (clip: Clip) => void,
  ): Promise<Clip> {
    await using source = looked;
    const { options, subtitles, movie } = source;
    if (movie !== undefined) {
      return new Clip(source.facts, undefined, undefined, subtitles, encoder, options, onClose, movie);
    }
    const maxFrames = frameLimit(options.maxVisualTokens, tokensPerFrame);
    const place = await placeInStore(source.source, encoder, { ...options, maxFrames });
    const stored = place && storedClip(place.entry.report, place.path);
    // A store may know the frames, but by another encoder's features.
    const facts = stored ?? (await source.take(tokensPerFrame));
    const media = 'close' in facts ? facts : undefined;
    return new Clip(facts, media, place, subtitles, encoder, options, onClose);
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

  /** @internal What is said in the video: by `source`, else as the clip was opened. The video is looked through once. */
  async subtitles(source?: SubtitleSource, signal?: AbortSignal): Promise<ReadSubtitles | undefined> {
    if (source === undefined || source === this.#options.subtitles) return this.#subtitles;
    if (this.#movie !== undefined) return this.#movie.words(source);
    const read = (stop: AbortSignal | undefined) =>
      readSubtitles(source, this.#facts, { ...this.#options, signal: stop });
    if (source !== 'auto' && source !== 'speech') return await read(signal);
    const found = this.#found.get(source) ?? new SharedWork(read, () => undefined);
    this.#found.set(source, found);
    return (await found.wait(signal)).value;
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
    await Promise.all([this.#encoded, ...this.#found.values()].map((work) => work.stop()));
    await this.#media?.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
