/** Bytes that come without a file, written to a temporary one: decoders must be able to seek. */
import { rmSync } from 'node:fs';
import { mkdtemp, open, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import { aborted, tooLarge } from './video-errors.js';

/** A temporary file; `dispose` removes it. It is removed at the process's end too. */
export interface SpooledFile {
  readonly path: string;
  readonly dispose: () => Promise<void>;
}

const folders = new Set<string>();
let removesAtExit = false;

/** Writes `chunks` to a file that only this user can read, up to `maxBytes`. */
export async function spool(
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  name: string,
  maxBytes: number,
  signal?: AbortSignal,
): Promise<SpooledFile> {
  const folder = await mkdtemp(join(tmpdir(), 'llamavid-'));
  folders.add(folder);
  if (!removesAtExit) process.once('exit', removeAll);
  removesAtExit = true;
  const dispose = async () => {
    folders.delete(folder);
    await rm(folder, { recursive: true, force: true });
  };
  const path = join(folder, 'media');
  try {
    const file = await open(path, 'wx', 0o600);
    try {
      let written = 0;
      for await (const chunk of abortable(chunks, name, signal)) {
        if (!(chunk instanceof Uint8Array)) {
          throw new LlamaVidError('INVALID_ARGUMENT', `${name} gives ${typeof chunk} instead of bytes.`, {
            hint: 'Give a stream of Uint8Array, such as `response.body` or `fs.createReadStream(path)`.',
          });
        }
        written += chunk.byteLength;
        if (written > maxBytes) {
          throw tooLarge(
            name,
            `the stream has more than ${maxBytes} bytes`,
            'Save it to a file and give its path, or raise maxStreamBytes.',
          );
        }
        await file.writeFile(chunk);
      }
    } finally {
      await file.close();
    }
    return { path, dispose };
  } catch (error) {
    await dispose();
    if (error instanceof LlamaVidError) throw error;
    if (signal?.aborted) throw aborted(name, signal.reason);
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOSPC' || code === 'EDQUOT') {
      throw new LlamaVidError('DISK_FULL', `There is no room for ${name} in ${tmpdir()}.`, {
        hint: 'Free some space, or set TMPDIR to a folder with more.',
        cause: error,
      });
    }
    throw new LlamaVidError('MEDIA_UNREADABLE', `The stream of ${name} failed: ${message}`, {
      hint: 'Read it again from its beginning.',
      cause: error,
    });
  }
}

/** The same chunks; a source that never answers does not keep an abort waiting. */
async function* abortable(
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  name: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void, undefined> {
  const iterator =
    Symbol.asyncIterator in chunks ? chunks[Symbol.asyncIterator]() : chunks[Symbol.iterator]();
  let onAbort: (() => void) | undefined;
  const stopped = new Promise<never>((_, reject) => {
    onAbort = () => reject(aborted(name, signal?.reason));
    if (signal?.aborted) onAbort();
    else signal?.addEventListener('abort', onAbort, { once: true });
  });
  stopped.catch(() => undefined); // nobody may be waiting when it comes
  let finished = false;
  try {
    for (;;) {
      const { done, value } = await Promise.race([Promise.resolve(iterator.next()), stopped]);
      if (done) {
        finished = true;
        return;
      }
      yield value;
    }
  } finally {
    if (onAbort) signal?.removeEventListener('abort', onAbort);
    // Not awaited: a source stuck in `next` answers `return` only after it.
    if (!finished) void Promise.resolve(iterator.return?.()).catch(() => undefined);
  }
}

function removeAll(): void {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
}
