import process from 'node:process';

/** Turns Ctrl-C into an abort: the first press cancels, the second ends the process at once. */
export class Interrupt implements Disposable {
  readonly #controller = new AbortController();
  readonly #press = () => this.press();

  constructor() {
    process.on('SIGINT', this.#press);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** What one press does; for a terminal in raw mode, which sends no signal. */
  press(): void {
    if (this.#controller.signal.aborted) process.exit(130);
    this.#controller.abort();
  }

  [Symbol.dispose](): void {
    process.off('SIGINT', this.#press);
  }
}
