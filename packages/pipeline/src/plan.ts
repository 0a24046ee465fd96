import {
  type ConversationTurn,
  conversation,
  describeDevice,
  describeModel,
  type ModelDescription,
  type LoadOptions as StageOptions,
} from '@llamavid/llm';
import type { MediaInfo, MediaSource } from '@llamavid/video';
import type { OpenOptions } from './clip.js';
import { type ContextFit, fitContext, overflow, secondsOf } from './context-fit.js';
import { isStorable } from './encoding.js';
import { LookedSource } from './looked-source.js';
import { locateModel } from './model-name.js';
import { countTokens, type Shown, usualTemplate, writePrompt } from './prompt.js';
import { planRun, type RunPlan } from './run-plan.js';
import { speechModelOf } from './speech.js';
import { type ReadSubtitles, subtitlesWithin } from './subtitles.js';

export interface PlanOptions extends Omit<OpenOptions, 'onProgress'>, Omit<StageOptions, 'signal'> {
  /** What would be asked; a short question by default. */
  question?: string | undefined;
  /** Conversation template. Default: as for a question that is really asked. */
  conversation?: string | undefined;
  /** The longest answer. Default 512. */
  maxNewTokens?: number | undefined;
  /** How keys and values are held. Default `16bit`: as they are computed. */
  kvCache?: '16bit' | '8bit' | '4bit' | undefined;
}

/** What a run takes. */
export interface MediaPlan extends RunPlan {
  model: { name: string };
  device: string;
  sources: MediaInfo[];
  notes: string[];
  /** Of a prompt that is too long, what the context has room for; null where the prompt fits. */
  contextFit: ContextFit | null;
}

/** A question whose length is usual. */
const USUAL_QUESTION = 'What happens in this video, and in which order?';
/** As `ask` has it. */
export const USUAL_ANSWER = 512;

/** Says what a question about `sources` takes, without reading weights, decoding frames or listening. */
export async function planMedia(
  nameOrFolder: string,
  sources: readonly (MediaSource | LookedSource)[],
  options: PlanOptions = {},
): Promise<MediaPlan> {
  const { name, folder } = locateModel(nameOrFolder);
  const { question = USUAL_QUESTION, maxNewTokens = USUAL_ANSWER } = options;
  const device = describeDevice(options.device);
  const description = await describeModel(folder);
  const subtitles = options.subtitles === 'speech' ? 'none' : options.subtitles;
  const unheard = { ...options, subtitles, speechModel: 'none' };
  const looked: LookedSource[] = [];
  for (const source of sources) {
    if (source instanceof LookedSource) looked.push(source);
    else {
      await using found = await LookedSource.at(source, description.tokensPerFrame, unheard);
      looked.push(found);
    }
  }
  const { promptTokens } = promptSize(description, looked, [], question, options.conversation);
  const plan = planRun(description, {
    frames: looked.map(({ frames }) => frames),
    sourcePixels: largest(looked),
    promptTokens,
    question,
    maxNewTokens,
    dtype: options.dtype ?? 'auto',
    load: options.load ?? '16bit',
    kvCache: options.kvCache ?? '16bit',
    device: device.name,
    split: options.split ?? 'layers',
    listGpus: true,
    stored: looked.every((each) => each.movie?.isStored ?? isStorable(each.source, each.options)),
  });
  const contextFit = fitContext(plan, looked);
  const tooLong = overflow({ ...plan, contextFit });
  const notes = tooLong === undefined ? [] : [`${tooLong.message}. ${tooLong.hint}`];
  const mayHear = options.subtitles === 'auto' && speechModelOf(options) !== undefined;
  const isUnheard = (source: MediaSource | LookedSource, index: number) =>
    !(source instanceof LookedSource) && looked[index]?.subtitles === undefined;
  if ((mayHear || options.subtitles === 'speech') && sources.some(isUnheard)) {
    notes.push('a plan does not listen: what is said is not counted');
  }
  return {
    ...plan,
    contextFit,
    model: { name },
    device: device.name,
    sources: looked.map(({ info }) => info),
    notes,
  };
}

/** A source of which the header is known. */
export interface Looked {
  info: MediaInfo;
  frames: number;
  subtitles: ReadSubtitles | undefined;
  /** The part of it that was chosen. */
  options: Pick<OpenOptions, 'start' | 'end'>;
}

/** Tokens of the prompt. Frame times, which only decoding tells, are spread evenly. */
export function promptSize(
  description: ModelDescription,
  looked: readonly Looked[],
  history: readonly ConversationTurn[],
  question: string,
  template: string | undefined,
): { promptTokens: number; visualTokens: number } {
  const { tokensPerFrame, imagePlaceholder } = description;
  const shown = looked.map((each): Shown => {
    const { frames, subtitles, options } = each;
    const { start = 0 } = options;
    const seconds = secondsOf(each) ?? frames;
    const frameTimes = Array.from({ length: frames }, (_, frame) => start + (frame * seconds) / frames);
    const within = subtitles && subtitlesWithin(subtitles, options, frameTimes);
    return { subtitles: within?.subtitles, inputs: within?.inputs, frameTimes, tokensPerFrame };
  });
  const hasSubtitles = shown.some(({ subtitles }) => subtitles !== undefined);
  const written = writePrompt(
    conversation(template ?? usualTemplate(description.conversation, hasSubtitles)),
    history,
    shown,
    imagePlaceholder,
    question,
  );
  return countTokens(description, written, shown);
}

/** Pixels of the largest picture. */
export function largest(looked: readonly Looked[]): number {
  return Math.max(0, ...looked.map(({ info }) => info.width * info.height));
}
