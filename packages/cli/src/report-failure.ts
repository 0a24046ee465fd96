import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';

/** Writes an error where and how the caller reads it, in JSON behind what it is `about`, and gives the exit code. */
export function reportFailure(error: unknown, { json, about }: { json: boolean; about?: object }): number {
  const { code, message, hint } = explain(error);
  if (json) process.stdout.write(`${JSON.stringify({ ...about, error: { code, message, hint } })}\n`);
  else process.stderr.write(`error: ${message}\n${hint === null ? '' : `hint: ${hint}\n`}`);
  if (code === 'ABORTED') return 130;
  return code === 'INVALID_ARGUMENT' ? 2 : 1;
}

function explain(error: unknown): { code: string; message: string; hint: string | null } {
  if (error instanceof LlamaVidError) {
    return { code: error.code, message: error.message, hint: error.hint ?? null };
  }
  if (error instanceof Error && error.name === 'AbortError') {
    return { code: 'ABORTED', message: 'cancelled', hint: null };
  }
  const message = error instanceof Error ? error.message : String(error);
  return {
    code: 'INTERNAL',
    message,
    hint: 'This is a bug in llamavid; please report it with the command line.',
  };
}
