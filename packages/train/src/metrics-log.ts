import { closeSync, existsSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { LlamaVidError } from '@llamavid/errors';
import type { StepReport } from './step-report.js';
import { writing } from './written-file.js';

/**
 * `metrics.jsonl`: one step a line, appended as steps end.
 *
 * A run that goes on behind step N cuts the lines of later steps, which it repeats, and a last line that a killed
 * process left unfinished.
 */
export class MetricsLog implements Disposable {
  /** The lines of the steps before, in order. */
  readonly earlier: StepReport[];
  readonly #path: string;
  #file: number | undefined;

  constructor(path: string, lastStep: number) {
    this.#path = path;
    const { reports, length } = existsSync(path)
      ? readKept(readFileSync(path), path, lastStep)
      : { reports: [], length: 0 };
    this.earlier = reports;
    this.#file = writing(path, () => {
      const file = openSync(path, 'a');
      ftruncateSync(file, length);
      return file;
    });
  }

  append(report: StepReport): void {
    const file = this.#file;
    if (file !== undefined) writing(this.#path, () => writeSync(file, `${JSON.stringify(report)}\n`));
  }

  close(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** All whole lines of a file. */
export function readReports(path: string): StepReport[] {
  return readKept(readFileSync(path), path, Number.POSITIVE_INFINITY).reports;
}

function readKept(bytes: Buffer, path: string, lastStep: number): { reports: StepReport[]; length: number } {
  const reports: StepReport[] = [];
  let length = 0;
  for (let end = bytes.indexOf('\n'); end >= 0; end = bytes.indexOf('\n', length)) {
    const report = parse(bytes.toString('utf8', length, end), path, reports.length + 1);
    if (report.step > lastStep) break;
    reports.push(report);
    length = end + 1;
  }
  return { reports, length };
}

function parse(line: string, path: string, number: number): StepReport {
  try {
    const report = JSON.parse(line);
    if (Number.isSafeInteger(report?.step)) return report;
    throw new SyntaxError('there is no step in it');
  } catch (error) {
    throw new LlamaVidError('DATA_INVALID', `${path}, line ${number}: ${(error as Error).message}`, {
      hint: 'Remove the file if the earlier steps need not show in the chart.',
      cause: error,
    });
  }
}
