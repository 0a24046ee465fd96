import {
  type DeviceDescription,
  describeModel,
  LanguageModel,
  type ModelDescription,
  type LoadOptions as StageOptions,
} from '@llamavid/llm';
import { recordPhase } from '@llamavid/native';
import { TokenGenerator } from '@llamavid/tokens';
import type { MediaSource, SamplingReport } from '@llamavid/video';
import { VisualEncoder } from '@llamavid/vision';
import {
  type Answer,
  type AskOptions,
  answerEach,
  answerQuestion,
  type PlannedQuestion,
  type Stages,
} from './answer.js';
import { Chat, type ChatOptions } from './chat.js';
import { Clip, type OpenOptions } from './clip.js';
import { type ContextFit, fitContext, overflow } from './context-fit.js';
import { answersAtOnce, refuseWhatCannotFit } from './fitting.js';
import { LookedSource } from './looked-source.js';
import { EMBEDDED, locateModel } from './model-name.js';
import { largest, type MediaPlan, type PlanOptions, planMedia, promptSize, USUAL_ANSWER } from './plan.js';
import { planLoad } from './planned-load.js';
import { planRun, type RunPlan, type WeightFormat } from './run-plan.js';
import { type Timeline, timelineOf } from './timeline.js';

export interface LoadOptions extends StageOptions {
  /**
   * How many bits matrices of weights are held in. `16bit` (default) leaves them as the files have them. `8bit` and `4bit` round
   * those of the language model while loading, and those of the visual encoder and the query model to 8 bits.
   */
  load?: StageOptions['load'];
  /** Loads and answers even where memory will not suffice, instead of failing with `OUT_OF_MEMORY` before it begins. */
  tryAnyway?: boolean | undefined;
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
   * Loads all stages of a model: the folder of one, the name of one that `llamavid pull` fetched, or the embedded one
   * (`tiny`, the default). Runs outside the event loop's thread.
   */
  static async load(nameOrFolder: string = EMBEDDED, options: LoadOptions = {}): Promise<LlamaVid> {
    const { tryAnyway = false, ...given } = options;
    const begun = performance.now();
    const planned = await planLoad(nameOrFolder, given);
    const { name, folder, description, device, whole, small } = planned;
    if (!tryAnyway) refuseWhatCannotFit(planned.plan);
    const loaded: Disposable[] = [];
    const keep = <T extends Disposable>(part: T): T => {
      loaded.push(part);
      return part;
    };
    try {
      const encoder = keep(await VisualEncoder.load(folder, small));
      const tokenGenerator = keep(await TokenGenerator.load(folder, small));
      const languageModel = keep(await LanguageModel.load(folder, whole));
      const loadMs = performance.now() - begun;
      recordPhase('load', loadMs);
      return new LlamaVid(encoder, {
        tokenGenerator,
        languageModel,
        model: { name, dtype: languageModel.storedAs, device: languageModel.device },
        loadMs,
        tokensPerFrame: description.tokensPerFrame,
        checkRoom: (question) => {
          const plan = planQuestion(description, question, whole, device);
          const tooLong = overflow(plan);
          if (tooLong !== undefined) throw tooLong;
          if (!tryAnyway) refuseWhatCannotFit(plan);
          return answersAtOnce(plan);
        },
      });
    } catch (error) {
      for (const part of loaded) part[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * What a question about these sources would take of memory, and whether it is there: from the model's small files and the
   * headers of the sources, without weights and without decoding.
   */
  static async plan(
    nameOrFolder: string | undefined,
    sources: readonly (MediaSource | LookedSource)[],
    options: PlanOptions = {},
  ): Promise<MediaPlan> {
    const begun = performance.now();
    const plan = await planMedia(nameOrFolder ?? EMBEDDED, sources, options);
    recordPhase('plan', performance.now() - begun);
    return plan;
  }

  /** What was loaded, and where. */
  get model(): { name: string; dtype: string; device: string } {
    return this.#stages.model;
  }

  /** Milliseconds that loading took. */
  get loadMs(): number {
    return this.#stages.loadMs;
  }

  /**
   * Looks at a video or picture before a model is loaded, for a plan and the model to share: it is looked through once. `open` takes
   * it with these options. Speech that is wanted is written down here.
   */
  static async look(
    nameOrFolder: string | undefined,
    source: MediaSource,
    options: OpenOptions = {},
  ): Promise<LookedSource> {
    const { folder } = locateModel(nameOrFolder ?? EMBEDDED);
    const { tokensPerFrame } = await describeModel(folder);
    return await LookedSource.at(source, tokensPerFrame, options);
  }

  /** Opens a video or picture. Frames are decoded and encoded when the first question needs them. */
  async open(source: MediaSource | LookedSource, options: OpenOptions = {}): Promise<Clip> {
    const { tokensPerFrame } = this.#stages;
    const looked =
      source instanceof LookedSource ? source : await LookedSource.at(source, tokensPerFrame, options);
    const forget = (closed: Clip) => this.#clips.delete(closed);
    const begun = performance.now();
    const clip = await Clip.open(looked, this.#encoder, tokensPerFrame, forget);
    recordPhase('open', performance.now() - begun);
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

  /**
   * Where in a video what a question is about is seen: how much each frame has to do with it, by the context attention. Generates no
   * answer, so the video may be longer than the context.
   */
  async timeline(media: Clip, question: string, options: { signal?: AbortSignal } = {}): Promise<Timeline> {
    const { value } = await media.encoded(options.signal);
    return await timelineOf(this.#stages.tokenGenerator, value, question, options.signal);
  }

  /**
   * Asks several questions about the same videos or pictures, each by itself: one pass over the features makes the visual tokens of
   * all, and answers that are read side by side are decoded together, a token of each in one pass over the weights. At most 16 are
   * in the making at once, or as many as memory has room for; the next begins when one has ended, so read them side by side or in order.
   */
  askEach(
    media: Clip | readonly Clip[] | undefined,
    questions: readonly string[],
    options: AskOptions = {},
  ): Answer[] {
    return answerEach(this.#stages, listed(media), questions, options);
  }

  /** Starts a conversation about a video or picture, several of them, or none. */
  chat(media?: Clip | readonly Clip[], options: ChatOptions = {}): Chat {
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

/** What a question takes of a model that is loaded. */
function planQuestion(
  description: ModelDescription,
  planned: PlannedQuestion,
  format: WeightFormat & Pick<StageOptions, 'split'>,
  device: DeviceDescription,
): RunPlan & { contextFit: ContextFit | null } {
  const { clips, subtitles, history, question, maxNewTokens = USUAL_ANSWER } = planned;
  const looked = clips.map((clip, index) => clip.looked(subtitles[index]));
  const { promptTokens } = promptSize(description, looked, history, question, planned.conversation);
  const plan = planRun(description, {
    dtype: format.dtype,
    load: format.load,
    split: format.split ?? 'layers',
    frames: looked.map(({ frames }) => frames),
    sourcePixels: largest(looked),
    promptTokens,
    question,
    maxNewTokens,
    kvCache: planned.kvCache ?? '16bit',
    device: device.name,
    loaded: true,
    encodedFrames: clips.reduce((sum, clip) => sum + (clip.isEncoded ? clip.expectedFrames : 0), 0),
    stored: clips.every((clip) => clip.isStored),
  });
  return { ...plan, contextFit: fitContext(plan, looked) };
}

function listed(media: Clip | readonly Clip[] | undefined): readonly Clip[] {
  if (media === undefined) return [];
  return media instanceof Clip ? [media] : media;
}
