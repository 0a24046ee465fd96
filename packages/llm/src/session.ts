import { LlamaVidError } from '@llamavid/errors';
import {
  callNative,
  type Session as NativeSession,
  nativeHandle,
  recordPhase,
  withCancellation,
} from '@llamavid/native';
import type { VisualTokens } from '@llamavid/tokens';
import type { DecodeRounds } from './decode-rounds.js';
import type { GenerationDefaults } from './language-model.js';
import { TextStream } from './text-stream.js';

export interface GenerateOptions {
  /** One for each `<image>` of the prompt, in its order. */
  visualTokens?: readonly VisualTokens[] | undefined;
  /**
   * `per-placeholder` (default): an `<image>` stands for all tokens of a video. `per-token`: for one token
   * (long video).
   */
  layout?: 'per-placeholder' | 'per-token' | undefined;
  /** At most this many new tokens. Default 512. */
  maxNewTokens?: number | undefined;
  /** 0 (default) always takes the likeliest token; above 0 samples. */
  temperature?: number | undefined;
  /**
   * Samples among the likeliest tokens that together reach this share, 0 < topP ≤ 1. Default: the
   * checkpoint's, else 1.
   */
  topP?: number | undefined;
  /**
   * Samples among this many likeliest tokens; 0 is all. Default: the checkpoint's, else 50, as in the
   * reference.
   */
  topK?: number | undefined;
  /** Above 1 makes tokens that were already there less likely. Default 1. */
  repetitionPenalty?: number | undefined;
  /** Equal seeds give equal samples. Default 0. */
  seed?: number | undefined;
  /**
   * How many bits the keys and values of past positions are held in. `16bit` (default) holds them as they are computed, `8bit`
   * in a quarter of the memory of `f32`. On a CPU, for heads that are a multiple of 32 wide.
   */
  kvCache?: '16bit' | '8bit' | '4bit' | undefined;
  /** Texts that end the answer and are not part of it. */
  stop?: string | readonly string[] | undefined;
  /**
   * Keeps what was read, in the memory of its keys and values, for the session's next generation with `keep`: that one reads only what
   * differs from the beginning of this one. The numbers are those of an empty cache. Default false.
   */
  keep?: boolean | undefined;
  /** Read between steps; iteration and `result()` then reject with `ABORTED`. */
  signal?: AbortSignal | undefined;
}

export interface GenerationUsage {
  /** Tokens of the prompt, visual ones included. */
  promptTokens: number;
  visualTokens: number;
  completionTokens: number;
}

export interface GenerationTimings {
  /** Splicing and reading the prompt. */
  prefillMs: number;
  /** From the start of prefill to the first new token. */
  firstTokenMs: number;
  /**
   * Decoding alone, together with the sessions that are read side by side; the time a reader takes between two pieces of text is not
   * in it.
   */
  decodeMs: number;
}

export interface GenerationResult {
  /**
   * What the iteration yields, in one piece: without special tokens, stop text and white space at its ends.
   */
  text: string;
  tokenIds: number[];
  /** Tokens of the prompt that an earlier generation of the session had read. */
  keptTokens: number;
  /** `stop`: the model or a stop text ended it; `length`: `maxNewTokens` or the end of the context did. */
  finishReason: 'stop' | 'length';
  usage: GenerationUsage;
  timings: GenerationTimings;
}

/** Text of one generation, piece by piece, and its result. */
export type Generation = TextStream<GenerationResult>;

/**
 * Decodes one sequence at a time; sessions of one model that are read side by side share each pass over its weights. Holds its
 * key/value cache until `close`.
 */
export class Session implements Disposable {
  readonly #native: NativeSession;
  readonly #defaults: GenerationDefaults;
  readonly #rounds: DecodeRounds;
  #newest = 0;

  /** @internal Made by `LanguageModel.createSession`. */
  constructor(native: NativeSession, defaults: GenerationDefaults, rounds: DecodeRounds) {
    this.#native = native;
    this.#defaults = defaults;
    this.#rounds = rounds;
  }

