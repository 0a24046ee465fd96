// The file system, with errors that say what to do.
import { randomUUID } from 'node:crypto';
import * as fs from 'node:fs/promises';
import { dirname, relative } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';

/** Does `work` at `path`; what the system refuses becomes a `LlamaVidError`. */
export async function onDisk<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (LlamaVidError.is(error)) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOSPC' || code === 'EDQUOT') throw diskFull(`${path}: the disk is full`, error);
    throw new LlamaVidError('INVALID_ARGUMENT', `${path} cannot be written: ${message}`, {
      hint: 'Choose a cache folder that this user may write to: HF_HOME.',
      cause: error,
    });
  }
}

export function diskFull(message: string, cause?: unknown): LlamaVidError {
  return new LlamaVidError('DISK_FULL', message, {
    hint: 'Free some space, or set HF_HOME to a folder on a larger disk; what has been fetched is kept and not fetched again.',
    cause,
  });
}

/** Size of a file, links followed, or `undefined` where none is. */
export async function fileSize(path: string): Promise<number | undefined> {
  const facts = await fs.stat(path).catch(() => undefined);
  return facts?.isFile() ? facts.size : undefined;
}

/**
 * Makes `path` a link to `target`, whatever was there before. Inside `root` links are relative, so that the whole can be
 * moved.
 */
export async function link(
  path: string,
  target: string,
  root: string,
  kind: 'file' | 'dir' = 'file',
): Promise<void> {
  const inside = !relative(root, target).startsWith('..');
  const unfinished = `${path}.${randomUUID()}`;
  await onDisk(path, async () => {
    await fs.mkdir(dirname(path), { recursive: true });
    try {
      // On Windows only a junction needs no special right.
      await fs.symlink(
        inside ? relative(dirname(path), target) : target,
        unfinished,
        kind === 'dir' ? 'junction' : kind,
      );
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EPERM' || kind === 'dir') throw error;
      await fs.link(target, unfinished);
    }
    await fs.rename(unfinished, path);
  });
}

/** Writes a file under another name and gives it its own when it is complete. */
export async function writeWhole(path: string, text: string): Promise<void> {
  const unfinished = `${path}.${randomUUID()}`;
  await onDisk(path, async () => {
    await fs.mkdir(dirname(path), { recursive: true });
    try {
      await fs.writeFile(unfinished, text);
      await fs.rename(unfinished, path);
    } catch (error) {
      await fs.rm(unfinished, { force: true });
      throw error;
    }
  });
}
