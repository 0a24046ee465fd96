import { spawn } from 'node:child_process';
import { join } from 'node:path';

/** The built command. */
export const main = join(import.meta.dirname, '../dist/main.js');

export interface Run {
  exitCode: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface Watch {
  input?: string;
  /** Sees what the command writes, and may stop it. */
  watch?: (text: string, kill: (signal: NodeJS.Signals) => void) => void;
  /** Sent this many milliseconds after the start. */
  killAfter?: number;
  /** Looked at again and again; the command gets a SIGINT when it says so. */
  interruptWhen?: () => boolean;
  /** Variables besides those of this process. */
  env?: Record<string, string>;
}

/** Runs the built command. */
export function llamavid(
  args: string[],
  { input = '', watch, killAfter, interruptWhen, env }: Watch = {},
): Promise<Run> {
  const child = spawn(process.execPath, [main, ...args], { stdio: 'pipe', env: { ...process.env, ...env } });
  const run: Run = { exitCode: null, signal: null, stdout: '', stderr: '' };
  for (const stream of ['stdout', 'stderr'] as const) {
    child[stream].setEncoding('utf8').on('data', (text: string) => {
      run[stream] += text;
      watch?.(text, (signal) => child.kill(signal));
    });
  }
  const timer = killAfter === undefined ? undefined : setTimeout(() => child.kill('SIGKILL'), killAfter);
  const looking =
    interruptWhen &&
    setInterval(() => {
      if (!interruptWhen()) return;
      clearInterval(looking);
      child.kill('SIGINT');
    }, 10);
  child.stdin.on('error', () => {});
  child.stdin.end(input);
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (exitCode, signal) => {
      clearTimeout(timer);
      clearInterval(looking);
      resolve({ ...run, exitCode, signal });
    });
  });
}
