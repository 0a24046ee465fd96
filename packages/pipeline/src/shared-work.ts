import { LlamaVidError } from '@llamavid/errors';

interface Run<T> {
  promise: Promise<T>;
  controller: AbortController;
  waiting: number;
  done: boolean;
}

/**
 * Work that several callers wait for: done once when the first one asks, stopped when the last one gives up.
 * After a failure or a stop the next caller starts it again.
 */
export class SharedWork<T> {
  readonly #work: (signal: AbortSignal) => Promise<T>;
  readonly #free: (value: T) => void;
  #run: Run<T> | undefined;

  /** `free` gets the value once nobody can ask for it any more. */
  constructor(work: (signal: AbortSignal) => Promise<T>, free: (value: T) => void) {
    this.#work = work;
    this.#free = free;
  }

  /** Whether its value is there. */
  get isDone(): boolean {
    return this.#run?.done === true;
  }

  /** The work's value, and whether this call made the work run. */
  async wait(signal?: AbortSignal): Promise<{ value: T; fresh: boolean }> {
    if (signal?.aborted) throw aborted(signal);
    const fresh = this.#run === undefined;
    const run = this.#run ?? this.#start();
    run.waiting += 1;
    try {
      return { value: await unlessAborted(run.promise, signal), fresh };
    } finally {
      run.waiting -= 1;
      if (run.waiting === 0 && !run.done) await this.#drop(run);
    }
  }

  /** Stops the work and frees its value. */
  async stop(): Promise<void> {
    if (this.#run !== undefined) await this.#drop(this.#run);
  }

  #start(): Run<T> {
    const controller = new AbortController();
    const run: Run<T> = { promise: this.#work(controller.signal), controller, waiting: 0, done: false };
    this.#run = run;
    run.promise.then(
      () => {
        run.done = true;
      },
      () => this.#drop(run),
    );
    return run;
  }

  /** Resolves once the work has really ended, so that what it used can be closed. */
  async #drop(run: Run<T>): Promise<void> {
    // Who drops first frees the value: later calls only wait.
    const first = this.#run === run;
    if (first) this.#run = undefined;
    run.controller.abort();
    await run.promise.then(
      (value) => (first ? this.#free(value) : undefined),
      () => undefined,
    );
  }
}

function aborted(signal: AbortSignal): LlamaVidError {
  return new LlamaVidError('ABORTED', 'the work was cancelled', { cause: signal.reason });
}

/** Waits for a promise, or less long when the signal says so. */
export function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(aborted(signal));
    signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
