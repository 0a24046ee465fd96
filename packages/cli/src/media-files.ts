import { existsSync } from 'node:fs';
import { basename } from 'node:path';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import type { LookedSource, MediaSource, OpenOptions, PlanOptions } from '@llamavid/pipeline';
import type { Progress } from './progress.js';

/** Says before a model is loaded what would only show afterwards. */
export function checkFiles(paths: readonly string[]): void {
  for (const path of paths) {
    if (path !== '-' && !existsSync(path)) {
      throw new LlamaVidError('MEDIA_NOT_FOUND', `${path}: there is no such file`, {
        hint: 'Check the path; the question comes last, in quotes.',
      });
    }
  }
}

/** Looks at a file, for the plan and the model to share. */
export async function lookAtFile(
  model: string | undefined,
  path: string,
  options: OpenOptions,
  progress: Progress,
): Promise<LookedSource> {
  const { LlamaVid } = await import('@llamavid/pipeline');
  progress.step(`looking at ${basename(path)}`);
  return await LlamaVid.look(model, sourceOf(path), shownOptions(path, options, progress));
}

/** The same options, with what goes on shown. */
export function shownOptions(path: string, options: OpenOptions, progress: Progress): OpenOptions {
  return {
    ...options,
    ...(path === '-' && { name: 'stdin' }),
    onProgress: (...frames) => progress.frames(...frames),
    onSpeech: (done, total) =>
      progress.count('writing down seconds of speech', Math.floor(done), Math.floor(total)),
  };
}

/** Refuses what cannot fit before the model is loaded, and gives the dtype to load. Without an answer the context has no limit. */
export async function planFiles(
  model: string | undefined,
  looked: readonly LookedSource[],
  options: PlanOptions & { tryAnyway?: boolean | undefined; withoutAnswer?: boolean },
  progress: Progress,
): Promise<NonNullable<PlanOptions['dtype']>> {
  const { dtype = 'auto' } = options;
  const { LlamaVid, overflow, refuseWhatCannotFit } = await import('@llamavid/pipeline');
  const plan = await LlamaVid.plan(model, looked, options);
  const tooLong = overflow(plan);
  if (tooLong !== undefined && options.withoutAnswer !== true) throw tooLong;
  if (options.tryAnyway !== true) refuseWhatCannotFit(plan);
  const chosen = plan.options[plan.chosen];
  if (chosen === undefined || plan.device !== 'cpu') return dtype;
  if (dtype === 'auto' && chosen.dtype !== 'f32') {
    progress.note(`f32 does not fit into memory, so ${chosen.dtype} is taken, which is slower on a CPU`);
  }
  return chosen.dtype;
}

/** `-` is stdin. */
export function sourceOf(path: string): MediaSource {
  return path === '-' ? process.stdin : path;
}
