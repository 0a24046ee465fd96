import { callNative, Device, LanguageModel as NativeLanguageModel, withCancellation } from '@llamavid/native';
import { DecodeRounds } from './decode-rounds.js';
import { Session } from './session.js';

export interface LoadOptions {
  /**
   * `auto` (default) takes the first CUDA device that works, else the CPU. Several, `cuda:0,cuda:1` or `cuda,cpu`, share the language
   * model, as `split` says; all else is on the first.
   */
  device?: 'auto' | 'cpu' | 'cuda' | `cuda:${number}` | `${string},${string}` | undefined;
  /** What the weights are computed in. `f32` is exact; `auto` (default) fits the device. */
  dtype?: 'auto' | 'f32' | 'bf16' | 'f16' | undefined;
  /**
   * How many bits matrices of weights are held in. `16bit` (default) leaves them as the file has them; `8bit` and `4bit` round them
   * while loading, on a CPU. What a file holds in blocks of fewer bits stays so in any case, and stays mapped.
   */
  load?: '16bit' | '8bit' | '4bit' | undefined;
  /**
   * How several devices share the language model. `layers` (default): each has whole layers, and they take turns. `tensor`: each has a
   * share of every layer, and they compute side by side; their number must divide the model's heads, and graphics processors need NCCL.
   */
  split?: 'layers' | 'tensor' | undefined;
  /** Stops loading; the promise then rejects with `ABORTED`. */
  signal?: AbortSignal | undefined;
}

/** What the checkpoint proposes where sampling is on and its options are silent. */
export interface GenerationDefaults {
  temperature?: number;
  topP?: number;
  topK?: number;
}

/**
 * The language model of a model folder, with its tokenizer. Holds the weights until `close`; sessions keep
 * them alive.
 */
export class LanguageModel implements Disposable {
  readonly #native: NativeLanguageModel;
  readonly #rounds = new DecodeRounds();
  /** Where the weights are: `cpu` or `cuda:N`, or several with commas between. */
  readonly device: string;

  /** @internal Made by `LanguageModel.load`. */
  constructor(native: NativeLanguageModel, device: string) {
    this.#native = native;
    this.device = device;
  }

  /** Loads the language model of a folder, and nothing else of it. Runs outside the event loop's thread. */
  static async load(folder: string, options: LoadOptions = {}): Promise<LanguageModel> {
    using device = callNative(() => Device.open(options.device ?? 'auto'));
    const native = await withCancellation(options.signal, (cancellation) =>
      NativeLanguageModel.load(folder, {
        device,
        dtype: options.dtype ?? 'auto',
        load: options.load ?? '16bit',
        split: options.split ?? 'layers',
        cancellation,
      }),
    );
    return new LanguageModel(native, device.name);
  }

  /** Positions that prompt and answer share, rope scaling included. */
  get contextLength(): number {
    return callNative(() => this.#native.contextLength);
  }

  /** What the weights are computed in, `auto` resolved. */
  get dtype(): string {
    return callNative(() => this.#native.dtype);
  }

  /** How most of the weights are stored: as `dtype` says, or in blocks, `q8_0` or `q4_k` for instance. */
  get storedAs(): string {
    return callNative(() => this.#native.storedAs);
  }

  /**
   * What stands in a prompt for one video or picture: `<image>`, or `<im_start><image><im_end>` where the
   * model wants it.
   */
  get imagePlaceholder(): string {
    return callNative(() => this.#native.imagePlaceholder);
  }

  /** The conversation template that the model was trained with, where its `config.json` names one. */
  get conversation(): string | undefined {
    return callNative(() => this.#native.conversation) ?? undefined;
  }

  get generationDefaults(): GenerationDefaults {
    return callNative(() => this.#native.generationDefaults);
  }

  /** Tokens of a text, without the beginning-of-sequence token. */
  countTokens(text: string): number {
    return callNative(() => this.#native.countTokens(text));
  }

  /**
   * A place to generate in, with a key/value cache of its own. Sessions that are read side by side decode together: a token of each
   * in one pass over the weights.
   */
  createSession(): Session {
    const native = callNative(() => this.#native.createSession());
    return new Session(native, this.generationDefaults, this.#rounds);
  }

  /** Frees the weights once no session uses them. Closing twice does nothing. */
  close(): void {
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
