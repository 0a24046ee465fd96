import { LlamaVidError } from '@llamavid/errors';
import {
  type ConversationTurn,
  checkGenerateOptions,
  conversation,
  type GenerateOptions,
  type GenerationResult,
  type LanguageModel,
  type Session,
  TextStream,
} from '@llamavid/llm';
import { recordPhase } from '@llamavid/native';
import type { TokenGenerator, VisualTokens } from '@llamavid/tokens';
import type { SamplingReport } from '@llamavid/video';
import type { VisualFeatures } from '@llamavid/vision';
import type { Clip } from './clip.js';
import { usualTemplate, writePrompt } from './prompt.js';
import { isFound, type ReadSubtitles, type SubtitleReport, type SubtitleSource } from './subtitles.js';
import { type Timeline, timelineOf } from './timeline.js';
import { Turns } from './turns.js';

export interface AskOptions extends Omit<GenerateOptions, 'visualTokens' | 'layout' | 'keep'> {
  /**
   * Conversation template. Default: the one that the model's `config.json` names, else what the reference's scripts take, which is
   * `llava_v1`, and `vicuna_v1` with subtitles.
   */
  conversation?: string | undefined;
  /** What is said in the video that the question is about, instead of what it was opened with. */
  subtitles?: SubtitleSource | undefined;
  /** Whether the result tells where in each video what is asked about is seen. Default false: it takes one more pass of the query model. */
  timeline?: boolean | undefined;
  /** For evaluations alone. */
  evaluation?: EvaluationOptions | undefined;
}

/** Spoils a part of the model on purpose, to measure what that part is worth. Answers get worse. */
export interface EvaluationOptions {
  /** What the query model reads instead of the question. */
  queryQuestion?: string | undefined;
  /** Sets the context token or the content tokens of each frame to zero. */
  ablate?: 'context' | 'content' | undefined;
}

export type AnswerUsage = GenerationResult['usage'];

/** What this answer made run; frames that an earlier question had encoded count nothing. */
export interface AnswerWork {
  framesDecoded: number;
  /** Frames that the visual encoder ran for; one that equals the frame before it is not. */
  framesEncoded: number;
  /** Whether all features were in the store before this answer. */
  storeHit: boolean;
}

/** Milliseconds, but for the last two. */
export interface AnswerTimings {
  /** Loading the model, before this and all other questions. */
  loadMs: number;
  /** Waiting for decoded frames; decoding that ran beside the encoder is not in it. */
  decodeMs: number;
  encodeMs: number;
  /** Making visual tokens for the question. */
  tokensMs: number;
  prefillMs: number;
  /** From the start of this answer to its first new token. */
  firstTokenMs: number;
  /** From the start of this answer to its end. */
  totalMs: number;
  /** New tokens a second of decoding. */
  tokensPerSecond: number;
  /** The most memory that this process has held so far. */
  peakRssBytes: number;
}

export interface AnswerModel {
  name: string;
  dtype: string;
  device: string;
}

export interface AnswerResult<Sampling = SamplingReport | undefined> {
  text: string;
  tokenIds: number[];
  /** Tokens of the prompt that an earlier turn had read: only in a chat that keeps its visual prefix. */
  keptTokens: number;
  finishReason: 'stop' | 'length';
  usage: AnswerUsage;
  /**
   * How frames were chosen from the video, the first one of several; undefined for a question without any.
   */
  sampling: Sampling;
  /** How frames were chosen from each video, in the order of the question. */
  samplings: SamplingReport[];
  /** The subtitles of each video that has some, in the order of the question. */
  subtitles: SubtitleReport[];
  /** Where in each video what is asked about is seen, in the order of the question; empty unless it was asked for. */
  timelines: Timeline[];
  work: AnswerWork;
  timings: AnswerTimings;
  model: AnswerModel;
}

/** An answer's text as it is made, and its result at the end. */
export type Answer<Sampling = SamplingReport | undefined> = TextStream<AnswerResult<Sampling>>;

/** @internal What an answer needs of a model. */
export interface Stages {
  tokenGenerator: TokenGenerator;
  languageModel: LanguageModel;
  /** The context token and the content tokens of a frame. */
  tokensPerFrame: number;
  model: AnswerModel;
  loadMs: number;
  /** Throws `CONTEXT_OVERFLOW` or `OUT_OF_MEMORY` for an answer that cannot fit. Gives how many like it fit side by side. */
  checkRoom: (question: PlannedQuestion) => number;
}

