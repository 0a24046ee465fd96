import { LlamaVidError } from '@llamavid/errors';
import {
  callNative,
  Device,
  TokenGenerator as NativeTokenGenerator,
  nativeHandle,
  withCancellation,
} from '@llamavid/native';
import type { DeviceName, Dtype, VisualFeatures } from '@llamavid/vision';
import { VisualTokens } from './visual-tokens.js';

export interface LoadOptions {
  /** The device of the features it will read. Default `auto`. */
  device?: DeviceName | undefined;
  /** Default `auto`. */
  dtype?: Dtype | undefined;
  /** How many bits matrices of the query model are held in. Default `16bit`, which leaves them as the file has them. */
  load?: '16bit' | '8bit' | undefined;
  /** Stops loading; the promise then rejects with `ABORTED`. */
  signal?: AbortSignal | undefined;
}

export interface GenerateOptions {
  /**
   * Sets the context token or the content tokens of each frame to zero. To measure what they are worth; answers get worse, and
   * nothing but evaluations should want that.
   */
  ablate?: 'context' | 'content' | undefined;
  /** Read between blocks of 64 frames; the promise then rejects with `ABORTED`. */
  signal?: AbortSignal | undefined;
}

/**
 * Makes a video's tokens for a question: text-guided query, context attention, pooled content. Holds the
 * weights until `close`.
 */
export class TokenGenerator implements Disposable {
  readonly #native: NativeTokenGenerator;
  /** Where the weights are: `cpu` or `cuda:N`. */
  readonly device: string;

  /** @internal Made by `TokenGenerator.load`. */
  constructor(native: NativeTokenGenerator, device: string) {
    this.#native = native;
    this.device = device;
  }

  /**
   * Loads the token generation of a model folder, and nothing else of it. Runs outside the event loop's
   * thread.
   */
  static async load(folder: string, options: LoadOptions = {}): Promise<TokenGenerator> {
    using device = callNative(() => Device.open(options.device ?? 'auto'));
    const native = await withCancellation(options.signal, (cancellation) =>
      NativeTokenGenerator.load(folder, {
        device,
        dtype: options.dtype ?? 'auto',
        load: options.load ?? '16bit',
        cancellation,
      }),
    );
    return new TokenGenerator(native, device.name);
  }

  /** Width of a token: the language model's. */
  get width(): number {
    return callNative(() => this.#native.width);
  }

  /** Tokens of all frames for one bare question (no template, no `<image>`). The features stay open. */
  async generate(
    features: VisualFeatures,
    question: string,
    options: GenerateOptions = {},
  ): Promise<VisualTokens> {
    const [tokens] = await this.generateEach(features, [question], options);
    if (!tokens) throw new LlamaVidError('INTERNAL', 'token generation answered a question with nothing');
    return tokens;
  }

  /**
   * Tokens for several questions of one sample, in their order, in one pass. The questions are padded to the
   * longest among them, as the reference does for the questions of one sample.
   */
  async generateEach(
    features: VisualFeatures,
    questions: readonly string[],
    options: GenerateOptions = {},
  ): Promise<VisualTokens[]> {
    const natives = await withCancellation(options.signal, (cancellation) =>
      this.#native.generate(features[nativeHandle](), [...questions], cancellation, options.ablate),
    );
    return natives.map((native) => new VisualTokens(native));
  }

  /**
   * How much each frame has to do with a question, by frame, 0 or more: how far the attention that the question pays to a frame's
   * patches is from an even one. From the scores before the softmax, which shares each frame's attention out among its own
   * patches; see `docs/decisions/timeline.md`.
   */
  async relevance(
    features: VisualFeatures,
    question: string,
    { signal }: Pick<GenerateOptions, 'signal'> = {},
  ): Promise<Float32Array> {
    return await withCancellation(signal, (cancellation) =>
      this.#native.relevance(features[nativeHandle](), question, cancellation),
    );
  }

  /** Frees the weights. Closing twice does nothing. */
  close(): void {
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
