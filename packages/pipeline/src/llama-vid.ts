import { LanguageModel, type LoadOptions as StageOptions } from '@llamavid/llm';
import { TokenGenerator } from '@llamavid/tokens';
import type { MediaSource, SamplingReport } from '@llamavid/video';
import { VisualEncoder } from '@llamavid/vision';
import { type Answer, type AskOptions, answerQuestion, type Stages } from './answer.js';
import { Chat } from './chat.js';
import { Clip, type OpenOptions } from './clip.js';
import { EMBEDDED, locateModel } from './model-name.js';

export interface LoadOptions extends StageOptions {
  /**
   * How many bits matrices of weights are held in. `16bit` (default) leaves them as the files have them. `8bit` and `4bit` round
   * those of the language model while loading, and those of the visual encoder and the query model to 8 bits.
   */
  load?: StageOptions['load'];
}

/**
 * A whole LLaMA-VID model: opens videos and pictures, answers questions about them. Holds the weights until
 * `close`.
 */
export class LlamaVid implements AsyncDisposable {
  readonly #encoder: VisualEncoder;
  readonly #stages: Stages;
  readonly #clips = new Set<Clip>();

  private constructor(encoder: VisualEncoder, stages: Stages) {
    this.#encoder = encoder;
    this.#stages = stages;
  }

  /**
   * Loads all stages of a model: the folder of one, or the embedded one (`tiny`, the default). Runs outside the event loop's
   * thread.
   */
  static async load(nameOrFolder: string = EMBEDDED, options: LoadOptions = {}): Promise<LlamaVid> {
    // The small parts of the model feel an error in every answer.
    const small = { ...options, load: options.load === '4bit' ? '8bit' : options.load } as const;
    const { name, folder } = locateModel(nameOrFolder);
    const begun = performance.now();
    const loaded: Disposable[] = [];
    const keep = <T extends Disposable>(part: T): T => {
      loaded.push(part);
      return part;
    };
    try {
      const encoder = keep(await VisualEncoder.load(folder, small));
      const tokenGenerator = keep(await TokenGenerator.load(folder, small));
      const languageModel = keep(await LanguageModel.load(folder, options));
      const { device, storedAs: dtype } = languageModel;
      return new LlamaVid(encoder, {
        tokenGenerator,
        languageModel,
        model: { name, dtype, device },
        loadMs: performance.now() - begun,
      });
    } catch (error) {
      for (const part of loaded) part[Symbol.dispose]();
      throw error;
    }
  }

  /** What was loaded, and where. */
  get model(): { name: string; dtype: string; device: string } {
    return this.#stages.model;
  }

  /** Milliseconds that loading took. */
  get loadMs(): number {
    return this.#stages.loadMs;
  }

  /** Opens a video or picture. Frames are decoded and encoded when the first question needs them. */
  async open(source: MediaSource, options: OpenOptions = {}): Promise<Clip> {
    const clip = await Clip.open(source, this.#encoder, options, (closed) => this.#clips.delete(closed));
    this.#clips.add(clip);
    return clip;
  }

  /**
   * Asks one question about a video or picture, several of them, or none. The answer begins when it is read,
   * and knows nothing of other questions.
   */
  ask(media: Clip, question: string, options?: AskOptions): Answer<SamplingReport>;
  ask(media: Clip | readonly Clip[] | undefined, question: string, options?: AskOptions): Answer;
  ask(media: Clip | readonly Clip[] | undefined, question: string, options: AskOptions = {}): Answer {
    const context = { clips: listed(media), history: [] };
    return answerQuestion(this.#stages, () => context, question, options);
  }

  /** Starts a conversation about a video or picture, several of them, or none. */
  chat(media?: Clip | readonly Clip[], options: AskOptions = {}): Chat {
    return new Chat(this.#stages, listed(media), options);
  }

  /** Closes what was opened with this model, and frees the weights. Closing twice does nothing. */
  async close(): Promise<void> {
    await Promise.all([...this.#clips].map((clip) => clip.close()));
    this.#encoder.close();
    this.#stages.tokenGenerator.close();
    this.#stages.languageModel.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function listed(media: Clip | readonly Clip[] | undefined): readonly Clip[] {
  if (media === undefined) return [];
  return media instanceof Clip ? [media] : media;
}
