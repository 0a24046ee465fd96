import type { WriteStream } from 'node:tty';
import type { StepReport } from './step-report.js';
import { durationText, sizeText } from './text.js';

/** Where progress is written: stderr, or what behaves like it. */
export type ProgressStream = Pick<WriteStream, 'write'> & { isTTY?: boolean; columns?: number };

/** Names of records and files may hold what moves a terminal's cursor. */
const CONTROL = /\p{Cc}/gu;
/** Seconds between two lines where nobody looks at a terminal. */
const LINE_EVERY_SECONDS = 10;

/** A run's steps on a terminal as one line that changes, elsewhere as a line now and then. */
export class TerminalProgress {
  readonly #stream: ProgressStream;
  #shown = false;
  #lastLine = Number.NEGATIVE_INFINITY;

  constructor(stream: ProgressStream) {
    this.#stream = stream;
  }

  step(report: StepReport): void {
    for (const { id, reason } of report.failures) this.note(`record ${id} failed: ${reason}`);
    const line = describeStep(report);
    if (this.#stream.isTTY) {
      this.#replace(line);
      return;
    }
    const now = performance.now() / 1000;
    if (now - this.#lastLine < LINE_EVERY_SECONDS && report.step !== report.steps) return;
    this.#lastLine = now;
    this.#stream.write(`${line}\n`);
  }

  /** What goes on before the first step. */
  phase(text: string): void {
    if (this.#stream.isTTY) this.#replace(text);
    else this.#stream.write(`${text}\n`);
  }

  /** Something that stays. */
  note(text: string): void {
    this.clear();
    this.#stream.write(`note: ${text.replace(CONTROL, '\ufffd')}\n`);
  }

  /** Takes the changing line away. */
  clear(): void {
    if (this.#shown) this.#stream.write('\r\x1b[2K');
    this.#shown = false;
  }

  #replace(line: string): void {
    this.#stream.write(`\r\x1b[2K${line.slice(0, (this.#stream.columns || 80) - 1)}`);
    this.#shown = true;
  }
}

/** `step 12/340 · loss 2.31 · rate 1.2e-4 · 310 tokens/s · 24 frames/s · 1.2 GB · 4 min 20 s left`. */
export function describeStep(report: StepReport): string {
  const { step, steps, loss, learningRate, tokensPerSecond, framesPerSecond } = report;
  return [
    `step ${step}/${steps}`,
    `loss ${loss === null ? '–' : loss.toPrecision(4)}`,
    `rate ${Number(learningRate.toPrecision(3))}`,
    `${rate(tokensPerSecond)} tokens/s`,
    `${rate(framesPerSecond)} frames/s`,
    sizeText(report.peakRssBytes),
    `${durationText(report.remainingSeconds)} left`,
  ].join(' · ');
}

function rate(value: number): string {
  return value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString('en');
}
