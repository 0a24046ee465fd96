import { LlamaVidError } from '@llamavid/errors';
import { type Media, type MediaInfo, type MediaSource, openMedia } from '@llamavid/video';
import type { OpenOptions } from './clip.js';
import { type ClipFacts, lookInStore } from './encoding.js';
import { isMovie, type Movie, openMovie } from './movie.js';
import type { Looked } from './plan.js';
import { type ReadSubtitles, readSubtitles } from './subtitles.js';

/**
 * A video or picture that was looked at before a model is loaded: what its header tells, and what is said in it. A plan and a model
 * take it in place of the source, which so is looked through once; where a store has its features, the file is not opened at all.
 * Holds the open file until a model took it, or `close`.
 */
export class LookedSource implements Looked, AsyncDisposable {
  /** @internal */
  readonly source: MediaSource;
  /** @internal */
  readonly options: OpenOptions;
  /** @internal */
  readonly facts: ClipFacts;
  /** @internal */
  readonly subtitles: ReadSubtitles | undefined;
  /** @internal The source's features, if it is those and not a video. */
  readonly movie: Movie | undefined;
  #media: Media | undefined;

  private constructor(
    source: MediaSource,
    options: OpenOptions,
    facts: ClipFacts,
    subtitles: ReadSubtitles | undefined,
    media: Media | undefined,
    movie?: Movie,
  ) {
    this.source = source;
    this.options = options;
    this.facts = facts;
    this.subtitles = subtitles;
    this.#media = media;
    this.movie = movie;
  }

  /** @internal Made by `LlamaVid.look`. */
  static async at(source: MediaSource, tokensPerFrame: number, options: OpenOptions): Promise<LookedSource> {
    const { subtitles = 'none' } = options;
    if (isMovie(source)) {
      const movie = await openMovie(source, options);
      return new LookedSource(source, options, movie.facts, movie.words(), undefined, movie);
    }
    const sampling = { ...options, maxFrames: frameLimit(options.maxVisualTokens, tokensPerFrame) };
    const facts = (await lookInStore(source, sampling)) ?? (await openMedia(source, sampling));
    const media = 'close' in facts ? facts : undefined;
    try {
      return new LookedSource(source, options, facts, await readSubtitles(subtitles, facts, options), media);
    } catch (error) {
      await media?.close();
      throw error;
    }
  }

  /** Size, length and codec of the source. */
  get info(): MediaInfo {
    return this.facts.info;
  }

  /** Frames that will be taken, as far as the file tells. */
  get frames(): number {
    return this.facts.expectedFrames;
  }

  /** @internal The open file, which is the caller's from now on. */
  async take(tokensPerFrame: number): Promise<Media> {
    const media = this.#media;
    this.#media = undefined;
    if (media !== undefined) return media;
    const maxFrames = frameLimit(this.options.maxVisualTokens, tokensPerFrame);
    return await openMedia(this.source, { ...this.options, maxFrames });
  }

  /** Closes the file, if it is still held. Closing twice does nothing. */
  async close(): Promise<void> {
    const media = this.#media;
    this.#media = undefined;
    await media?.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** Frames whose tokens are at most `maxVisualTokens`. */
export function frameLimit(maxVisualTokens: number | undefined, tokensPerFrame: number): number | undefined {
  if (maxVisualTokens === undefined) return undefined;
  if (Number.isSafeInteger(maxVisualTokens) && maxVisualTokens >= tokensPerFrame) {
    return Math.floor(maxVisualTokens / tokensPerFrame);
  }
  throw new LlamaVidError(
    'INVALID_ARGUMENT',
    `maxVisualTokens is ${maxVisualTokens}, but must be a whole number of at least ${tokensPerFrame}, the tokens of one frame`,
  );
}
