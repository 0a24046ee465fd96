import { LlamaVidError } from '@llamavid/errors';

/**
 * Text as it is made, and what is known at its end.
 *
 * Pulled: nothing runs before somebody iterates or calls `result()`, and nothing runs ahead of the readers.
 * Every iteration starts at the beginning, so `result()` may be called before, while or after reading.
 * Leaving the only iteration before the end stops the work; `result()` then rejects with `ABORTED`.
 */
export class TextStream<Result> implements AsyncIterable<string> {
  readonly #source: AsyncGenerator<string, Result, void>;
  readonly #deltas: string[] = [];
  #pulling: Promise<void> | undefined;
  #end: { result: Result } | { error: unknown } | undefined;
  #readers = 0;

  /** `source` yields the text piece by piece and returns the result. */
  constructor(source: AsyncGenerator<string, Result, void>) {
    this.#source = source;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    this.#readers += 1;
    try {
      for (let position = 0; ; ) {
        const delta = this.#deltas[position];
        if (delta !== undefined) {
          position += 1;
          yield delta;
        } else if (this.#end === undefined) {
          await this.#pull();
        } else if ('error' in this.#end) {
          throw this.#end.error;
        } else {
          return;
        }
      }
    } finally {
      this.#readers -= 1;
      if (this.#readers === 0 && this.#end === undefined) await this.#stop();
    }
  }

  /** Runs to the end, with or without somebody who reads the text. */
  async result(): Promise<Result> {
    this.#readers += 1;
    try {
      while (this.#end === undefined) await this.#pull();
    } finally {
      this.#readers -= 1;
    }
    if ('error' in this.#end) throw this.#end.error;
    return this.#end.result;
  }

  /** Moves the source by one step; readers that come meanwhile wait for the same step. */
  #pull(): Promise<void> {
    this.#pulling ??= this.#step().finally(() => {
      this.#pulling = undefined;
    });
    return this.#pulling;
  }

  async #step(): Promise<void> {
    try {
      const next = await this.#source.next();
      if (next.done) this.#end ??= { result: next.value };
      else this.#deltas.push(next.value);
    } catch (error) {
      this.#end ??= { error };
    }
  }

  async #stop(): Promise<void> {
    this.#end = { error: new LlamaVidError('ABORTED', 'the reader left before the end of the text') };
    // The value is never seen: `#end` is set. Only the source's `finally` matters.
    await this.#source.return(undefined as never);
  }
}
