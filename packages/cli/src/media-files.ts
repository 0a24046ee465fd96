import { existsSync } from 'node:fs';
import { basename } from 'node:path';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import type { Clip, LlamaVid, MediaSource, OpenOptions } from '@llamavid/pipeline';
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

export function openFile(
  model: LlamaVid,
  path: string,
  options: OpenOptions,
  progress: Progress,
): Promise<Clip> {
  progress.step(`opening ${basename(path)}`);
  const onProgress = (done: number, total: number) => progress.frames(done, total);
  const named = path === '-' ? { ...options, name: 'stdin' } : options;
  return model.open(sourceOf(path), { ...named, onProgress });
}

/** `-` is stdin. */
export function sourceOf(path: string): MediaSource {
  return path === '-' ? process.stdin : path;
}
