// The folder that the loader reads: links to the repository's files and to the entries that it needs.
import { randomUUID } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fileSize, link, onDisk, writeWhole } from './disk.js';
import { withFileLock } from './file-lock.js';
import type { RepositoryPart } from './parts.js';
import { PULLED } from './pulled.js';
import { hubCache } from './settings.js';

/** Something of another entry, and its name in the folder. */
export interface PlacedNeed {
  readonly place: string;
  readonly target: string;
  readonly kind: 'file' | 'dir';
}

/** Makes the folder under another name and gives it its own when it is complete. One that is right already stays. */
export async function assemble(
  part: RepositoryPart,
  needs: readonly PlacedNeed[],
  signal: AbortSignal,
): Promise<void> {
  const { folder, files } = part;
  const record = `${JSON.stringify(recordOf(part, needs), null, 2)}\n`;
  if (await isRight(part, needs, record)) return;
  const lock = join(
    hubCache(),
    '.locks',
    basename(dirname(dirname(folder))),
    `${basename(folder)}.llamavid.lock`,
  );
  await withFileLock(lock, { signal }, async () => {
    if (await isRight(part, needs, record)) return;
    await clearUnfinished(folder);
    const unfinished = unfinishedName(folder);
    for (const { path, source } of files) await link(join(unfinished, path), source.path, hubCache());
    for (const { place, target, kind } of needs)
      await link(join(unfinished, place), target, hubCache(), kind);
    await writeWhole(join(unfinished, PULLED), record);
    await onDisk(folder, async () => {
      const old = unfinishedName(folder);
      await rename(folder, old).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOENT') throw error;
      });
      await rename(unfinished, folder);
      await rm(old, { recursive: true, force: true });
    });
  });
}

/** What `pulled.json` says: where each file is from. */
function recordOf({ name, commit, files }: RepositoryPart, needs: readonly PlacedNeed[]): object {
  return {
    ...{ repository: name.repository, revision: name.revision, commit },
    files: files.map(({ path, source }) => ({ path, bytes: source.bytes })),
    needs: Object.fromEntries(needs.map(({ place, target }) => [place, target])),
  };
}

async function isRight(
  { folder, files }: RepositoryPart,
  needs: readonly PlacedNeed[],
  record: string,
): Promise<boolean> {
  if ((await readFile(join(folder, PULLED), 'utf8').catch(() => '')) !== record) return false;
  const sizes = await Promise.all([
    ...files.map(async ({ path, source }) => (await fileSize(join(folder, path))) === source.bytes),
    ...needs.map(async ({ place, kind }) =>
      kind === 'file'
        ? (await fileSize(join(folder, place))) !== undefined
        : (await fileSize(join(folder, place, PULLED))) !== undefined,
    ),
  ]);
  return sizes.every((right) => right);
}

function unfinishedName(folder: string): string {
  return `${folder}.${randomUUID()}.incomplete`;
}

/** Removes what a process left that was killed here. */
async function clearUnfinished(folder: string): Promise<void> {
  await onDisk(folder, async () => {
    await mkdir(dirname(folder), { recursive: true });
    for (const name of await readdir(dirname(folder))) {
      if (name.startsWith(`${basename(folder)}.`) && name.endsWith('.incomplete')) {
        await rm(join(dirname(folder), name), { recursive: true, force: true });
      }
    }
  });
}
