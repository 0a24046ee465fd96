import process from 'node:process';

/**
 * What goes on, on stderr: one line that changes on a terminal, plain lines elsewhere, nothing when quiet.
 */
export class Progress {
  readonly #quiet: boolean;
  readonly terminal = process.stderr.isTTY === true;
  #shown = false;
  /** When the first frames of a video came, and how many they were. */
  #first: { at: number; done: number } | undefined;

  constructor(quiet: boolean) {
    this.#quiet = quiet;
  }

  /** A step that begins. */
  step(text: string): void {
    if (this.#quiet) return;
    if (this.terminal) this.#replace(text);
    else process.stderr.write(`${text}\n`);
  }

  /**
   * Frames done of all, of which the first `stored` were there before, with the rate and the time that is left; elsewhere than on a
   * terminal only the last one is worth a line.
   */
  frames(done: number, total: number, stored: number): void {
    const now = performance.now();
    if (this.#first === undefined || done <= this.#first.done) this.#first = { at: now, done };
    const { at, done: before } = this.#first;
    const rate = (done - before) / ((now - at) / 1000);
    const found = stored > 0 ? ` (${stored} were stored)` : '';
    const left = done < total && rate > 0 ? `, ${durationText((total - done) / rate)} left` : '';
    const speed = rate > 0 && Number.isFinite(rate) ? `, ${rate.toPrecision(3)} frames/s${left}` : '';
    this.count('encoding frames', done, total, `${found}${speed}`);
    if (done === total) this.#first = undefined;
  }

  /** The same for anything that is counted. */
  count(what: string, done: number, total: number, more = ''): void {
    if (this.#quiet) return;
    const text = `${what}: ${done} of ${total}${more}`;
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

/** `12 s`, `4:07 min` or `1:30 h`. */
function durationText(seconds: number): string {
  const whole = Math.ceil(seconds);
  const two = (number: number) => String(number).padStart(2, '0');
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}:${two(whole % 60)} min`;
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)} h`;
}
