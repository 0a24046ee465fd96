/** A video whose decoder runs in a worker thread. */
import { Worker } from 'node:worker_threads';
import { LlamaVidError } from '@llamavid/errors';
import type { PixelChannel, Preprocessing } from '@llamavid/native';
import { Control } from './control.js';
import { DEFAULT_FPS, omissionNotes, type Sampling } from './frame-choice.js';
import type {
  Frame,
  FramesOptions,
  Media,
  MediaInfo,
  PixelBatch,
  PixelsOptions,
  SamplingReport,
} from './media.js';
import { pixelBatches } from './pixel-batches.js';
import type { SubtitleStream } from './subtitle-stream.js';
import { aborted, closed, unreadable } from './video-errors.js';
import {
  type FrameMessage,
  fromPlainError,
  type OpenRequest,
  type ReadOutcome,
  type VideoFacts,
  type WorkerReply,
  type WorkerRequest,
} from './worker-messages.js';

/** Frames that wait decoded for whoever iterates `frames()`. */
const FRAMES_AHEAD = 2;

/** A decoder that neither reads nor decodes for so long hangs in a broken file. */
const STALL_SECONDS = 60;

/** A worker that was asked to stop does so at the next packet, which is milliseconds away. */
const STOP_SECONDS = 2;

export interface VideoSource {
  /** Where the bytes are. */
  readonly file: string;
  /** What messages call it. */
  readonly name: string;
  /** The path that was given, if one was. */
  readonly path: string | undefined;
  /** Removes what was written for it. */
  readonly dispose: () => Promise<void>;
}

export interface VideoSettings {
  readonly sampling: Sampling;
  readonly strict: boolean;
  readonly maxPixels: number;
  readonly decoderThreads: number;
}

/** Opens a video and looks through it. */
export async function openVideo(
  source: VideoSource,
  settings: VideoSettings,
  signal?: AbortSignal,
): Promise<Media> {
  const control = new Control();
  const { sampling, strict, maxPixels, decoderThreads } = settings;
  const workerData: OpenRequest = {
    path: source.file,
    name: source.name,
    sampling,
    strict,
    maxPixels,
    decoderThreads,
    control: control.buffer,
  };
  const worker = new Worker(new URL('./decode-worker.js', import.meta.url), {
    workerData,
    // Not this process's: its flags may be about its main script, such as --input-type.
    execArgv: [],
    name: `llamavid decode ${source.name}`.slice(0, 60),
  });
  const line = new WorkerLine(worker, source.name);
  try {
    for await (const message of line.listen(control, signal)) {
      if (message.kind === 'opened') return new VideoMedia(source, settings, message.facts, line);
    }
    throw new Error('the worker said nothing');
  } catch (error) {
    await line.close();
    throw error;
  }
}

class VideoMedia implements Media {
  readonly kind = 'video';
  readonly info: MediaInfo;
  readonly expectedFrames: number;
  readonly #source: VideoSource;
  readonly #sampling: Sampling;
  readonly #facts: VideoFacts;
  readonly #line: WorkerLine;
  #reading = false;
  #timestamps: number[] = [];
  #outcome: ReadOutcome | undefined;
  #closed: Promise<void> | undefined;

  constructor(source: VideoSource, settings: VideoSettings, facts: VideoFacts, line: WorkerLine) {
    this.#source = source;
    this.#sampling = settings.sampling;
    this.#facts = facts;
    this.#line = line;
    this.expectedFrames = facts.expectedSamples;
    const { durationSeconds, fps, frameCount, width, height, codec } = facts;
    this.info = {
      ...(source.path !== undefined && { path: source.path }),
      ...(durationSeconds !== undefined && { durationSeconds }),
      fps,
      frameCount,
      width,
      height,
      codec,
    };
  }

  async *frames({ signal, after = [] }: FramesOptions = {}): AsyncGenerator<Frame, void, undefined> {
    const control = new Control();
    control.grant(FRAMES_AHEAD);
    for await (const frame of this.#read(control, undefined, after, signal)) {
      const { data, width, height, index, timestamp } = frame;
      if (data === undefined) throw new Error('a frame came without its data');
      yield { data, width, height, index, timestamp };
      control.grant(1);
    }
  }