/** @internal A question before its frames are decoded. */
export interface PlannedQuestion {
  clips: readonly Clip[];
  subtitles: readonly (ReadSubtitles | undefined)[];
  history: readonly ConversationTurn[];
  question: string;
  conversation: string | undefined;
  maxNewTokens: number | undefined;
  kvCache: AskOptions['kvCache'];
}

/** @internal What the turns of a chat share when they keep what the first one read. */
export class KeptPrefix implements Disposable {
  /** In the order of the clips. */
  tokens: readonly VisualTokens[] | undefined;
  session: Session | undefined;

  [Symbol.dispose](): void {
    this.session?.close();
    for (const tokens of this.tokens ?? []) tokens.close();
    this.session = undefined;
    this.tokens = undefined;
  }
}

/** @internal Where a question stands: what was said before it, and what it is about. */
export interface Context {
  clips: readonly Clip[];
  history: readonly ConversationTurn[];
  /** The visual tokens and what was read of the first turn; without it they are made for each question. */
  kept?: KeptPrefix | undefined;
  /** Waits for the answer's turn among others, of which so many fit side by side. */
  begin?: (room: number, signal: AbortSignal | undefined) => Promise<void>;
  /** Gives the visual tokens of a clip's features where they are not made for this question alone. */
  tokens?: (features: VisualFeatures, signal: AbortSignal | undefined) => Promise<VisualTokens>;
  /**
   * Called once at the end, before the reader gets the result; without one when the answer failed or was
   * stopped.
   */
  onEnd?: (result: AnswerResult | undefined) => void;
}

/** @internal The answer begins, and asks for its context, when it is read. */
export function answerQuestion(
  stages: Stages,
  context: () => Context,
  question: string,
  options: AskOptions,
): Answer {
  checkGenerateOptions(options);
  if (question.includes('<image>')) {
    throw new LlamaVidError(
      'INVALID_ARGUMENT',
      'the question holds `<image>`, which stands for a video or picture',
      {
        hint: 'Leave it out: the media that the question is about are put in front of it.',
      },
    );
  }
  const chosen = options.conversation === undefined ? undefined : conversation(options.conversation);
  return new TextStream(run());

  async function* run(): AsyncGenerator<string, AnswerResult, void> {
    const { clips, history, begin, tokens, kept, onEnd } = context();
    const { tokenGenerator, languageModel, model, loadMs } = stages;
    const known = kept?.tokens;
    const begun = performance.now();
    const work: AnswerWork = { framesDecoded: 0, framesEncoded: 0, storeHit: clips.length > 0 };
    const samplings: SamplingReport[] = [];
    const visualTokens: VisualTokens[] = [];
    const timelines: Timeline[] = [];
    let [decodeMs, encodeMs, tokensMs] = [0, 0, 0];
    let session: Session | undefined;
    let result: AnswerResult | undefined;
    try {
      // Before the long work: a file of subtitles that cannot be read ends the answer here.
      const read = await subtitlesOf(clips, options.subtitles, options.signal);
      const room = stages.checkRoom({
        clips,
        subtitles: read,
        history,
        question,
        conversation: options.conversation,
        maxNewTokens: options.maxNewTokens,
        kvCache: options.kvCache,
      });
      await begin?.(room, options.signal);
      const subtitles: (ReadSubtitles | undefined)[] = [];
      for (const [index, clip] of clips.entries()) {
        const { value, fresh } = await clip.encoded(options.signal);
        samplings.push(value.sampling);
        const all = read[index];
        subtitles.push(all && clip.within(all, value.sampling.timestamps));
        if (fresh) {
          work.framesDecoded += value.framesDecoded;
          work.framesEncoded += value.framesEncoded;
          decodeMs += value.decodeMs;
          encodeMs += value.encodeMs;
        }
        work.storeHit &&= value.stored === 'found' || (value.stored === 'written' && !fresh);
        const generating = performance.now();
        // The query model reads the bare question: no placeholder, no earlier turn.
        const { queryQuestion = question, ablate } = options.evaluation ?? {};
        const { signal } = options;
        const made = known?.[index] ?? tokens?.(value.features, signal);
        visualTokens.push(
          await (made ?? tokenGenerator.generate(value.features, queryQuestion, { signal, ablate })),
        );
        if (options.timeline === true)
          timelines.push(await timelineOf(tokenGenerator, value, question, signal));
        const generatedMs = performance.now() - generating;
        tokensMs += generatedMs;
        recordPhase('tokens', generatedMs);
      }
      const hasSubtitles = subtitles.some((each) => each !== undefined);
      const template = chosen ?? conversation(usualTemplate(languageModel.conversation, hasSubtitles));
      const shown = visualTokens.map(({ tokensPerFrame }, index) => ({
        subtitles: subtitles[index]?.subtitles,
        inputs: subtitles[index]?.inputs,
        frameTimes: samplings[index]?.timestamps ?? [],
        tokensPerFrame,
      }));
      const where = kept === undefined ? 'last' : 'first';
      const prompt = writePrompt(template, history, shown, languageModel.imagePlaceholder, question, where);
      const stop = [
        template.stop,
        ...(typeof options.stop === 'string' ? [options.stop] : (options.stop ?? [])),
      ];
      const generating = performance.now();
      session = kept?.session ?? languageModel.createSession();
      if (kept !== undefined) Object.assign(kept, { session, tokens: visualTokens });
      const { text: promptText, layout } = prompt;
      const keep = kept !== undefined;
      const generation = session.generate(promptText, { ...options, visualTokens, layout, stop, keep });
      yield* generation;
      const { text, tokenIds, keptTokens, finishReason, usage, timings } = await generation.result();
      result = {
        text,
        tokenIds,
        keptTokens,
        finishReason,
        usage,
        sampling: samplings[0],
        samplings,
        subtitles: subtitles.flatMap((each) => each?.report ?? []),
        timelines,
        work,
        timings: {
          loadMs,
          decodeMs,
          encodeMs,
          tokensMs,
          prefillMs: timings.prefillMs,
          firstTokenMs: generating - begun + timings.firstTokenMs,
          totalMs: performance.now() - begun,
          tokensPerSecond: timings.decodeMs > 0 ? (tokenIds.length * 1000) / timings.decodeMs : 0,
          peakRssBytes: process.resourceUsage().maxRSS * 1024,
        },
        model,
      };
      return result;
    } finally {
      // What is kept is kept from a whole answer on.
      if (kept === undefined || (known === undefined && result === undefined)) {
        session?.close();
        for (const tokens of visualTokens) tokens.close();
        kept?.[Symbol.dispose]();
      }
      onEnd?.(result);
    }
  }
}

