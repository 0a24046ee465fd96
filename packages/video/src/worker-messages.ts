/** What the decoding worker and its owner say to each other. */
import { type ErrorCode, LlamaVidError } from '@llamavid/errors';
import type { Sampling } from './frame-choice.js';

/** Given to the worker at its start. */
export interface OpenRequest {
  /** Where the bytes are. */
  readonly path: string;
  /** What messages call it. */
  readonly name: string;
  readonly sampling: Sampling;
  readonly strict: boolean;
  readonly maxPixels: number;
  readonly decoderThreads: number;
  readonly control: SharedArrayBuffer;
}

/** To the worker, one at a time. */
export type WorkerRequest =
  | {
      readonly kind: 'read';
      readonly control: SharedArrayBuffer;
      /** Where pixels go; without it RGB frames are sent as messages. */
      readonly channel?: number;
      /** Seconds of the frames that an earlier reading gave. */
      readonly after: readonly number[];
    }
  | { readonly kind: 'close' };

/** The video as its file describes it; sizes as displayed, in square pixels and upright. */
export interface VideoFacts {
  readonly durationSeconds: number | undefined;
  readonly fps: number;
  readonly frameCount: number;
  readonly width: number;
  readonly height: number;
  readonly codec: string;
  /** Frames that will be taken; an estimate where the file does not say when its frames are displayed. */
  readonly expectedSamples: number;
  readonly notes: readonly string[];
}

/** A frame: in `data` as RGB without gaps between rows, or already in the pixel channel. */
export interface FrameMessage {
  readonly kind: 'frame';
  readonly index: number;
  readonly timestamp: number;
  readonly width: number;
  readonly height: number;
  readonly data?: Uint8Array<ArrayBuffer>;
}

/** What a whole read found. */
export interface ReadOutcome {
  readonly framesDecoded: number;
  readonly dropped: number;
  readonly omitted: number;
  /** Displayed frames, where counting showed another number than the file's table. */
  readonly frameCount: number;
  readonly notes: readonly string[];
}

/** From the worker. */
export type WorkerReply =
  | { readonly kind: 'opened'; readonly facts: VideoFacts }
  | FrameMessage
  /** Without an outcome where the owner stopped it. */
  | { readonly kind: 'done'; readonly outcome: ReadOutcome | undefined }
  | { readonly kind: 'failed'; readonly error: PlainError };

/** A {@link LlamaVidError} without its class, which does not survive the way between threads. */
export interface PlainError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint?: string | undefined;
}

/** Writes any error down; what is not ours is a bug. */
export function toPlainError(error: unknown): PlainError {
  if (error instanceof LlamaVidError) return { code: error.code, message: error.message, hint: error.hint };
  const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return { code: 'INTERNAL', message: `The video decoder failed: ${message}` };
}

/** The error that {@link toPlainError} wrote down. */
export function fromPlainError({ code, message, hint }: PlainError): LlamaVidError {
  return new LlamaVidError(code, message, hint === undefined ? {} : { hint });
}