  pixels(
    preprocessing: Preprocessing,
    options: PixelsOptions = {},
  ): AsyncGenerator<PixelBatch, void, undefined> {
    const { after = [], signal } = options;
    const read = this.#readBatches.bind(this, after, signal);
    return pixelBatches(preprocessing, options, this.#facts.expectedSamples, read);
  }

  async subtitles({ signal }: FramesOptions = {}): Promise<SubtitleStream | undefined> {
    const { file, name } = this.#source;
    if (this.#closed !== undefined) throw closed(name);
    const { readSubtitleStream } = await import('./subtitle-stream.js');
    return readSubtitleStream(file, name, signal);
  }

  report(): SamplingReport {
    const timestamps = [...this.#timestamps];
    const { frames, fps = DEFAULT_FPS } = this.#sampling;
    const frameCount = this.#outcome?.frameCount ?? this.info.frameCount;
    const omitted = this.#outcome?.omitted ?? 0;
    return {
      source: { ...this.info, ...(frameCount !== undefined && { frameCount }) },
      fps: frames === undefined && omitted === 0 ? fps : this.#rateOf(timestamps),
      frames: timestamps.length,
      timestamps,
      framesDecoded: this.#outcome?.framesDecoded ?? 0,
      dropped: this.#outcome?.dropped ?? 0,
      omitted,
      notes: [
        ...this.#facts.notes,
        ...omissionNotes(omitted, this.#sampling),
        ...(this.#outcome?.notes ?? []),
      ],
    };
  }

  close(): Promise<void> {
    this.#closed ??= this.#line.close().finally(() => this.#source.dispose());
    return this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** The frames that the worker puts into a channel: those of a batch in the caller's hands, and of one on its way. */
  async *#readBatches(
    after: readonly number[],
    signal: AbortSignal | undefined,
    channel: PixelChannel,
    batchSize: number,
  ): AsyncGenerator<FrameMessage, void, undefined> {
    const control = new Control();
    control.grant(2 * batchSize);
    let given = 0;
    for await (const frame of this.#read(control, channel.id, after, signal)) {
      yield frame;
      given += 1;
      if (given % batchSize === 0) control.grant(batchSize);
    }
  }

  async *#read(
    control: Control,
    channel: number | undefined,
    after: readonly number[],
    signal?: AbortSignal,
  ): AsyncGenerator<FrameMessage, void, undefined> {
    const { name } = this.#source;
    if (this.#closed !== undefined) throw closed(name);
    if (this.#reading) {
      throw new LlamaVidError('INVALID_ARGUMENT', `${name} is being read already.`, {
        hint: 'Finish one iteration before the next, or open the file twice.',
      });
    }
    this.#reading = true;
    this.#timestamps = [...after];
    this.#outcome = undefined;
    try {
      const request: WorkerRequest = {
        kind: 'read',
        control: control.buffer,
        after,
        ...(channel !== undefined && { channel }),
      };
      for await (const message of this.#line.listen(control, signal, request)) {
        if (message.kind === 'frame') {
          this.#timestamps.push(message.timestamp);
          yield message;
        } else if (message.kind === 'done') {
          if (message.outcome === undefined) throw closed(name);
          this.#outcome = message.outcome;
          return;
        }
      }
    } finally {
      this.#reading = false;
    }
  }

  #rateOf(timestamps: readonly number[]): number {
    const { start = 0, end = Number.POSITIVE_INFINITY } = this.#sampling;
    const seconds = Math.min(end, this.#facts.durationSeconds ?? end) - start;
    return Number.isFinite(seconds) && seconds > 0 ? timestamps.length / seconds : this.#facts.fps;
  }
}

/** Messages from the worker, one conversation at a time. */
class WorkerLine {
  readonly #worker: Worker;
  readonly #name: string;
  readonly #exited: Promise<void>;
  #queue: WorkerReply[] = [];
  #wake: (() => void) | undefined;
  #broken: Error | undefined;
  #control: Control | undefined;
  #idle: Promise<void> = Promise.resolve();

  constructor(worker: Worker, name: string) {
    this.#worker = worker;
    this.#name = name;
    worker.on('message', (message: WorkerReply) => {
      this.#queue.push(message);
      this.#wake?.();
    });
    worker.on('error', (error: Error & { code?: string }) => {
      const code = error.code === 'ERR_WORKER_OUT_OF_MEMORY' ? 'OUT_OF_MEMORY' : 'INTERNAL';
      this.#break(new LlamaVidError(code, `Decoding ${name} failed: ${error.message}`, { cause: error }));
    });
    this.#exited = new Promise((resolve) => {
      worker.on('exit', () => {
        this.#break(closed(name));
        resolve();
      });
    });
    // Nobody waits for an idle worker: it must not keep the process alive.
    worker.unref();
  }

  /**
   * Sends `request` and gives what the worker answers, until it is done or has failed. Leaving early stops the worker
   * before the next conversation.
   */
  async *listen(
    control: Control,
    signal?: AbortSignal,
    request?: WorkerRequest,
  ): AsyncGenerator<WorkerReply, void, undefined> {
    await this.#idle;
    if (signal?.aborted) throw aborted(this.#name, signal.reason);
    if (this.#broken) throw this.#broken;
    this.#control = control;
    const onAbort = () => this.#wake?.();
    signal?.addEventListener('abort', onAbort, { once: true });
    this.#worker.ref();
    if (request !== undefined) this.#worker.postMessage(request);
    let open = true;
    try {
      while (open) {
        const message = await this.#next(control, signal);
        open = message.kind === 'frame';
        if (message.kind === 'failed') throw fromPlainError(message.error);
        yield message;
      }
    } finally {
      signal?.removeEventListener('abort', onAbort);
      this.#control = undefined;
      if (open) this.#idle = this.#stop(control, request !== undefined);
      else this.#worker.unref();
    }
  }

  /** Stops the worker and waits for its end. */
  async close(): Promise<void> {
    this.#control?.cancel();
    await this.#idle;
    this.#break(closed(this.#name));
    this.#worker.ref();
    const request: WorkerRequest = { kind: 'close' };
    this.#worker.postMessage(request);
    if (!(await within(STOP_SECONDS, this.#exited))) await within(STOP_SECONDS, this.#worker.terminate());
    this.#worker.unref();
  }

  async #next(control: Control, signal: AbortSignal | undefined): Promise<WorkerReply> {
    let progress = control.progress();
    let stalled = 0;
    for (;;) {
      if (signal?.aborted) throw aborted(this.#name, signal.reason);
      const message = this.#queue.shift();
      if (message !== undefined) return message;
      if (this.#broken) throw this.#broken;
      let timer: NodeJS.Timeout | undefined;
      const ticked = await new Promise<boolean>((resolve) => {
        this.#wake = () => resolve(false);
        timer = setTimeout(() => resolve(true), 1000);
      });
      clearTimeout(timer);
      this.#wake = undefined;
      if (!ticked) continue;
      const now = control.progress();
      stalled = now === progress && now !== undefined ? stalled + 1 : 0;
      progress = now;
      if (stalled >= STALL_SECONDS) {
        const stall = unreadable(this.#name, `its decoder made no progress for ${STALL_SECONDS} s`);
        this.#break(stall);
        void this.#worker.terminate();
        throw stall;
      }
    }
  }

  /** Waits until a conversation that was left has ended, so that its last messages are not the next one's. */
  async #stop(control: Control, answers: boolean): Promise<void> {
    control.cancel();
    const ended = (async () => {
      for (let open = answers; open && !this.#broken; ) {
        const message = this.#queue.shift();
        if (message === undefined) {
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
          });
        } else open = message.kind === 'frame';
      }
    })();
    if (!(await within(STOP_SECONDS, ended))) {
      this.#break(
        new LlamaVidError('HANDLE_CLOSED', `The decoder of ${this.#name} did not stop and was ended.`),
      );
      await within(STOP_SECONDS, this.#worker.terminate());
    }
    this.#worker.unref();
  }

  #break(error: Error): void {
    this.#broken ??= error;
    this.#wake?.();
  }
}

/** Whether `promise` settles in time. */
async function within(seconds: number, promise: Promise<unknown>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), seconds * 1000);
  });
  try {
    return await Promise.race([promise.then(() => true), late]);
  } finally {
    clearTimeout(timer);
  }
}