  /**
   * Generates the text that follows `prompt`. Starts when the text is read, without `keep` from an empty cache. A session
   * holds one generation: one that is still read when the next starts fails with `ABORTED`.
   */
  generate(prompt: string, options: GenerateOptions = {}): Generation {
    checkGenerateOptions(options);
    return new TextStream(this.#run(prompt, options));
  }

  async *#run(prompt: string, options: GenerateOptions): AsyncGenerator<string, GenerationResult, void> {
    const { signal, stop = [], temperature = 0 } = options;
    this.#newest += 1;
    const generation = this.#newest;
    const begun = performance.now();
    const started = await withCancellation(signal, (cancellation) =>
      this.#native.start(
        {
          prompt,
          visualTokens: (options.visualTokens ?? []).map((tokens) => tokens[nativeHandle]()),
          layout: options.layout ?? 'per-placeholder',
          maxNewTokens: options.maxNewTokens ?? 512,
          temperature,
          topP: options.topP ?? this.#defaults.topP ?? 1,
          topK: options.topK ?? this.#defaults.topK ?? 50,
          repetitionPenalty: options.repetitionPenalty ?? 1,
          seed: options.seed ?? 0,
          kvCache: options.kvCache ?? '16bit',
          stop: typeof stop === 'string' ? [stop] : [...stop],
          keep: options.keep ?? false,
        },
        cancellation,
      ),
    );
    const prefillMs = performance.now() - begun;
    recordPhase('prefill', prefillMs);

    let text = '';
    const tokenIds: number[] = [];
    let firstTokenMs: number | undefined;
    let decodeMs = 0;
    const check = () => {
      if (generation === this.#newest) return;
      throw new LlamaVidError('ABORTED', 'the session started another generation');
    };
    for (;;) {
      const stepped = performance.now();
      const step = await this.#rounds.next(this.#native, check, signal);
      const steppedMs = performance.now() - stepped;
      decodeMs += steppedMs;
      recordPhase('decode', steppedMs);
      firstTokenMs ??= performance.now() - begun;
      if (step) {
        tokenIds.push(...step.tokenIds);
        text += step.text;
        if (step.text !== '') yield step.text;
      }
      if (!step || step.finishReason !== undefined) {
        const { promptTokens, visualTokens, keptTokens } = started;
        return {
          text,
          tokenIds,
          keptTokens,
          finishReason: step?.finishReason ?? 'stop',
          usage: { promptTokens, visualTokens, completionTokens: tokenIds.length },
          timings: { prefillMs, firstTokenMs, decodeMs },
        };
      }
    }
  }

  /** Frees the cache. Closing twice does nothing. */
  close(): void {
    callNative(() => this.#native.close());
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Throws `INVALID_ARGUMENT` at options that cannot work, so that a caller can say so before long work. */
export function checkGenerateOptions(options: GenerateOptions): void {
  const { maxNewTokens, temperature, topP, topK, repetitionPenalty, seed } = options;
  const rules: [name: string, value: number | undefined, holds: (value: number) => boolean, rule: string][] =
    [
      [
        'maxNewTokens',
        maxNewTokens,
        (value) => Number.isSafeInteger(value) && value > 0,
        'a whole number above 0',
      ],
      ['temperature', temperature, (value) => Number.isFinite(value) && value >= 0, 'a number, 0 or above'],
      ['topP', topP, (value) => value > 0 && value <= 1, 'above 0 and at most 1'],
      ['topK', topK, (value) => Number.isSafeInteger(value) && value >= 0, 'a whole number, 0 or above'],
      [
        'repetitionPenalty',
        repetitionPenalty,
        (value) => Number.isFinite(value) && value > 0,
        'a number above 0',
      ],
      ['seed', seed, (value) => Number.isSafeInteger(value) && value >= 0, 'a whole number, 0 or above'],
    ];
  for (const [name, value, holds, rule] of rules) {
    if (value !== undefined && !holds(value)) {
      throw new LlamaVidError('INVALID_ARGUMENT', `${name} is ${value}, but must be ${rule}`);
    }
  }
}
