import { mkdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { LlamaVidError } from '@llamavid/errors';
import { lock } from 'proper-lockfile';
import { throwIfAborted } from './connection.js';
import { onDisk } from './disk.js';

/** A lock that its owner has not touched for so long belongs to a process that is dead. */
const STALE_MS = 10_000;
const LOOK_AGAIN_MS = 250;

/**
 * Does `work` while no other process does the same, waiting for them first. The lock keeps two processes from fetching the
 * same bytes; that a file is whole is left to its checksum.
 */
export async function withFileLock<T>(
  path: string,
  { signal, onWait }: { signal: AbortSignal; onWait?: () => void },
  work: (held: AbortSignal) => Promise<T>,
): Promise<T> {
  const lost = new AbortController();
  const release = await onDisk(path, async () => {
    await mkdir(dirname(path), { recursive: true });
    for (;;) {
      throwIfAborted(signal);
      try {
        return await lock(path, {
          lockfilePath: path,
          realpath: false,
          stale: STALE_MS,
          update: STALE_MS / 5,
          onCompromised: (error) => lost.abort(error),
        });
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ELOCKED') throw error;
      }
      onWait?.();
      await setTimeout(LOOK_AGAIN_MS);
    }
  });
  try {
    return await work(lost.signal);
  } catch (error) {
    if (!lost.signal.aborted) throw error;
    throw new LlamaVidError('HUB_ERROR', `${path}: another process took this lock over`, {
      hint: 'This process was halted for too long. Run the command again: it resumes.',
      cause: lost.signal.reason,
    });
  } finally {
    // A lost lock is another's to release.
    if (!lost.signal.aborted) await release().catch(() => {});
  }
}
