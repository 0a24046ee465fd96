import process from 'node:process';

/**
 * What goes on, on stderr: one line that changes on a terminal, plain lines elsewhere, nothing when quiet.
 */
export class Progress {
  readonly #quiet: boolean;
  readonly terminal = process.stderr.isTTY === true;
  #shown = false;

  constructor(quiet: boolean) {
    this.#quiet = quiet;
  }

  /** A step that begins. */
  step(text: string): void {
    if (this.#quiet) return;
    if (this.terminal) this.#replace(text);
    else process.stderr.write(`${text}\n`);
  }

  /** Frames done of all; elsewhere than on a terminal only the last one is worth a line. */
  frames(done: number, total: number): void {
    this.count('encoding frames', done, total);
  }

  /** The same for anything that is counted. */
  count(what: string, done: number, total: number): void {
    if (this.#quiet) return;
    const text = `${what}: ${done} of ${total}`;
    if (this.terminal) this.#replace(text);
    else if (done === total) process.stderr.write(`${text}\n`);
  }

  /** What changes too often for lines: shown on a terminal only. */
  status(text: string): void {
    if (!this.#quiet && this.terminal) this.#replace(text);
  }

  /** A line that stays. */
  line(text: string): void {
    if (this.#quiet) return;
    this.clear();
    process.stderr.write(`${text}\n`);
  }

  /** The same for bytes. */
  bytes(what: string, done: number, total: number): void {
    if (this.#quiet) return;
    const percent = total === 0 ? 100 : Math.floor((100 * done) / total);
    const text = `${what}: ${percent} % of ${(total / 1e9).toFixed(2)} GB`;
    if (this.terminal) this.#replace(text);
  }

  /** Something that the user should know and that stays. */
  note(text: string): void {
    this.line(`note: ${text}`);
  }

  /** Makes room for the answer. */
  clear(): void {
    if (this.#shown) process.stderr.write('\r\x1b[2K');
    this.#shown = false;
  }

  #replace(text: string): void {
    process.stderr.write(`\r\x1b[2K${text.slice(0, (process.stderr.columns || 80) - 1)}`);
    this.#shown = true;
  }
}