/** Answers that are in the making at once: the products of more rows than this cost as much more. */
const MOST_AT_ONCE = 16;

/**
 * @internal Answers to several questions that know nothing of each other. The visual tokens of as many as are in the making at once
 * are made in one pass over the features, when the first of them is read.
 */
export function answerEach(
  stages: Stages,
  clips: readonly Clip[],
  questions: readonly string[],
  options: AskOptions,
): Answer[] {
  if (options.evaluation !== undefined) {
    throw new LlamaVidError('INVALID_ARGUMENT', 'evaluations ask one question at a time');
  }
  const turns = new Turns();
  let atOnce: number | undefined;
  const passes = new Map<VisualFeatures, Map<number, Promise<VisualTokens[]>>>();
  const passOf = (features: VisualFeatures, first: number, signal: AbortSignal | undefined) => {
    const known = passes.get(features) ?? new Map<number, Promise<VisualTokens[]>>();
    passes.set(features, known);
    let pass = known.get(first);
    if (pass === undefined) {
      const together = questions.slice(first, first + (atOnce ?? 1));
      pass = stages.tokenGenerator.generateEach(features, together, { signal });
      known.set(first, pass);
      // A pass that was stopped is made again for who still wants it.
      pass.catch(() => known.delete(first));
    }
    return pass;
  };
  return questions.map((question, index) => {
    let begun = false;
    const begin: Context['begin'] = async (room, signal) => {
      atOnce ??= Math.min(MOST_AT_ONCE, room);
      await turns.take(atOnce, signal);
      begun = true;
    };
    const tokens: Context['tokens'] = async (features, signal) => {
      const place = index % (atOnce ?? 1);
      const made = (await passOf(features, index - place, signal))[place];
      if (made === undefined) throw new LlamaVidError('INTERNAL', 'a question has no visual tokens');
      return made;
    };
    const onEnd = () => {
      if (begun) turns.give();
    };
    return answerQuestion(stages, () => ({ clips, history: [], begin, tokens, onEnd }), question, options);
  });
}

/** What is said in each clip. */
async function subtitlesOf(
  clips: readonly Clip[],
  source: SubtitleSource | undefined,
  signal: AbortSignal | undefined,
): Promise<(ReadSubtitles | undefined)[]> {
  if (source !== undefined && !isFound(source) && clips.length !== 1) {
    throw new LlamaVidError(
      'INVALID_ARGUMENT',
      `subtitles were given for a question about ${clips.length} videos or pictures`,
      { hint: 'Open each video with its own subtitles.' },
    );
  }
  return await Promise.all(clips.map((clip) => clip.subtitles(source, signal)));
}
