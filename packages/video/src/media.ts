/** What `openMedia` gives: the same face for videos, pictures and folders of frames. */
import type { Pixels, Preprocessing } from '@llamavid/native';
import type { SubtitleStream } from './subtitle-stream.js';

/** One frame as it is displayed: upright, in square pixels. */
export interface Frame {
  /** RGB, 8 bits a channel, rows top down without gaps: width × height × 3 bytes. Yours to keep. */
  readonly data: Uint8Array;
  readonly width: number;
  readonly height: number;
  /** Place among the displayed frames of the source, from 0. */
  readonly index: number;
  /** Seconds on the source's clock. */
  readonly timestamp: number;
}

/** Some frames in a row, ready for the visual encoder. Close `pixels` when it is encoded. */
export interface PixelBatch {
  readonly pixels: Pixels;
  /** Seconds on the source's clock, one a frame, rising. */
  readonly timestamps: number[];
}

/** What the source says about itself. Sizes are as displayed. */
export interface MediaInfo {
  path?: string;
  durationSeconds?: number;
  fps?: number;
  frameCount?: number;
  width: number;
  height: number;
  codec: string;
}

/** Which frames were taken, and what was odd about the source. */
export interface SamplingReport {
  source: MediaInfo;
  /** Frames a second that were asked for; with `frames`, or where `maxFrames` left some out, the rate that came of it. */
  fps: number;
  /** Frames taken. */
  frames: number;
  /** Their seconds, rising. */
  timestamps: number[];
  /** Frames the decoder had to decode for them. */
  framesDecoded: number;
  /** Chosen frames that could not be decoded. */
  dropped: number;
  /** Frames that `fps` or `frames` would have taken and `maxFrames` left out, evenly over the range. */
  omitted: number;
  /** Everything that was repaired, skipped or guessed, in words. */
  notes: string[];
}

export interface FramesOptions {
  /** Stops decoding with `ABORTED`. */
  signal?: AbortSignal | undefined;
  /**
   * Seconds of the frames that an earlier reading gave, from the first on. Only those behind them are decoded and given; the
   * report counts all.
   */
  after?: readonly number[] | undefined;
}

export interface PixelsOptions extends FramesOptions {
  /** Frames in a batch; the last may have fewer. 16 by default. */
  batchSize?: number | undefined;
  /** Called for each frame with the number done and the number expected. */
  onProgress?: ((done: number, total: number) => void) | undefined;
}

/** An opened source. It holds a file and a decoder until `close`. */
export interface Media extends AsyncDisposable {
  readonly kind: 'video' | 'image';
  readonly info: MediaInfo;
  /** Frames that will be taken, as far as the file tells before it is decoded. */
  readonly expectedFrames: number;
  /** The chosen frames as RGB, a few at a time: the next are decoded as you take them. Each is a copy for you. */
  frames(options?: FramesOptions): AsyncIterable<Frame>;
  /** The chosen frames as the visual encoder takes them. No full-size frame is copied on the way. */
  pixels(preprocessing: Preprocessing, options?: PixelsOptions): AsyncIterable<PixelBatch>;
  /** What a text stream of the file says; undefined where there is none. Other frames may be read meanwhile. */
  subtitles(options?: FramesOptions): Promise<SubtitleStream | undefined>;
  /** The report of the last reading; complete once that has come to its end. */
  report(): SamplingReport;
  /** Frees everything and stops a reading that is going on. Closing twice does nothing. */
  close(): Promise<void>;
}

export const DEFAULT_BATCH_SIZE = 16;
