import { LlamaVidError } from '@llamavid/errors';
import type { RecordFailure, StepReport } from './step-report.js';

/** What a run did, the parts before a resumption included. */
export interface TrainingSummary {
  /** The folder that holds what the stage wrote. */
  output: string;
  steps: number;
  /** Of the last step that had records. */
  loss: number | null;
  samples: number;
  tokens: number;
  frames: number;
  seconds: number;
  tokensPerSecond: number;
  framesPerSecond: number;
  peakRssBytes: number;
  /** Every record that failed, as often as it did. */
  failures: RecordFailure[];
}

/**
 * A run of one stage: its steps as they end, and its result.
 *
 * Pulled: nothing runs before somebody iterates or calls `result()`. Leaving the iteration early ends the run at its
 * last checkpoint; `result()` then rejects with `ABORTED`.
 */
export class TrainingRun implements AsyncIterable<StepReport> {
  readonly #source: AsyncGenerator<StepReport, TrainingSummary, void>;
  #end: { summary: TrainingSummary } | { error: unknown } | undefined;

  /** @internal Made by `train`. */
  constructor(source: AsyncGenerator<StepReport, TrainingSummary, void>) {
    this.#source = source;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<StepReport, void, void> {
    try {
      for (;;) {
        const report = await this.#next();
        if (report === undefined) return;
        yield report;
      }
    } finally {
      if (this.#end === undefined) {
        this.#end = { error: new LlamaVidError('ABORTED', 'the reader left before the end of the run') };
        await this.#source.return(undefined as never);
      }
    }
  }

  /** Runs to the end, with or without somebody who reads the steps. */
  async result(): Promise<TrainingSummary> {
    for (;;) {
      if (this.#end === undefined) await this.#next();
      else if ('summary' in this.#end) return this.#end.summary;
      else throw this.#end.error;
    }
  }

  async #next(): Promise<StepReport | undefined> {
    if (this.#end !== undefined) {
      if ('error' in this.#end) throw this.#end.error;
      return undefined;
    }
    try {
      const { done, value } = await this.#source.next();
      if (!done) return value;
      this.#end ??= { summary: value };
      return undefined;
    } catch (error) {
      this.#end ??= { error };
      throw error;
    }
  }
}
