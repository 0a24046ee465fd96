/** A Whisper model, and what it hears in a file. */
import { LlamaVidError } from '@llamavid/errors';
import {
  callNative,
  Device,
  SpeechModel as NativeSpeechModel,
  type SpeechSegment,
  type Subtitle,
  Transcription,
  withCancellation,
} from '@llamavid/native';
import { readSound, SOUND_RATE } from '@llamavid/video';

const NOTHING = new Float32Array();

export interface SpeechLoadOptions {
  /** `auto`, `cpu`, `cuda` or `cuda:N`. Default `auto`. */
  readonly device?: string | undefined;
  /** What the weights are computed in. Default `auto`: f32 on the CPU, bf16 on a GPU. */
  readonly dtype?: 'auto' | 'f32' | 'bf16' | 'f16' | undefined;
  /** Stops loading with `ABORTED`. */
  readonly signal?: AbortSignal | undefined;
}

/** The defaults are the reference's. */
export interface TranscribeOptions {
  /** The language's code, such as `en`. Default: told from the first 30 seconds. */
  readonly language?: string | undefined;
  /** Tried one after the other until a text is believed. Default 0, 0.2, … 1. */
  readonly temperatures?: readonly number[] | undefined;
  /** A text that compresses better than this repeats itself and is not believed. Default 2.4. */
  readonly compressionRatio?: number | undefined;
  /** A text whose mean log probability is below this is not believed. Default -1. */
  readonly logProbability?: number | undefined;
  /** Nobody speaks where this is more probable and the text is not believed. Default 0.6. */
  readonly noSpeech?: number | undefined;
  /** Whether the model is told what was said before, 30 seconds after 30 seconds. Default `true`. */
  readonly withPreviousText?: boolean | undefined;
  /** Equal seeds give equal texts at temperatures above 0. Default 0. */
  readonly seed?: number | undefined;
  /** Stops with `ABORTED`, within a token. */
  readonly signal?: AbortSignal | undefined;
  /** Called for each window of up to 30 seconds. */
  readonly onProgress?: ((progress: SpeechProgress) => void) | undefined;
}

export interface SpeechProgress {
  /** Seconds that are written down. */
  readonly done: number;
  /** Seconds of the sound. */
  readonly total: number;
  /** What was said in the window. */
  readonly segments: readonly SpeechSegment[];
}

export interface Transcript {
  /** Everything that was heard. */
  readonly segments: readonly SpeechSegment[];
  /** What the model is sure enough of, as prompts and files take it. */
  readonly subtitles: readonly Subtitle[];
  /** The language's code; absent where the model knows one only, or nothing was heard. */
  readonly language?: string;
  /** Seconds of sound. */
  readonly durationSeconds: number;
  /** Everything that was repaired or left out, in words. */
  readonly notes: readonly string[];
}

/** A Whisper model. Holds its weights until `close`. */
export class SpeechModel implements Disposable {
  readonly #native: NativeSpeechModel;

  private constructor(native: NativeSpeechModel) {
    this.#native = native;
  }

  /**
   * Loads a folder of the Hugging Face library, or a `.pt` file of the public implementation with its vocabulary beside it.
   *
   * @throws `MODEL_NOT_FOUND`, `MODEL_FILE_MISSING`, `MODEL_INVALID`, `MODEL_UNSUPPORTED`, `DEVICE_UNAVAILABLE`,
   * `INVALID_ARGUMENT`, `ABORTED`.
   */
  static async load(path: string, options: SpeechLoadOptions = {}): Promise<SpeechModel> {
    const { device: name = 'auto', dtype = 'auto', signal } = options;
    return withCancellation(signal, async (cancellation) => {
      using device = callNative(() => Device.open(name));
      return new SpeechModel(await NativeSpeechModel.load(path, device, dtype, cancellation));
    });
  }

  /** The codes of the languages that it knows; none for a model of English. */
  get languages(): readonly string[] {
    return callNative(() => this.#native.languages);
  }

  /**
   * Writes down what is said in a video or sound file. The file is read twice, for the loudest point first; memory does not grow
   * with its length.
   *
   * @throws `MEDIA_NOT_FOUND`, `MEDIA_UNREADABLE`, `MEDIA_NO_AUDIO`, `INVALID_ARGUMENT`, `HANDLE_CLOSED`, `ABORTED`.
   */
  async transcribe(path: string, options: TranscribeOptions = {}): Promise<Transcript> {
    const { signal, onProgress, language, temperatures, seed, ...thresholds } = options;
    const { compressionRatio, logProbability, noSpeech, withPreviousText } = thresholds;
    using transcription = callNative(() =>
      Transcription.start(this.#native, {
        ...(language !== undefined && { language }),
        ...(temperatures !== undefined && { temperatures: [...temperatures] }),
        ...(compressionRatio !== undefined && { compressionRatio }),
        ...(logProbability !== undefined && { logProbability }),
        ...(noSpeech !== undefined && { noSpeech }),
        ...(withPreviousText !== undefined && { withPreviousText }),
        ...(seed !== undefined && { seed }),
      }),
    );
    // Awaited here: behind the last line the transcription is closed.
    return await withCancellation(signal, async (cancellation) => {
      const notes: string[] = [];
      let measured = 0;
      for await (const piece of readSound(path, { signal, onNote: (note) => notes.push(note) })) {
        await transcription.measure(piece);
        measured += piece.length;
      }
      const heard: { segments: SpeechSegment[]; subtitles: Subtitle[]; language?: string } = {
        segments: [],
        subtitles: [],
      };
      let left = measured;
      const write = async () => {
        const part = await transcription.next(cancellation);
        if (part === null) return false;
        const { done, total, segments, subtitles, language } = part;
        heard.segments.push(...segments);
        heard.subtitles.push(...subtitles);
        if (language !== undefined) heard.language = language;
        onProgress?.({ done, total, segments });
        return true;
      };
      for await (const piece of readSound(path, { signal })) {
        left -= piece.length;
        // A piece may complete several windows: a window goes on where the last piece of speech ended.
        for (let isComplete = await transcription.hear(piece); isComplete && left > 0; ) {
          if (!(await write())) break;
          isComplete = await transcription.hear(NOTHING);
        }
      }
      if (left !== 0) throw changed(path);
      while (await write()) {
        // Windows behind the last piece that was read.
      }
      return { ...heard, durationSeconds: measured / SOUND_RATE, notes };
    });
  }

  /** Frees the weights. Closing twice does nothing. */
  close(): void {
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function changed(path: string): LlamaVidError {
  return new LlamaVidError('MEDIA_UNREADABLE', `${path} changed while it was read.`, {
    hint: 'Wait until the file is written, then try again.',
  });
}
