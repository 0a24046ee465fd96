import { existsSync } from 'node:fs';
import { basename } from 'node:path';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import type { Clip, LlamaVid, MediaSource, OpenOptions, PlanOptions } from '@llamavid/pipeline';
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

/**
 * Refuses what cannot fit before the model is loaded, and gives the dtype to load. Without an answer the context has no limit. Stdin
 * can be read once only, so a question about it is checked when it is opened.
 */
export async function planFiles(
  model: string | undefined,
  paths: readonly string[],
  options: PlanOptions & { tryAnyway?: boolean | undefined; withoutAnswer?: boolean },
  progress: Progress,
): Promise<NonNullable<PlanOptions['dtype']>> {
  const { dtype = 'auto' } = options;
  if (paths.includes('-')) return dtype;
  const { LlamaVid, overflow, refuseWhatCannotFit } = await import('@llamavid/pipeline');
  progress.step('looking at the files');
  const plan = await LlamaVid.plan(model, paths.map(sourceOf), options);
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

export function openFile(
  model: LlamaVid,
  path: string,
  options: OpenOptions,
  progress: Progress,
): Promise<Clip> {
  progress.step(`opening ${basename(path)}`);
  const onProgress: OpenOptions['onProgress'] = (...frames) => progress.frames(...frames);
  const named = path === '-' ? { ...options, name: 'stdin' } : options;
  return model.open(sourceOf(path), { ...named, onProgress });
}

/** `-` is stdin. */
export function sourceOf(path: string): MediaSource {
  return path === '-' ? process.stdin : path;
}
