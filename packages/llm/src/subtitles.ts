import {
  callNative,
  callNativeAsync,
  checkSubtitles as nativeCheck,
  movieQuestion as nativeMovieQuestion,
  movieText as nativeMovieText,
  parseSubtitles as nativeParse,
  readSubtitleStream as nativeReadStream,
} from '@llamavid/native';

/** A text and when it is spoken, in seconds. */
export interface Subtitle {
  start: number;
  end: number;
  text: string;
}

/** Subtitles that a prompt can hold. */
export interface Subtitles {
  subtitles: Subtitle[];
  /** What was left out or is odd, in words. */
  notes: string[];
}

/** What a video with subtitles is in a prompt. */
export interface Movie {
  /** As `parseSubtitles` or `checkSubtitles` give them. */
  subtitles: readonly Subtitle[];
  /** Seconds of the frames, rising. */
  frameTimes: readonly number[];
  /** The text with an `<image>` for each frame instead of both, where a feature file has it. */
  inputs?: string | undefined;
  /** `VisualTokens.tokensPerFrame`. */
  tokensPerFrame: number;
  /** `LanguageModel.imagePlaceholder`. */
  imagePlaceholder: string;
}

/** A subtitle of a text stream, as the video file holds it: its times in seconds, and bytes in the stream's format. */
export interface StreamCue {
  readonly start: number;
  readonly end: number;
  readonly data: Uint8Array;
}

/**
 * Reads the bytes of a `.srt` file, as the reference does, or of a WebVTT or SubStation Alpha (`.ass`, `.ssa`) file. `name` is what errors call it. Rejects with
 * `DATA_INVALID` at a file without subtitles and at broken times.
 */
export function parseSubtitles(bytes: Uint8Array, name: string): Promise<Subtitles> {
  return callNativeAsync(() => nativeParse(bytes, name));
}

/** What a viewer of a video's text stream sees, each subtitle in one line without markup. */
export function readSubtitleStream(
  format: 'subrip' | 'webvtt' | 'ass' | 'mov_text',
  cues: readonly StreamCue[],
): Promise<Subtitles> {
  return callNativeAsync(() => nativeReadStream(format, [...cues]));
}

/** Subtitles from elsewhere, such as speech recognition, made fit for a prompt. */
export function checkSubtitles(subtitles: readonly Subtitle[]): Subtitles {
  return callNative(() => nativeCheck([...subtitles]));
}

/**
 * What the user says about a video with subtitles, in the words that the long-video models were trained with: an `<image>` for
 * each visual token, each subtitle behind the last frame that is shown before its end, and the question. Generate with
 * `layout: 'per-token'`.
 */
export function movieQuestion(movie: Movie, question: string): string {
  const { subtitles, frameTimes, tokensPerFrame, imagePlaceholder } = movie;
  const inputs = movie.inputs ?? movieInputs(subtitles, frameTimes);
  return callNative(() => nativeMovieQuestion({ inputs, tokensPerFrame, imagePlaceholder, question }));
}

/**
 * The text of a video with subtitles as the reference's feature files have it: an `<image>` for each frame, whose seconds are
 * `frameTimes`, and each subtitle behind the last one that is shown before its end.
 */
export function movieInputs(subtitles: readonly Subtitle[], frameTimes: readonly number[]): string {
  return callNative(() => nativeMovieText([...subtitles], [...frameTimes]));
}
