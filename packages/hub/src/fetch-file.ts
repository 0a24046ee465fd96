import { LlamaVidError } from '@llamavid/errors';
import { type Asked, type Connection, Passing } from './connection.js';
import { fileSize } from './disk.js';
import { withFileLock } from './file-lock.js';
import { type Digest, PartialFile } from './partial-file.js';

/** A file and the place that it has in the cache. */
export interface CacheFile {
  /** What the user knows it as. */
  readonly name: string;
  readonly bytes: number;
  readonly path: string;
}

/** The same, and where it comes from. */
export interface Source extends CacheFile {
  readonly url: URL;
  readonly asked: Asked;
  readonly digest: Digest | undefined;
  /** What the server must still have for a part to be continued (`If-Range`), where no checksum watches over that. */
  readonly validator: string | undefined;
  readonly lock: string;
}

/** How far a file is. */
export interface FileProgress {
  readonly name: string;
  readonly bytes: number;
  /** Bytes that are there. */
  readonly done: number;
  /** `cached` was there before; `fetched` is new and checked; `waiting` is for another process that fetches it. */
  readonly state: 'waiting' | 'fetching' | 'fetched' | 'cached';
}

export type Report = (done: number, state: FileProgress['state']) => void;

/** Whether the file is in the cache. Its name there is its checksum, or its address and version. */
export async function isCached({ path, bytes }: CacheFile): Promise<boolean> {
  return (await fileSize(path)) === bytes;
}

/** Bytes of a file that was begun and not finished. */
export async function bytesBegun(source: Source): Promise<number> {
  return mayContinue(source) ? Math.min((await fileSize(partialPath(source.path))) ?? 0, source.bytes) : 0;
}

/**
 * Brings a file into the cache: continues what was begun, checks the checksum, and only then gives it its name.
 *
 * @throws `HUB_ERROR`, `MODEL_NOT_FOUND`, `DISK_FULL`, `ABORTED`. What has arrived stays for the next attempt, but for a
 * wrong checksum.
 */
export async function fetchFile(
  source: Source,
  connection: Connection,
  report: Report,
): Promise<'fetched' | 'cached'> {
  const cached = async () => {
    const there = await isCached(source);
    if (there) report(source.bytes, 'cached');
    return there;
  };
  if (await cached()) return 'cached';
  const onWait = () => report(0, 'waiting');
  return await withFileLock(source.lock, { signal: connection.signal, onWait }, async (held) => {
    if (await cached()) return 'cached';
    const { bytes, digest, path } = source;
    await using partial = await PartialFile.open(
      partialPath(source.path),
      bytes,
      digest,
      mayContinue(source),
    );
    for (;;) {
      const { inherited } = partial;
      await connection.persist(() => receive(source, partial, connection, report, held));
      if (partial.isRight()) break;
      await partial.restart();
      // A part that another run left may be to blame; what came in one piece is wrong at its source.
      if (!inherited) {
        await partial.remove();
        throw new LlamaVidError(
          'HUB_ERROR',
          `${source.name}: its ${digest?.algorithm} is not ${digest?.hex}`,
          {
            hint: 'What arrived is not what the hub lists, and was deleted. Run the command again; if a mirror (HF_ENDPOINT) or a proxy serves it, try without.',
          },
        );
      }
    }
    await partial.finish(path);
    report(bytes, 'fetched');
    return 'fetched';
  });
}

/** Takes what one connection gives, until the file is whole. */
async function receive(
  source: Source,
  partial: PartialFile,
  connection: Connection,
  report: Report,
  held: AbortSignal,
): Promise<void> {
  const { url, asked, bytes, validator, name } = source;
  if (!mayContinue(source)) await partial.restart();
  report(partial.offset, 'fetching');
  if (partial.offset === bytes) return;
  const begin = partial.offset;
  // Compressed on the way, bytes could neither be counted nor continued.
  const headers: Record<string, string> = { 'accept-encoding': 'identity' };
  if (begin > 0) headers['range'] = `bytes=${begin}-`;
  if (begin > 0 && validator !== undefined) headers['if-range'] = validator;
  try {
    await connection.get(
      url,
      headers,
      asked,
      async (response, alive) => {
        if (response.status !== 206) await partial.restart();
        else checkRange(response, begin, bytes, name);
        for await (const chunk of response.body ?? []) {
          alive();
          if (partial.offset + chunk.length > bytes) {
            await partial.restart();
            throw longer(name, bytes);
          }
          await partial.append(chunk);
          report(partial.offset, 'fetching');
        }
        if (partial.offset < bytes) throw new Passing(`${name} ended at byte ${partial.offset} of ${bytes}`);
      },
      [held],
    );
  } catch (error) {
    held.throwIfAborted();
    if (error instanceof Passing) error.progressed = partial.offset > begin;
    throw error;
  }
}

function mayContinue({ digest, validator }: Source): boolean {
  return digest !== undefined || validator !== undefined;
}

/** Not the name that huggingface_hub uses: it would add to the same file without our lock. */
export function partialPath(path: string): string {
  return `${path}.llamavid.incomplete`;
}

function checkRange(response: Response, begin: number, bytes: number, name: string): void {
  const range = response.headers.get('content-range') ?? '';
  const [, first, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(range) ?? [];
  if (Number(first) !== begin) {
    throw new LlamaVidError(
      'HUB_ERROR',
      `${name}: asked for bytes from ${begin} on and got ${range || 'others'}`,
    );
  }
  if (total !== '*' && Number(total) !== bytes) throw longer(name, bytes);
}

function longer(name: string, bytes: number): LlamaVidError {
  return new LlamaVidError('HUB_ERROR', `${name}: not the ${bytes} bytes that were announced`, {
    hint: 'The file has changed, or something else answers in the place of the hub. Run the command again.',
  });
}
