import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';

/** What a program wrote and took. */
export interface Finished {
  readonly stdout: string;
  readonly seconds: number;
  /** Of all its threads, and of the processes that it waited for. */
  readonly cpuSeconds: number;
  readonly peakBytes: number;
}

const measure = join(import.meta.dirname, 'measured.py');
/** No program of ours or theirs writes more. */
const MOST_OUTPUT = 64 << 20;

/**
 * Runs a program to its end through `python`, which alone hears from the system what a child has taken.
 *
 * @throws with the end of what it wrote to stderr, when it fails.
 */
export function run(
  python: string,
  program: string,
  args: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<Finished> {
  const folder = mkdtempSync(join(tmpdir(), 'llamavid-peers-'));
  const numbers = join(folder, 'taken.json');
  const options = { maxBuffer: MOST_OUTPUT, env: { ...process.env, ...environment } };
  return new Promise<Finished>((resolve, reject) => {
    execFile(python, [measure, numbers, program, ...args], options, (error, stdout, stderr) => {
      if (error === null) resolve({ stdout, ...JSON.parse(readFileSync(numbers, 'utf8')) });
      else reject(new Error(`${program} ${args.join(' ')} failed: ${stderr.slice(-2000)}`, { cause: error }));
    });
  }).finally(() => rmSync(folder, { recursive: true, force: true }));
}

/** The lines of a program's output that are JSON objects; programs write other things beside. */
export function objects<T>(stdout: string): T[] {
  const lines = stdout.split('\n').filter((line) => line.startsWith('{'));
  return lines.map((line) => JSON.parse(line) as T);
}
